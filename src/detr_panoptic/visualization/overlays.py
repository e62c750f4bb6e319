"""Segmentations drawn over their photographs."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from .colors import color_of
from .placement import place_labels

VOID_ID = 0
SUPERSAMPLING = 4  # Pillow draws rounded corners without anti-aliasing
MIN_FONT_SIZE = 10  # pixels
IMAGE_TO_FONT = 36  # the shorter side of the image is this many font sizes
INK = (16, 18, 22)
PAPER = (255, 255, 255)
EQUAL_CONTRAST_LUMINANCE = 0.19  # white and dark ink read equally well on it
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
) -> Image.Image:
    """Draw segments over an image: a hue per class, a shade per instance, outlines and labels.

    Args:
        image: photograph; any mode.
        segmentation: (H, W) integers of the image's size, on the CPU; 0 is void.
        segments_info: one mapping per segment with `id`, `label_id` and, for the label, an optional `score`. Pixels of
            ids that are not listed stay as they are, like void: leave entries out to draw some segments only.
        id2label: name of each label id.
        alpha: opacity of the colors, 0 to 1.
        show_labels: write each segment's name and score where there is room.

    Returns:
        A new RGB image of the same size.
    """
    segment_map = np.asarray(segmentation)
    if segment_map.shape != (image.height, image.width):
        raise ValueError(
            f"`segmentation` must have the image's size {(image.height, image.width)}, got {segment_map.shape}."
        )
    if not 0 <= alpha <= 1:
        raise ValueError(f"`alpha` must be from 0 to 1, got {alpha}.")
    segments = [segment for segment in segments_info if segment["id"] != VOID_ID]
    colors = _segment_colors(segments)
    picture = _paint(np.asarray(image.convert("RGB")), segment_map, segments, colors, alpha=alpha)
    if show_labels:
        _write_labels(picture, segment_map, segments, colors, id2label)
    return picture


def draw_side_by_side(
    image: Image.Image,
    truth: Mapping[str, Any],
    prediction: Mapping[str, Any],
    id2label: Mapping[int, str],
    *,
    captions: tuple[str, str, str] = ("image", "annotation", "prediction"),
    alpha: float = 0.55,
    show_labels: bool = True,
) -> Image.Image:
    """Put an image, its annotation and a prediction beside each other, each under its caption.

    Args:
        image: photograph; any mode.
        truth: `segmentation` and `segments_info`, as `draw_segments` takes them.
        prediction: the same of the model's result.
        id2label: name of each label id.
        captions: texts above the three pictures.
        alpha: opacity of the colors, 0 to 1.
        show_labels: write each segment's name and score where there is room.

    Returns:
        An RGB image on white.
    """
    pictures = [image.convert("RGB")] + [
        draw_segments(
            image, result["segmentation"], result["segments_info"], id2label, alpha=alpha, show_labels=show_labels
        )
        for result in (truth, prediction)
    ]
    font = _font_for(image.size, scale=1.3)
    gap, header = round(font.size * 0.6), round(font.size * 1.9)
    sheet = Image.new("RGB", (3 * image.width + 2 * gap, header + image.height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left = column * (image.width + gap)
        sheet.paste(picture, (left, header))
        draw.text((left + image.width / 2, header / 2), caption, fill=INK, font=font, anchor="mm")
    return sheet


def label_text(segment: Mapping[str, Any], id2label: Mapping[int, str]) -> str:
    """Name and score of a segment, `boat 0.97`; without the bookkeeping in COCO's `sky-other-merged`."""
    name = id2label[segment["label_id"]]
    for suffix in ("-merged", "-other", "-stuff"):
        name = name.removesuffix(suffix)
    score = segment.get("score")
    return name if score is None else f"{name} {score:.2f}"


def _segment_colors(segments: Sequence[Mapping[str, Any]]) -> list[tuple[int, int, int]]:
    """One color per segment; segments of a class are numbered in the order given."""
    seen: defaultdict[int, int] = defaultdict(int)
    colors = []
    for segment in segments:
        label_id = int(segment["label_id"])
        colors.append(color_of(label_id, seen[label_id]))
        seen[label_id] += 1
    return colors


