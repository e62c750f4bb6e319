"""The fastest form of a model on its device that gives the same results."""

from typing import Any

from ..modeling_detr_panoptic import DetrPanopticForSegmentation
from .cuda_graphs import CudaGraphs
from .fused import can_fuse, fused_copy


def fast_form(model: DetrPanopticForSegmentation, compile: str | None = None) -> Any:
    """Returns what predicts as a model in evaluation mode does: on a CPU a fused copy, where that works.

    The results are equal up to rounding. Changes of the model's weights do not reach a copy or a graph.

    Args:
        model: on its device.
        compile: "cudagraph" captures CUDA graphs.

    Raises:
        ValueError: there is no such way to compile, or the model is not on a GPU.

    Example:
        >>> from detr_panoptic import DetrPanopticConfig
        >>> model = DetrPanopticForSegmentation(DetrPanopticConfig(backbone="test_resnet", num_labels=3)).eval()
        >>> fast = fast_form(model)
    """
    if compile == "cudagraph" and model.device.type == "cuda":
        return CudaGraphs(model)
    if compile is not None:
        raise ValueError(f'`compile` must be None, or "cudagraph" with a model on a GPU, got {compile!r}.')
    return fused_copy(model) if can_fuse(model) else model
