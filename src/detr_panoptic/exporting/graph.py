"""The exported graph: pixels in, predictions out, plain tensors only.

`ExportGraph` calls the model's own `forward` with a fixed number of masks per image (`mask_queries`), so that every
shape follows from the shape of the input.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.layers import RotaryEmbeddingDinoV3
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the field's name for it

from ..data.reading import check_least
from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
from ..mask_head import select_rows
from ..modeling_detr_panoptic import DetrPanopticForSegmentation
from .merging import MASK_STRIDE, merge_batch

CANVAS_STEP = 32
"""Stride of the coarsest map. On a canvas whose sides are multiples of it, each map is exactly twice as large as the
next one, so one graph serves all sizes. Other lengths have borders that depend on the remainder at every stage."""
DEFAULT_MASK_QUERIES = 20
PREDICTIONS = ("logits", "pred_boxes", "pred_masks")
SEGMENTS = ("segmentation", "segment_label_ids", "segment_scores", "segment_areas")


@dataclass(frozen=True, kw_only=True)
class GraphOptions:
    """Inputs and outputs of an exported graph; `export` describes the fields and their errors."""

    size: tuple[int, int] | None = None  # None before `resolved`, or with `dynamic`
    dynamic: bool = False
    batch_size: int = 1
    half: bool = False
    mask_queries: int | None = None
    uint8: bool = False
    with_merging: bool = False

    def __post_init__(self) -> None:
        """Checks what can be checked without a model."""
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"`size` must be two positive numbers of pixels, got {self.size}.")
        check_least("batch_size", self.batch_size, 1)
        check_least("mask_queries", self.mask_queries, 1)
        if self.dynamic and (self.size is not None or self.batch_size != 1):
            raise ValueError("`dynamic` accepts every size and batch size: leave out `size` and `batch_size`.")

    @property
    def input_names(self) -> tuple[str, str]:
        """Names of the graph's inputs."""
        return "pixels" if self.uint8 else "pixel_values", "pixel_mask"

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the graph's outputs."""
        return SEGMENTS if self.with_merging else PREDICTIONS

    def resolved(self, model: DetrPanopticForSegmentation, processor: DetrPanopticImageProcessor) -> "GraphOptions":
        """Fills in what is None from a model and its image processor; ValueError if an option does not fit them."""
        num_queries = model.config.num_queries
        count = min(DEFAULT_MASK_QUERIES, num_queries) if self.mask_queries is None else self.mask_queries
        if not 1 <= count <= num_queries:
            raise ValueError(f"`mask_queries` must be a number from 1 to {num_queries}, got {count}.")
        if self.dynamic and isinstance(getattr(model.model.backbone.body, "rope", None), RotaryEmbeddingDinoV3):
            raise ValueError(f"`dynamic` needs traceable positions, got {model.config.backbone!r}: pass `size`.")
        if self.with_merging and processor.merging != "paper":
            raise ValueError(f'`with_merging` needs `merging="paper"` in the processor, got {processor.merging!r}.')
        size = _square_size(processor) if self.size is None and not self.dynamic else self.size
        return replace(self, size=size, mask_queries=count)


