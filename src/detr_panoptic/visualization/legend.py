"""Legends: the color of each class."""

from collections.abc import Iterable, Mapping
from typing import Any

from PIL import Image, ImageDraw

from .colors import class_colors
from .labels import INK, PAPER, SUPERSAMPLING, font_for, readable_name, shorten

SWATCH_EDGE = (150, 153, 158)  # COCO has white classes


def add_legend(
    picture: Image.Image, segments: Iterable[Mapping[str, Any]], id2label: Mapping[int, str], *, size: float
) -> Image.Image:
    """Adds a list of the classes of the segments under a picture, in columns, in the order of their label ids.

    Args:
        picture: RGB.
        segments: `label_id` of each.
        id2label: Name of each label id.
        size: Of the letters in pixels.
    """
    label_ids = sorted({segment["label_id"] for segment in segments})
    if not label_ids:
        return picture
    names = {label_id: readable_name(label_id, id2label, size) for label_id in label_ids}
    fonts = {label_id: font_for(name, size) for label_id, name in names.items()}
    swatch, line, margin = round(size), round(1.7 * size), round(0.8 * size)
    room = picture.width - 3 * margin - swatch
    names = {label_id: shorten(name, fonts[label_id], room) for label_id, name in names.items()}
    column = swatch + 2 * margin + round(max(fonts[label_id].getlength(name) for label_id, name in names.items()))
    num_columns = max(1, (picture.width - margin) // column)
    num_rows = -(-len(names) // num_columns)
    sheet = Image.new("RGB", (picture.width, picture.height + num_rows * line + margin), PAPER)
    sheet.paste(picture)
    draw, colors = ImageDraw.Draw(sheet), class_colors(id2label)
    for place, (label_id, name) in enumerate(names.items()):
        left = margin + place // num_rows * column
        middle = picture.height + margin // 2 + place % num_rows * line + line // 2
        patch = _swatch(colors[label_id], swatch)
        sheet.paste(patch, (left, middle - swatch // 2), patch)
        draw.text((left + swatch + margin // 2, middle), name, fill=INK, font=fonts[label_id], anchor="lm")
    return sheet


def _swatch(color: tuple[int, int, int], side: int) -> Image.Image:
    """Draws a rounded square as an RGBA picture."""
    large = Image.new("RGBA", (SUPERSAMPLING * side, SUPERSAMPLING * side), (*SWATCH_EDGE, 0))
    box = (0, 0, large.width - 1, large.height - 1)
    ImageDraw.Draw(large).rounded_rectangle(box, 0.25 * large.width, color, SWATCH_EDGE, SUPERSAMPLING)
    return large.reduce(SUPERSAMPLING)
