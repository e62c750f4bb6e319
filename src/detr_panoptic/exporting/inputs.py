"""Images as inputs of an exported graph."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from transformers.image_utils import SizeDict

from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
from ..inference.pictures import Pictures, open_pictures
from .graph import GraphOptions

CALIBRATION_IMAGES = 64


def fitted_to_canvas(processor: DetrPanopticImageProcessor, canvas: tuple[int, int]) -> DetrPanopticImageProcessor:
    """Returns a copy of an image processor that resizes every image to fit a (height, width) and pads it to that."""
    height, width = canvas
    fitted: Any = copy.deepcopy(processor)
    fitted.size = SizeDict(max_height=height, max_width=width)
    fitted.pad_size = SizeDict(height=height, width=width)
    return fitted


def graph_inputs(
    images: Sequence[Any], processor: DetrPanopticImageProcessor, options: GraphOptions
) -> dict[str, np.ndarray]:
    """Prepares images for an exported graph.

    Args:
        images: what the image processor takes.
        processor: the one that was written beside the graph.
        options: those of the graph.

    Returns:
        The graph's inputs by name.

    Examples:
        >>> from detr_panoptic import DetrPanopticImageProcessor
        >>> from detr_panoptic.checkpoints import BUNDLED
        >>> from detr_panoptic.exporting import GraphOptions
        >>> from detr_panoptic.scenes import make_scene
        >>> processor = DetrPanopticImageProcessor.from_pretrained(BUNDLED)
        >>> inputs = graph_inputs([make_scene(1)["image"]], processor, GraphOptions(uint8=True))
        >>> {name: values.shape for name, values in inputs.items()}
        {'pixels': (1, 320, 320, 3), 'pixel_mask': (1, 320, 320)}
    """
    unchanged: dict[str, Any] = {"do_rescale": False, "do_normalize": False} if options.uint8 else {}
    batch = processor(list(images), return_tensors="np", **unchanged)
    pixels = batch["pixel_values"].transpose(0, 2, 3, 1) if options.uint8 else batch["pixel_values"]
    return dict(zip(options.input_names, (pixels, batch["pixel_mask"]), strict=True))


def calibration_pictures(source: Any, options: GraphOptions) -> Pictures:
    """Opens the first 64 images of a source that `Predictor.predict` takes; ValueError if there are too few."""
    pictures = open_pictures(source, limit=CALIBRATION_IMAGES)
    count, size = len(pictures), options.batch_size
    if pictures.missing or count < size:
        missing = "; ".join(pictures.missing)
        raise ValueError(f"`calibration` must hold at least {size} images, got {count}. {missing}")
    return pictures


def calibration_batches(
    pictures: Pictures | Sequence[Any], processor: DetrPanopticImageProcessor, options: GraphOptions
) -> Iterator[dict[str, np.ndarray]]:
    """Prepares images; an incomplete batch is left out. ValueError if one cannot be read."""
    size = options.batch_size
    for start in range(0, len(pictures) - size + 1, size):
        yield graph_inputs([pictures[index]["image"] for index in range(start, start + size)], processor, options)
