"""A model as two ONNX graphs for images of any size.

The first goes from images to classes, boxes, attention maps and what the masks of an image share; the second makes
the masks of some queries of one image. In between the caller selects the queries, as `mask_queries` says, so the
masks are those of the model at any size: nothing is padded, and none is computed in vain.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F  # noqa: N812  the field's name for it

from ..data.plain_text import first_line
from .onnx_files import write_program
from .same_padding import traceable_copy

if TYPE_CHECKING:
    from ..mask_head import MaskHead
    from ..modeling_detr_panoptic import DetrPanopticForSegmentation

SHARED = ("shared_32", "shared_16", "shared_8", "shared_4")  # by stride
DETECTED = ("logits", "pred_boxes", "attention", *SHARED)  # outputs of the first graph
MAX_BATCH, MIN_SIDE, MAX_SIDE = 256, 33, 8192  # bounds for the shape solver
EXAMPLE_SIZE = (97, 131)  # for tracing and comparing: odd at several strides


def graph_files(folder: Path) -> tuple[Path, Path]:
    """Returns where a folder has the graphs."""
    return folder / "detection.onnx", folder / "masks.onnx"


class DetectionGraph(nn.Module):
    """Images (B, 3, H, W) and their mask (B, H, W) to `DETECTED`."""

    def __init__(self, model: DetrPanopticForSegmentation) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> tuple[Tensor, ...]:
        """Returns logits (B, Q, K+1), boxes (B, Q, 4), attention maps (B, Q, M, h, w) and four shared maps."""
        model: Any = self.model
        multiple = model.model.backbone.canvas_multiple
        if multiple > 1:  # as the backbone would do, in numbers above 0: ONNX rounds others the other way
            margins = [(side + multiple - 1) // multiple * multiple - side for side in pixel_values.shape[-2:]]
            pad = (0, margins[1], 0, margins[0])
            pixel_values, pixel_mask = F.pad(pixel_values, pad), F.pad(pixel_mask, pad)
        features = model.model(pixel_values, pixel_mask)
        states, head = features.last_hidden_state, model.mask_head
        skips = zip(head.stages, features.feature_maps[-2::-1], strict=True)
        shared = [head.blocks[0].convolve_shared(features.projected), *(s.convolve_skip(skip) for s, skip in skips)]
        return model.class_head(states), model.box_head(states), model.attend(features), *shared


class MaskGraph(nn.Module):
    """Attention maps (N, M, h, w) of some queries of an image, and its shared maps (1, C, h', w'), to masks."""

    def __init__(self, head: MaskHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, attention: Tensor, *shared: Tensor) -> Tensor:
        """Returns mask logits (N, H/4, W/4)."""
        head = self.head
        image_index = torch.zeros(1, dtype=torch.int64)  # of a single image, whose maps are broadcast
        x = head.blocks[1](head.blocks[0].add_own(attention, shared[0], image_index))
        for stage, skip in zip(head.stages, shared[1:], strict=True):
            # As a plain convolution: the transposed one of the head takes odd lengths through another branch.
            own = F.conv2d(F.interpolate(x, size=skip.shape[-2:]), stage.conv.weight, padding=1)
            x = stage.norm(own + skip).relu()
        return head.predictor(x)[:, 0]


def write_graphs(model: DetrPanopticForSegmentation, folder: Path) -> None:
    """Writes both graphs of a model in float32. It takes about half a minute.

    Raises:
        ValueError: the model cannot be traced for images of any size.
    """
    model = traceable_copy(model).float()
    images = torch.zeros(2, model.config.num_channels, *EXAMPLE_SIZE), torch.ones(2, *EXAMPLE_SIZE, dtype=torch.int64)
    batch = Dim("batch", min=1, max=MAX_BATCH)
    rows, columns = (Dim(name, min=MIN_SIDE, max=MAX_SIDE) for name in ("height", "width"))
    detect, segment = DetectionGraph(model), MaskGraph(model.mask_head)
    shapes: Any = {0: batch, 2: rows, 3: columns}, {0: batch, 1: rows, 2: columns}
    with torch.no_grad():
        _, _, attention, *shared = detect(*images)
        detection = _traced(detect, images, shapes)
        arguments = (attention[0], *(map_[:1] for map_ in shared))
        free: Any = {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}, tuple({2: Dim.AUTO, 3: Dim.AUTO} for _ in shared)
        masks = _traced(segment, arguments, free)
    files = graph_files(folder)
    write_program(detection, files[0], inputs=("pixel_values", "pixel_mask"), outputs=DETECTED)
    write_program(masks, files[1], inputs=("attention", *SHARED), outputs=("masks",))


def _traced(graph: nn.Module, arguments: tuple[Tensor, ...], shapes: Any) -> Any:
    """Traces a graph; ValueError if an operation depends on the size of the image."""
    try:
        return torch.export.export(
            graph, arguments, dynamic_shapes=shapes, prefer_deferred_runtime_asserts_over_guards=True
        )
    except Exception as error:  # the tracer has many
        raise ValueError(
            f'`runtime` must be "torch" for this model, as it cannot be traced: {first_line(error)}'
        ) from error
