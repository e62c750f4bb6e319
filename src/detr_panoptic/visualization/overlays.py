"""Segmentations drawn over their images."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image
from scipy import ndimage

from ..segment_ids import VOID_ID
from .colors import Color, segment_colors
from .labels import add_legend, draw_tag, font_size_for
from .placement import place_labels
from .sheets import stack

LONGEST_LABEL = 0.3  # of the picture's width
OUTLINE = (255, 255, 255)
OUTLINE_ALPHA = 0.85


def draw_segments(
    image: Image.Image,
    segmentation: ArrayLike,
    segments_info: Sequence[Mapping[str, Any]],
    id2label: Mapping[int, str],
    *,
    alpha: float = 0.55,
    show_labels: bool = True,
    show_legend: bool = False,
) -> Image.Image:
    """Draws segments over an image: a color per class, a shade of it per instance, outlines and labels.

    Args:
        image: Photograph, in any mode.
        segmentation: (H, W) integers of the image's size, on the CPU; 0 is void.
        segments_info: One mapping per segment with `id`, `label_id` and an optional `score`. Pixels of ids that are
            not listed are left as they are, like void: leave entries out to draw only some segments.
        id2label: Name of each label id. Pass all classes of the model: they decide on the colors.
        alpha: Opacity of the colors, from 0 to 1.
        show_labels: Writes the name and score of each segment where there is room.
        show_legend: Adds a list of the classes under the picture.

    Returns:
        A new RGB image of the same size; with a legend it is higher.

    Raises:
        ValueError: If `segmentation` has another size, `alpha` is not from 0 to 1, or a label has no name.

    Examples:
        >>> import numpy as np
        >>> from PIL import Image
        >>> segments = [{"id": 1, "label_id": 0, "score": 0.9}]
        >>> draw_segments(Image.new("RGB", (60, 40)), np.ones((40, 60), dtype=int), segments, {0: "boat"}).size
        (60, 40)
    """
    segment_map = np.asarray(segmentation)
    if segment_map.shape != (image.height, image.width):
        raise ValueError(
            f"`segmentation` must have the image's size {(image.height, image.width)}, got {segment_map.shape}."
        )
    if not 0 <= alpha <= 1:
        raise ValueError(f"`alpha` must be from 0 to 1, got {alpha}.")
    segments = [segment for segment in segments_info if segment["id"] != VOID_ID]
    unknown = sorted({segment["label_id"] for segment in segments} - set(id2label))
    if unknown:
        raise ValueError(f"`id2label` must name every label of `segments_info`, got no name of {unknown}.")
    colors = segment_colors(segments, id2label)
    indices = index_map(segment_map, [segment["id"] for segment in segments])
    picture = _paint(np.array(image.convert("RGB")), indices, colors, alpha=alpha)
    if show_labels:
        style = {"size": font_size_for(picture.size), "max_width": picture.width * LONGEST_LABEL}
        tags = [draw_tag(segment, id2label, color, **style) for segment, color in zip(segments, colors, strict=True)]
        boxes = place_labels(indices, range(1, len(tags) + 1), [tag.size for tag in tags])
        for tag, box in zip(tags, boxes, strict=True):
            if box is not None:
                picture.paste(tag, box[:2], tag)
    return add_legend(picture, segments, id2label, size=font_size_for(image.size)) if show_legend else picture


def draw_side_by_side(
    image: Image.Image,
    truth: Mapping[str, Any],
    prediction: Mapping[str, Any],
    id2label: Mapping[int, str],
) -> Image.Image:
    """Draws an image, its annotation and a prediction beside each other, each under its caption.

    Args:
        image: Photograph, in any mode.
        truth: `segmentation` and `segments_info`, as `draw_segments` takes them.
        prediction: The same of the model's result.
        id2label: Name of each label id.

    Returns:
        An RGB image on white.

    Raises:
        ValueError: As `draw_segments`.

    Examples:
        >>> import numpy as np
        >>> from PIL import Image
        >>> nothing = {"segmentation": np.zeros((40, 60), dtype=int), "segments_info": []}
        >>> draw_side_by_side(Image.new("RGB", (60, 40)), nothing, nothing, {0: "boat"}).width
        196
    """
    sides = (truth, prediction)
    drawn = [draw_segments(image, side["segmentation"], side["segments_info"], id2label) for side in sides]
    captions = ("image", "annotation", "prediction")
    return stack([image, *drawn], columns=3, captions=captions, gap=round(0.8 * font_size_for(image.size)))


def _paint(painted: np.ndarray, indices: np.ndarray, colors: Sequence[Color], *, alpha: float) -> Image.Image:
    """Tints the segments of (H, W, 3) pixels, in place, and draws their outlines; index 0 is left as it is."""
    drawn = indices > 0
    palette = np.array([(0, 0, 0), *colors], dtype=np.float32)
    painted[drawn] = _mixed(painted[drawn], palette[indices[drawn]], alpha)
    line = drawn & outlines(indices, reach=max(2, round(min(indices.shape) / 400)))
    painted[line] = _mixed(painted[line], np.array(OUTLINE), OUTLINE_ALPHA)
    return Image.fromarray(painted)


def _mixed(pixels: np.ndarray, colors: np.ndarray, alpha: float) -> np.ndarray:
    return np.rint((1 - alpha) * pixels.astype(np.float32) + alpha * colors).astype(np.uint8)


def index_map(segment_map: np.ndarray, segment_ids: Sequence[int]) -> np.ndarray:
    """Returns (H, W), the position of each pixel's segment in the list, from 1; 0 if it is not listed."""
    if not segment_ids:
        return np.zeros(segment_map.shape, dtype=np.int16)
    ids = np.array(segment_ids)
    order = ids.argsort()
    place = np.searchsorted(ids[order], segment_map).clip(max=len(ids) - 1)
    return np.where(ids[order][place] == segment_map, order[place] + 1, 0).astype(np.int16)


def outlines(indices: np.ndarray, *, reach: int) -> np.ndarray:
    """Returns (H, W) bool: pixels with another segment within `reach` pixels, which are lines of that width."""
    return ndimage.maximum_filter(indices, reach) != ndimage.minimum_filter(indices, reach)
