"""Pictures as inputs of an exported graph."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from transformers.image_utils import SizeDict

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
    from .graph import GraphOptions


def for_canvas(processor: DetrPanopticImageProcessor, canvas: tuple[int, int]) -> DetrPanopticImageProcessor:
    """A copy of the image processor that makes every image fit a (height, width), and pads it to that."""
    height, width = canvas
    fitted: Any = copy.deepcopy(processor)
    fitted.size = SizeDict(max_height=height, max_width=width)
    fitted.pad_size = SizeDict(height=height, width=width)
    return fitted


def graph_inputs(
    pictures: Sequence[Any], processor: DetrPanopticImageProcessor, options: GraphOptions
) -> dict[str, np.ndarray]:
    """Prepares pictures for a graph: its inputs by name.

    Args:
        pictures: what the processor takes.
        processor: the one that was written beside the graph.
        options: of the graph.
    """
    unchanged: dict[str, Any] = {"do_rescale": False, "do_normalize": False} if options.uint8 else {}
    batch = processor(list(pictures), return_tensors="np", **unchanged)
    pixels = batch["pixel_values"]
    if options.uint8:
        pixels = pixels.transpose(0, 2, 3, 1)
    return dict(zip(options.input_names, (pixels, batch["pixel_mask"]), strict=True))
