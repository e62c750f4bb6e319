"""A model's graphs in another runtime than PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  the field's name for it

from ..backbone import image_sizes_of
from ..mask_head import MASK_STRIDE, SKIPPED_MASK_LOGIT, select_rows
from ..modeling_detr_panoptic import DetrPanopticForSegmentation, DetrPanopticSegmentationOutput
from .graphs import EXAMPLE_SIZE, MIN_SIDE, SHARED

Session = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
ROWS_AT_ONCE = 8  # queries whose masks are computed together: the time per mask is the same from 1 to 20
DIFFERENCES = {"float32": 1e-3, "bfloat16": 0.5, "float16": 0.1, "int8": float("inf")}
"""Largest `GraphRuntime.difference`. With int8 only numbers that are not finite are refused."""


class GraphRuntime:
    """Runs the graphs of a model, as `write_graphs` makes them.

    Args:
        model: the model in float32 on CPU. It runs images whose sides are shorter than the graphs accept.
        sessions: the graph from images to classes, boxes and what masks need, and the graph from those to masks.
        runtime: its name.
        precision: such as "float32".
    """

    def __init__(
        self, model: DetrPanopticForSegmentation, sessions: Sequence[Session], runtime: str, precision: str
    ) -> None:
        self.model, self.runtime, self.precision = model, runtime, precision
        self.detect, self._segment = sessions

    @torch.no_grad()
    def __call__(
        self, pixel_values: Tensor, pixel_mask: Tensor | None = None, *, mask_queries: str | int | None = None
    ) -> Any:
        """Returns what the model does for these arguments, without hidden states."""
        pixels, mask = pixel_values, pixel_mask
        if min(pixels.shape[-2:]) < MIN_SIDE:
            return self.model(pixels, mask, mask_queries=mask_queries)
        found = self.detect(self.detection_inputs({"pixel_values": pixels, "pixel_mask": mask}))
        logits, boxes = (torch.from_numpy(found[name]) for name in ("logits", "pred_boxes"))
        rows = select_rows(logits, self.model.config.mask_queries if mask_queries is None else mask_queries)
        height, width = (-(-length // MASK_STRIDE) for length in pixels.shape[-2:])
        masks = torch.full((*logits.shape[:2], height, width), SKIPPED_MASK_LOGIT)
        for image, queries, arrays in self.mask_inputs(found, rows):
            (made,) = self._segment(arrays).values()
            masks[image, queries] = torch.from_numpy(made)[:, :height, :width]
        return DetrPanopticSegmentationOutput(
            logits=logits,
            pred_boxes=boxes,
            pred_masks=masks,
            image_sizes=image_sizes_of(pixels, mask),
            canvas_sizes=image_sizes_of(pixels, None),
        )

    @staticmethod
    def detection_inputs(inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Returns a batch as the first graph takes it."""
        pixels, mask = inputs["pixel_values"].float(), inputs.get("pixel_mask")
        mask = torch.ones_like(pixels[:, 0]) if mask is None else mask
        return {"pixel_values": pixels.numpy(), "pixel_mask": mask.long().numpy()}

    @staticmethod
    def mask_inputs(
        found: Mapping[str, np.ndarray], rows: Tensor
    ) -> Iterator[tuple[int, Tensor, dict[str, np.ndarray]]]:
        """Yields (image, queries, inputs of the second graph) for rows (N,) of the B*Q queries, a few at a time."""
        attention = found["attention"]
        for image in range(len(attention)):
            queries = rows[rows // attention.shape[1] == image] % attention.shape[1]
            shared = {name: found[name][image : image + 1] for name in SHARED}
            for some in queries.split(ROWS_AT_ONCE) if len(queries) else ():
                yield image, some, {"attention": attention[image][some.numpy()], **shared}

    @torch.no_grad()
    def difference(self) -> float:
        """Returns how much logits and masks differ from the model's for one small image, in their standard deviations.

        Means over all elements; the larger of the two.
        """
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(1, self.model.config.num_channels, 5, 7, generator=generator)
        inputs = {"pixel_values": F.interpolate(noise, size=EXAMPLE_SIZE, mode="bilinear")}
        expected, actual = self.model(**inputs, mask_queries="all"), self(**inputs, mask_queries="all")
        pairs = ((expected[name], actual[name]) for name in ("logits", "pred_masks"))
        return max(((one - other).abs().mean() / one.std()).item() for one, other in pairs)
