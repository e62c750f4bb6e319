"""Sheets: several pictures with their captions on one white page."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from .labels import INK, PAPER, font_for, font_size_for, shorten

CAPTION_SIZE = 1.3  # in sizes of the labels of the first picture
CAPTION_HEIGHT = 2  # in sizes of the caption


def stack(
    pictures: Sequence[Image.Image],
    *,
    columns: int = 1,
    captions: Sequence[str] | None = None,
    gap: int = 8,
    caption_size: float | None = None,
) -> Image.Image:
    """Puts pictures on one white sheet, row by row.

    Args:
        pictures: at least one, in any modes and sizes.
        columns: Number of pictures in each row.
        captions: A text above each picture; long ones are cut.
        gap: Pixels between the pictures.
        caption_size: Size of the letters in pixels; by default it suits the first picture.

    Returns:
        An RGB image.

    Raises:
        ValueError: If there are no pictures, `columns` is not positive, or the number of captions is another.

    Examples:
        >>> from PIL import Image
        >>> stack([Image.new("RGB", (40, 30))] * 4, columns=2, gap=10).size
        (90, 70)
    """
    if not pictures:
        raise ValueError("`pictures` must have at least one picture.")
    if columns < 1:
        raise ValueError(f"`columns` must be positive, got {columns}.")
    if captions is not None and len(captions) != len(pictures):
        raise ValueError(f"`captions` must have a text for each of {len(pictures)} pictures, got {len(captions)}.")
    size = caption_size or CAPTION_SIZE * font_size_for(pictures[0].size)
    header = 0 if captions is None else round(CAPTION_HEIGHT * size)
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    widths = [max(picture.width for picture in pictures[column::columns]) for column in range(len(rows[0]))]
    heights = [header + max(picture.height for picture in row) for row in rows]
    sheet = Image.new("RGB", (sum(widths) + gap * (len(widths) - 1), sum(heights) + gap * (len(rows) - 1)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        left, top = sum(widths[:column]) + column * gap, sum(heights[:row]) + row * gap
        sheet.paste(picture.convert("RGB"), (left, top + header))
        if captions is not None:
            font = font_for(captions[number], size)
            text = shorten(captions[number], font, picture.width)
            draw.text((left + picture.width / 2, top + header / 2), text, fill=INK, font=font, anchor="mm")
    return sheet