def _paint(
    pixels: np.ndarray,
    segment_map: np.ndarray,
    segments: Sequence[Mapping[str, Any]],
    colors: Sequence[tuple[int, int, int]],
    *,
    alpha: float,
) -> Image.Image:
    """Tint the segments of an (H, W, 3) uint8 photograph and draw their outlines; void keeps its values."""
    index_map = _index_map(segment_map, [segment["id"] for segment in segments])
    drawn = index_map > 0
    palette = np.array([(0, 0, 0), *colors], dtype=np.float32)
    painted = pixels.copy()
    tinted = (1 - alpha) * painted[drawn].astype(np.float32) + alpha * palette[index_map[drawn]]
    painted[drawn] = np.rint(tinted).astype(np.uint8)
    line = drawn & _outlines(index_map)
    outlined = (1 - OUTLINE_ALPHA) * painted[line].astype(np.float32) + OUTLINE_ALPHA * np.array(OUTLINE)
    painted[line] = np.rint(outlined).astype(np.uint8)
    return Image.fromarray(painted)


def _index_map(segment_map: np.ndarray, segment_ids: Sequence[int]) -> np.ndarray:
    """(H, W) place of each pixel's segment in the list, from 1; 0 where it is not listed."""
    if not segment_ids:
        return np.zeros(segment_map.shape, dtype=np.int16)
    ids = np.array(segment_ids)
    order = ids.argsort()
    place = np.searchsorted(ids[order], segment_map).clip(max=len(ids) - 1)
    return np.where(ids[order][place] == segment_map, order[place] + 1, 0).astype(np.int16)


def _outlines(index_map: np.ndarray) -> np.ndarray:
    """(H, W) bool, pixels whose neighborhood holds a second segment; the line grows with the image."""
    reach = max(2, round(min(index_map.shape) / 400))
    return ndimage.maximum_filter(index_map, reach) != ndimage.minimum_filter(index_map, reach)


def _write_labels(
    picture: Image.Image,
    segment_map: np.ndarray,
    segments: Sequence[Mapping[str, Any]],
    colors: Sequence[tuple[int, int, int]],
    id2label: Mapping[int, str],
) -> None:
    """Paste each segment's label onto the picture, in place."""
    font = _font_for(picture.size)
    tags = [_tag(label_text(segment, id2label), color, font) for segment, color in zip(segments, colors, strict=True)]
    boxes = place_labels(segment_map, [segment["id"] for segment in segments], [tag.size for tag in tags])
    for tag, box in zip(tags, boxes, strict=True):
        if box is not None:
            picture.paste(tag, box[:2], tag)


def _tag(text: str, color: tuple[int, int, int], font: ImageFont.FreeTypeFont) -> Image.Image:
    """An RGBA label: letters on a rounded patch of the segment's color, dark or white, whichever reads better."""
    ascent, descent = font.getmetrics()
    padding = round(font.size * 0.35)
    width, height = round(font.getlength(text)) + 2 * padding, ascent + descent + padding // 2
    large = Image.new("RGBA", (SUPERSAMPLING * width, SUPERSAMPLING * height), (*color, 0))
    radius = SUPERSAMPLING * height * 0.28
    ImageDraw.Draw(large).rounded_rectangle((0, 0, large.width - 1, large.height - 1), radius, fill=(*color, 235))
    tag = large.reduce(SUPERSAMPLING)
    ImageDraw.Draw(tag).text((width / 2, height / 2), text, fill=(*_ink_on(color), 255), font=font, anchor="mm")
    return tag


def _ink_on(color: tuple[int, int, int]) -> tuple[int, int, int]:
    """The one of two inks with the higher contrast on a color, by WCAG 2's relative luminance."""
    linear = (np.array(color) / 255) ** 2.2
    return INK if linear @ (0.2126, 0.7152, 0.0722) > EQUAL_CONTRAST_LUMINANCE else PAPER


def _font_for(size: tuple[int, int], scale: float = 1.0) -> ImageFont.FreeTypeFont:
    """Pillow's own font, in a size that suits an image of (width, height)."""
    font = ImageFont.load_default(size=max(MIN_FONT_SIZE, scale * min(size) / IMAGE_TO_FONT))
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Labels need a Pillow that was built with FreeType, as all its wheels are.")
    return font
