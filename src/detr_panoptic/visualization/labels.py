"""Labels and legends of segments: texts, fonts, and the patches that are pasted into a picture."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..data.plain_text import one_line
from .colors import Color, class_colors

SUPERSAMPLING = 4  # Pillow draws rounded corners without anti-aliasing
MIN_FONT_SIZE = 10  # pixels
IMAGE_TO_FONT = 36  # shorter side of an image, in font sizes
INK = (16, 18, 22)
PAPER = (255, 255, 255)
SWATCH_EDGE = (150, 153, 158)  # COCO has white classes
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
    fonts = (_font(file, size) for file in (None, *FONT_FILES))
    own = cast(ImageFont.FreeTypeFont, _font(None, size))
    return next((font for font in fonts if font is not None and _has_letters(font, text)), own)


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
    """Draws a segment's label as an RGBA picture: letters of `size` pixels on a rounded patch of its color.

    Names longer than `max_width` pixels are cut, scores never.
    """
    name, score = readable_name(segment["label_id"], id2label, size), _score_text(segment)
    font = font_for(name + score, size)
    padding = round(size * 0.35)
    text = shorten(name, font, max_width - 2 * padding - font.getlength(score)) + score
    ascent, descent = font.getmetrics()
    width, height = round(font.getlength(text)) + 2 * padding, ascent + descent + padding // 2
    tag = _rounded((width, height), 0.28 * height, color, opacity=235)
    ImageDraw.Draw(tag).text((width / 2, height / 2), text, fill=(*ink_on(color), 255), font=font, anchor="mm")
    return tag


def add_legend(
    picture: Image.Image, segments: Iterable[Mapping[str, Any]], id2label: Mapping[int, str], *, size: float
) -> Image.Image:
    """Adds a list of the segments' classes under an RGB picture, in columns, in the order of their label ids."""
    names = {i: readable_name(i, id2label, size) for i in sorted({segment["label_id"] for segment in segments})}
    if not names:
        return picture
    fonts = {label_id: font_for(name, size) for label_id, name in names.items()}
    swatch, line, margin = round(size), round(1.7 * size), round(0.8 * size)
    room = picture.width - 3 * margin - swatch
    names = {label_id: shorten(name, fonts[label_id], room) for label_id, name in names.items()}
    column = swatch + 2 * margin + round(max(fonts[label_id].getlength(name) for label_id, name in names.items()))
    num_rows = -(-len(names) // max(1, (picture.width - margin) // column))
    sheet = Image.new("RGB", (picture.width, picture.height + num_rows * line + margin), PAPER)
    sheet.paste(picture)
    draw, colors = ImageDraw.Draw(sheet), class_colors(id2label)
    for place, (label_id, name) in enumerate(names.items()):
        left = margin + place // num_rows * column
        middle = picture.height + margin // 2 + place % num_rows * line + line // 2
        patch = _rounded((swatch, swatch), 0.25 * swatch, colors[label_id], edge=SWATCH_EDGE)
        sheet.paste(patch, (left, middle - swatch // 2), patch)
        draw.text((left + swatch + margin // 2, middle), name, fill=INK, font=fonts[label_id], anchor="lm")
    return sheet


def ink_on(color: Color) -> Color:
    """Returns the ink with the higher contrast on a color, by WCAG 2's relative luminance."""
    linear = (np.array(color) / 255) ** 2.2
    return INK if linear @ (0.2126, 0.7152, 0.0722) > EQUAL_CONTRAST_LUMINANCE else PAPER


def _rounded(
    size: tuple[int, int], radius: float, color: Color, *, edge: Color | None = None, opacity: int = 255
) -> Image.Image:
    """Draws a rounded rectangle of (width, height) as an RGBA picture."""
    large = Image.new("RGBA", (SUPERSAMPLING * size[0], SUPERSAMPLING * size[1]), (*(edge or color), 0))
    box = (0, 0, large.width - 1, large.height - 1)
    fill = (*color, opacity)
    ImageDraw.Draw(large).rounded_rectangle(box, SUPERSAMPLING * radius, fill, edge, SUPERSAMPLING if edge else 1)
    return large.reduce(SUPERSAMPLING)


def _score_text(segment: Mapping[str, Any]) -> str:
    score = segment.get("score")
    return "" if score is None else f" {score:.2f}"


@cache
def _font(file: str | None, size: float) -> ImageFont.FreeTypeFont | None:
    """Returns a font of the system, None if this machine does not have it; without a file, Pillow's own."""
    try:
        found = ImageFont.load_default(size=size) if file is None else ImageFont.truetype(file, size)
    except OSError:
        return None
    return cast(ImageFont.FreeTypeFont, found)


def _has_letters(font: ImageFont.FreeTypeFont, text: str) -> bool:
    """Returns whether a font draws no letter of a text like a letter that no font has."""
    missing = bytes(font.getmask(NO_CHARACTER))
    return all(letter.isspace() or bytes(font.getmask(letter)) != missing for letter in set(text))
