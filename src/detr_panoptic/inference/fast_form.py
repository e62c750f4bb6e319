"""The fastest form of a model on its device that gives the same results."""

from typing import Any

from torch import nn

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

    Examples:
        >>> from detr_panoptic import DetrPanopticConfig
        >>> model = DetrPanopticForSegmentation(DetrPanopticConfig(backbone="test_resnet", num_labels=3)).eval()
        >>> fast = fast_form(model)
    """
    if compile == "cudagraph" and model.device.type == "cuda":
        return CudaGraphs(model)
    if compile is not None:
        raise ValueError(f'`compile` must be None, or "cudagraph" with a model on a GPU, got {compile!r}.')
    return fused_copy(model) if can_fuse(model) else model


def state_of(model: nn.Module) -> tuple[Any, ...]:
    """Returns what changes when a model is replaced, moved, converted or trained, but not through `.data`."""
    tensors = (*model.parameters(), *model.buffers())
    versions = (None if tensor.is_inference() else tensor._version for tensor in tensors)
    return id(model), *((id(t), t.data_ptr(), t.dtype, version) for t, version in zip(tensors, versions, strict=True))


def form_of(network: Any) -> Any:
    """Returns what stands for a network in a pickle: the argument `compile` of `fast_form`, or the network itself."""
    if isinstance(network, CudaGraphs):
        return "cudagraph"
    return "fused" if isinstance(network, DetrPanopticForSegmentation) else network


def remade(form: Any, model: DetrPanopticForSegmentation) -> Any:
    """Returns the network that `form_of` stood for."""
    if not isinstance(form, str):
        return form
    return fast_form(model, None if form == "fused" else form)
