"""What is exported: the model between pixels and predictions, as one module with plain tensors in and out.

It calls the model's own forward, with a fixed number of masks per image (`mask_queries`), so that every shape follows
from the input's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the field's name for it

from ..mask_head import select_rows
from .merging import MASK_STRIDE, merge_batch

if TYPE_CHECKING:
    from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
    from ..modeling_detr_panoptic import DetrPanopticForSegmentation

CANVAS_STEP = 32
"""Stride of the coarsest map. On a canvas of a multiple of it each map is exactly twice as large as the next, and one
graph serves all sizes; another length has a border of its own at every stage that its remainder decides."""
PREDICTIONS = ("logits", "pred_boxes", "pred_masks")
SEGMENTS = ("segmentation", "segment_label_ids", "segment_scores", "segment_areas")


@dataclass(frozen=True, kw_only=True)
class GraphOptions:
    """What the graph takes and returns.

    Args:
        mask_queries: masks per image, those of the most confident queries.
        uint8: takes pictures as they are decoded, (B, H, W, 3) uint8, in place of normalized `pixel_values`.
        with_merging: returns the merged map and its segments in place of logits, boxes and masks.
        any_size: pads the canvas to a multiple of 32 inside, so that one graph serves every size.
    """

    mask_queries: int
    uint8: bool = False
    with_merging: bool = False
    any_size: bool = False

    @property
    def input_names(self) -> tuple[str, str]:
        """Of the graph."""
        return "pixels" if self.uint8 else "pixel_values", "pixel_mask"

    @property
    def output_names(self) -> tuple[str, ...]:
        """Of the graph."""
        return SEGMENTS if self.with_merging else PREDICTIONS


class ExportGraph(nn.Module):
    """A model in evaluation mode as a function of tensors alone.

    Args:
        model: computes in its own type; what goes in and comes out is float32.
        processor: normalizes pixels if the graph does, and knows the threshold and the stuff if it merges.
        options: what the graph takes and returns.

    Raises:
        ValueError: the model has fewer queries than masks are asked for, or the processor merges in another way.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self, model: DetrPanopticForSegmentation, processor: DetrPanopticImageProcessor, options: GraphOptions
    ) -> None:
        super().__init__()
        num_queries = model.config.num_queries
        if not 1 <= options.mask_queries <= num_queries:
            raise ValueError(f"`mask_queries` must be a number from 1 to {num_queries}, got {options.mask_queries}.")
        if options.with_merging and processor.merging != "paper":
            raise ValueError(f'`merging` of the processor must be "paper" to be exported, got {processor.merging!r}.')
        self.model = model.eval()
        self.options = options
        self.merging: dict[str, Any] = {
            "threshold": processor.threshold,
            "stuff_label_ids": tuple(processor.stuff_label_ids),
        }
        shift, scale = _pixel_statistics(processor)
        self.register_buffer("shift", shift, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, pixels: Tensor, pixel_mask: Tensor) -> tuple[Tensor, ...]:
        """Segments a batch.

        Args:
            pixels: (B, 3, H, W) float32 normalized images; or, if so built, (B, H, W, 3) uint8.
            pixel_mask: (B, H, W) int64, 1 on the image, 0 on padding.

        Returns:
            `logits` (B, Q, K+1), `pred_boxes` (B, Q, 4) and `pred_masks` (B, Q, ceil(H/4), ceil(W/4)), as the model's
            own; or the four of `SegmentTables`, with N masks.
        """
        images = self._normalized(pixels, pixel_mask) if self.options.uint8 else pixels
        height, width = images.shape[-2:]
        if self.options.any_size:
            margins = (0, _missing(width), 0, _missing(height))
            images, pixel_mask = F.pad(images, margins), F.pad(pixel_mask, margins)
        output = self.model(images.to(self.model.dtype), pixel_mask, mask_queries=self.options.mask_queries)
        logits, boxes, masks = (getattr(output, name).float() for name in PREDICTIONS)
        if not self.options.with_merging:
            sides = ((length + MASK_STRIDE - 1) // MASK_STRIDE for length in (height, width))
            return logits, boxes, self._cropped(masks, *sides)
        count = self.options.mask_queries
        rows = select_rows(output.logits, count)
        logits, masks = (values.flatten(0, 1)[rows].unflatten(0, (-1, count)) for values in (logits, masks))
        segmentation, *tables = merge_batch(logits, masks, pixel_mask, **self.merging)
        return self._cropped(segmentation, height, width), *tables

    def _normalized(self, pixels: Tensor, pixel_mask: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 to (B, 3, H, W) float32, 0 on padding, as the image processor makes them."""
        values = (pixels.float() - self.shift) / self.scale
        return (values * pixel_mask[..., None]).permute(0, 3, 1, 2)

    def _cropped(self, maps: Tensor, height: int, width: int) -> Tensor:
        """The part of (..., H', W') that the canvas had before it was padded."""
        if not self.options.any_size:
            return maps
        # By index, not by slice: a slice's shape is compared with the whole's, and an export would keep the outcome.
        rows, columns = (torch.arange(length, device=maps.device) for length in (height, width))
        return maps.index_select(-2, rows).index_select(-1, columns)


def _missing(length: int) -> int:
    """Pixels from a length to the next multiple of `CANVAS_STEP`."""
    return (length + CANVAS_STEP - 1) // CANVAS_STEP * CANVAS_STEP - length


def _pixel_statistics(processor: DetrPanopticImageProcessor) -> tuple[Tensor, Tensor]:
    """What is taken from a pixel of 0 to 255, and what it is divided by: (3,) each."""
    whole = 1 / processor.rescale_factor if processor.do_rescale else 1.0
    if not processor.do_normalize:
        return torch.zeros(3), torch.full((3,), whole)
    return torch.tensor(processor.image_mean) * whole, torch.tensor(processor.image_std) * whole
