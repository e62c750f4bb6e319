"""Images as inputs of an exported graph."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.image_utils import SizeDict

from ..data import read_images
from ..image_reading import plain_picture, read_picture
from ..scenes import scenes_dataset

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from PIL import Image

    from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
    from .graph import GraphOptions

SCENES = "scenes"
CALIBRATION_SEED = 78_000_000  # not a seed of the training or evaluation scenes
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

    Example:
        ```python
        processor = DetrPanopticImageProcessor.from_pretrained("exported")
        inputs = graph_inputs([image], processor, exported.options)
        logits, boxes, masks = onnxruntime.InferenceSession("exported/model.onnx").run(None, inputs)
        ```
    """
    unchanged: dict[str, Any] = {"do_rescale": False, "do_normalize": False} if options.uint8 else {}
    batch = processor(list(images), return_tensors="np", **unchanged)
    pixels = batch["pixel_values"]
    if options.uint8:
        pixels = pixels.transpose(0, 2, 3, 1)
    return dict(zip(options.input_names, (pixels, batch["pixel_mask"]), strict=True))


def calibration_batches(
    source: Any, processor: DetrPanopticImageProcessor, options: GraphOptions
) -> Iterator[dict[str, np.ndarray]]:
    """Prepares the images that calibrate a static quantization.

    Args:
        source: "scenes", a folder of images, a dataset that `read_images` takes, or a list of images, files and
            folders. The first 64 images are used.
        processor: the one of the graph.
        options: those of the graph.

    Raises:
        ValueError: an image cannot be read, or there are none.
    """
    images = list(calibration_images(source))
    size = options.batch_size
    if len(images) < size:
        raise ValueError(f"`calibration` must hold at least {size} images, one batch, got {len(images)}.")
    for start in range(0, len(images) - size + 1, size):
        yield graph_inputs(images[start : start + size], processor, options)


def calibration_images(source: Any) -> Iterator[Image.Image]:
    """Yields the first 64 images of a source as `calibration_batches` takes it: upright and RGB."""
    parts = [source] if isinstance(source, (str, Path)) else list(source)
    remaining = CALIBRATION_IMAGES
    for part in parts:
        for image in _images_of(part, remaining):
            remaining -= 1
            yield plain_picture(image)
        if remaining <= 0:
            return


def _images_of(part: Any, limit: int) -> Iterator[Image.Image]:
    if not isinstance(part, (str, Path)):
        yield part
    elif part == SCENES:
        yield from scenes_dataset(limit, seed=CALIBRATION_SEED)["image"]
    elif Path(part).is_file():
        yield read_picture(part)
    else:
        yield from (record["image"] for record in read_images(part, limit=limit))
