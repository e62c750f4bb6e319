"""Labels of segments: text, font, and the patch that is pasted into a picture."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..data.plain_text import one_line
from .colors import Color

SUPERSAMPLING = 4  # Pillow draws rounded corners without anti-aliasing
MIN_FONT_SIZE = 10  # pixels
IMAGE_TO_FONT = 36  # shorter side of an image, in font sizes
INK = (16, 18, 22)
PAPER = (255, 255, 255)
EQUAL_CONTRAST_LUMINANCE = 0.19  # white and dark ink are equally readable on it
NO_CHARACTER = "\U0010ffff"  # fonts draw it like every letter that they lack
ELLIPSIS = "…"
# System fonts, under names that Pillow finds, for letters that Pillow's own font lacks (it has ASCII only).
FONT_FILES = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "NotoSansCJK-Regular.ttc"),
    *("wqy-microhei.ttc", "unifont.ttf", "Arial Unicode.ttf", "Hiragino Sans GB.ttc"),
    *("arial.ttf", "msyh.ttc", "YuGothM.ttc", "malgun.ttf", "Nirmala.ttf"),
)


def class_name(label_id: int, id2label: Mapping[int, str]) -> str:
    """Returns the name of a class on one line, without the suffixes of COCO's `sky-other-merged`."""
    name = one_line(id2label[label_id])
    for suffix in ("-merged", "-other", "-stuff"):
        name = name.removesuffix(suffix)
    return name


def label_text(segment: Mapping[str, Any], id2label: Mapping[int, str]) -> str:
    """Returns name and score of a segment, such as `boat 0.97`."""
    return class_name(segment["label_id"], id2label) + _score_text(segment)


def font_size_for(size: tuple[int, int]) -> float:
    """Returns the size of letters, in pixels, for an image of (width, height)."""
    return max(MIN_FONT_SIZE, min(size) / IMAGE_TO_FONT)


def font_for(text: str, size: float) -> ImageFont.FreeTypeFont:
    """Returns a font with all letters of a text, Pillow's own or one of the system's; Pillow's own if none has."""
    return next((font for font in _fonts(size) if _has_letters(font, text)), next(_fonts(size)))


def readable_name(label_id: int, id2label: Mapping[int, str], size: float) -> str:
    """Returns the name of a class, or its number if no font of this machine has the letters."""
    name = class_name(label_id, id2label)
    return name if _has_letters(font_for(name, size), name) else f"class {label_id}"


def shorten(text: str, font: ImageFont.FreeTypeFont, max_width: float) -> str:
    """Cuts a text to `max_width` pixels; at least one letter remains."""
    if font.getlength(text) <= max_width:
        return text
    lengths = range(len(text) - 1, 1, -1)
    cuts = (text[:length].rstrip() + ELLIPSIS for length in lengths)
    return next((cut for cut in cuts if font.getlength(cut) <= max_width), text[:1] + ELLIPSIS)


def draw_tag(
    segment: Mapping[str, Any], id2label: Mapping[int, str], color: Color, *, size: float, max_width: float
) -> Image.Image:
    """Draws a segment's label as an RGBA picture: letters on a rounded patch of its color.

    Args:
        segment: `label_id` and an optional `score`.
        id2label: Name of each label id.
        color: Of the patch; letters are dark or white, whichever is more readable.
        size: Of the letters in pixels.
        max_width: In pixels; longer names are cut, scores never.
    """
    name, score = readable_name(segment["label_id"], id2label, size), _score_text(segment)
    font = font_for(name + score, size)
    padding = round(size * 0.35)
    text = shorten(name, font, max_width - 2 * padding - font.getlength(score)) + score
    ascent, descent = font.getmetrics()
    width, height = round(font.getlength(text)) + 2 * padding, ascent + descent + padding // 2
    large = Image.new("RGBA", (SUPERSAMPLING * width, SUPERSAMPLING * height), (*color, 0))
    radius = SUPERSAMPLING * height * 0.28
    ImageDraw.Draw(large).rounded_rectangle((0, 0, large.width - 1, large.height - 1), radius, fill=(*color, 235))
    tag = large.reduce(SUPERSAMPLING)
    ImageDraw.Draw(tag).text((width / 2, height / 2), text, fill=(*ink_on(color), 255), font=font, anchor="mm")
    return tag


def ink_on(color: Color) -> Color:
    """Returns the ink with the higher contrast on a color, by WCAG 2's relative luminance."""
    linear = (np.array(color) / 255) ** 2.2
    return INK if linear @ (0.2126, 0.7152, 0.0722) > EQUAL_CONTRAST_LUMINANCE else PAPER


def _score_text(segment: Mapping[str, Any]) -> str:
    score = segment.get("score")
    return "" if score is None else f" {score:.2f}"


def _fonts(size: float) -> Iterator[ImageFont.FreeTypeFont]:
    """Yields Pillow's own font, then those of the system."""
    yield _own_font(size)
    for file in _found_fonts():
        yield _font(file, size)


@cache
def _own_font(size: float) -> ImageFont.FreeTypeFont:
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size=size))


@cache
def _found_fonts() -> tuple[str, ...]:
    """Returns those of `FONT_FILES` that this machine has."""
    return tuple(file for file in FONT_FILES if _is_font(file))


def _is_font(file: str) -> bool:
    try:
        ImageFont.truetype(file, MIN_FONT_SIZE)
    except OSError:
        return False
    return True


@cache
def _font(file: str, size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)


def _has_letters(font: ImageFont.FreeTypeFont, text: str) -> bool:
    """Returns whether a font draws no letter of a text like a letter that no font has."""
    missing = bytes(font.getmask(NO_CHARACTER))
    return all(letter.isspace() or bytes(font.getmask(letter)) != missing for letter in set(text))