class ExportGraph(nn.Module):
    """A model in evaluation mode as a function of tensors.

    Args:
        model: computes in its own dtype. Inputs and outputs are float32.
        processor: has the pixel statistics, the threshold and the stuff labels.
        options: inputs and outputs, resolved.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self, model: DetrPanopticForSegmentation, processor: DetrPanopticImageProcessor, options: GraphOptions
    ) -> None:
        super().__init__()
        self.model = model.eval()
        self.options = options.resolved(model, processor)
        self.mask_queries = int(self.options.mask_queries or 0)
        self.threshold, self.stuff_label_ids = processor.threshold, tuple(processor.stuff_label_ids)
        shift, scale = _pixel_statistics(processor)
        self.register_buffer("shift", shift, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, pixels: Tensor, pixel_mask: Tensor) -> tuple[Tensor, ...]:
        """Segments a batch.

        Args:
            pixels: (B, 3, H, W) float32 normalized images, or with `uint8` (B, H, W, 3) uint8.
            pixel_mask: (B, H, W) int64, 1 on the image, 0 on padding.

        Returns:
            `logits` (B, Q, K+1), `pred_boxes` (B, Q, 4) and `pred_masks` (B, Q, ceil(H/4), ceil(W/4)) as the model
            returns them. With `with_merging` the four tensors of `SegmentTables` for N masks.
        """
        images = self._normalized(pixels, pixel_mask) if self.options.uint8 else pixels
        height, width = images.shape[-2:]
        if self.options.dynamic:
            margins = (0, missing_pixels(width), 0, missing_pixels(height))
            images, pixel_mask = F.pad(images, margins), F.pad(pixel_mask, margins)
        output = self.model(images.to(self.model.dtype), pixel_mask, mask_queries=self.mask_queries)
        logits, boxes, masks = (getattr(output, name).float() for name in PREDICTIONS)
        if not self.options.with_merging:
            sides = ((length + MASK_STRIDE - 1) // MASK_STRIDE for length in (height, width))
            return logits, boxes, self._cropped(masks, *sides)
        rows = select_rows(output.logits, self.mask_queries)
        logits, masks = (
            values.flatten(0, 1)[rows].unflatten(0, (-1, self.mask_queries)) for values in (logits, masks)
        )
        segmentation, *tables = merge_batch(
            logits, masks, pixel_mask, threshold=self.threshold, stuff_label_ids=self.stuff_label_ids
        )
        return self._cropped(segmentation, height, width), *tables

    def _normalized(self, pixels: Tensor, pixel_mask: Tensor) -> Tensor:
        """Converts (B, H, W, 3) uint8 to (B, 3, H, W) float32, 0 on padding, as the image processor does."""
        return ((pixels.float() - self.shift) / self.scale * pixel_mask[..., None]).permute(0, 3, 1, 2)

    def _cropped(self, maps: Tensor, height: int, width: int) -> Tensor:
        """Removes the padding of a dynamic graph from (..., H', W')."""
        if not self.options.dynamic:
            return maps
        # By index: torch.export would compare the shape of a slice with the whole and keep the outcome.
        rows, columns = (torch.arange(length, device=maps.device) for length in (height, width))
        return maps.index_select(-2, rows).index_select(-1, columns)


def missing_pixels(length: int) -> int:
    """Returns the pixels from a length to the next multiple of `CANVAS_STEP`."""
    return (length + CANVAS_STEP - 1) // CANVAS_STEP * CANVAS_STEP - length


def parse_size(text: str) -> tuple[int, int]:
    """Reads height and width from a text such as "800x1066"."""
    height, times, width = text.partition("x")
    if not (times and height.isdecimal() and width.isdecimal()):
        raise ValueError(f"`size` must read HEIGHTxWIDTH, as in 800x1066, got {text!r}.")
    return int(height), int(width)


def _square_size(processor: DetrPanopticImageProcessor) -> tuple[int, int]:
    """Returns the one size that an image processor makes; ValueError if it makes images of many sizes."""
    size: Any = processor.size
    if size.height and size.height == size.width:
        return size.height, size.width
    if size.shortest_edge is None or size.longest_edge != size.shortest_edge:
        raise ValueError(f"`size` or `dynamic` must be given: the image processor makes many sizes, {dict(size)}.")
    return size.shortest_edge, size.shortest_edge


def _pixel_statistics(processor: DetrPanopticImageProcessor) -> tuple[Tensor, Tensor]:
    """Returns what is subtracted from a pixel of 0 to 255, and the divisor: (3,) each."""
    whole = 1 / processor.rescale_factor if processor.do_rescale else 1.0
    if not processor.do_normalize:
        return torch.zeros(3), torch.full((3,), whole)
    return torch.tensor(processor.image_mean) * whole, torch.tensor(processor.image_std) * whole
