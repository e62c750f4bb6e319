"""Where a model looks: attention maps of one object over its photograph.

Legend: L decoder layers, M heads, (h, w) the map of the encoded image, (H, W) the photograph.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from .labels import INK, PAPER, font_for, shorten
from .overlays import outlines

SHEET_WIDTH = 1400  # pixels
MARGIN = 24  # pixels
GAP = 10  # pixels between pictures
TITLE_SIZE, HEADING_SIZE, CAPTION_SIZE = 28, 19, 15  # pixels
GRAY_INK = (96, 100, 108)
TALLEST = 1.6  # widths of a column: no picture is higher
MAX_COLUMNS = {"landscape": 6, "portrait": 8}
DARKENED = 0.4  # brightness of the photograph, gray, where no attention is
HEAT_GAMMA = 0.6  # half of the peak looks like two thirds: weak attention is seen, too
MOST_COVERED = 0.6  # of the photograph, by the peak
LIGHT = 0.85  # of the colors of heat, so that the photograph is seen in the peak
# Dark to bright in perceptual steps: matplotlib's "inferno" at quarters of its range.
HEAT = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], dtype=np.float32)
BOX_COLOR, MASK_COLOR = (255, 214, 0), (0, 200, 255)


class Row(NamedTuple):
    """Pictures of one size with their captions, so many beside each other; the others go on below."""

    heading: str
    meaning: str
    columns: int
    pictures: list[tuple[str, Image.Image]]


@dataclass(frozen=True)
class ObjectAttention:
    """What one query found, and where it looked.

    Args:
        title: what it is, `boat 0.97`.
        subtitle: which query of which image.
        box: (left, top, right, bottom) in pixels of the photograph.
        mask: (H, W) bool.
        mask_maps: (M, h, w) attention maps of the mask head; together they sum to 1 over the padded canvas.
        cross_maps: (L, M, h, w) cross-attention of the decoder; each sums to 1.
        processed_size: (height, width) in which the model saw the photograph, without padding.
        stride: pixels of the model's image per cell of a map, along each side.
    """

    title: str
    subtitle: str
    box: tuple[float, float, float, float]
    mask: np.ndarray
    mask_maps: np.ndarray
    cross_maps: np.ndarray
    processed_size: tuple[int, int]
    stride: int


def attention_on_pixels(
    maps: np.ndarray, *, processed_size: tuple[int, int], stride: int, size: tuple[int, int]
) -> np.ndarray:
    """The value of each pixel's cell: cell (y, x) is the square of `stride` pixels at (y * stride, x * stride).

    These are pixels of the image as the model saw it, which lies at the upper left of a canvas that may be padded;
    cells of the padding are left out, and those at the border of the image are cut.

    Args:
        maps: (..., h, w) over the padded canvas.
        processed_size: (height, width) of the image on that canvas.
        stride: pixels of the canvas per cell.
        size: (height, width) of the result, which shows the whole image in any scale.

    Returns:
        (..., *size).
    """
    rows, columns = (
        ((np.arange(length) + 0.5) * processed / (length * stride)).astype(int)
        for length, processed in zip(size, processed_size, strict=True)
    )
    return maps[..., rows[:, None], columns]


def draw_heat(photograph: Image.Image, values: np.ndarray) -> Image.Image:
    """Values over a photograph, which turns gray and dark: the higher, the brighter and the less of it is seen.

    Args:
        photograph: RGB.
        values: (H, W) of its size, 0 to 1.
    """
    strength = values.clip(0, 1) ** HEAT_GAMMA
    steps = np.linspace(0, 1, len(HEAT))
    light = np.stack([np.interp(strength, steps, channel) for channel in HEAT.T], axis=-1)
    gray = DARKENED * np.asarray(photograph.convert("L"), dtype=np.float32)[..., None]
    # Light is added: painted over a bright photograph, weak attention would be darker than none.
    lit = (1 - MOST_COVERED * strength[..., None]) * gray + LIGHT * light
    return Image.fromarray(np.rint(lit).clip(0, 255).astype(np.uint8))


def draw_attention(
    image: Image.Image, attention: ObjectAttention, *, layer: int | None = None, head: int | None = None
) -> Image.Image:
    """One sheet on one object: its mask and box, the mask head's maps, and the decoder's cross-attention.

    Args:
        image: the photograph.
        attention: of the object.
        layer: the decoder layer, from 1, whose heads are shown; None for the last.
        head: show this head, from 1, of the mask head and of every layer; None for all.

    Returns:
        An RGB picture on white.

    Raises:
        ValueError: there is no such layer or head.
    """
    num_layers, num_heads = attention.cross_maps.shape[:2]
    layer = num_layers if layer is None else layer
    for name, value, most in (("layer", layer, num_layers), ("head", head, num_heads)):
        if value is not None and not 1 <= value <= most:
            raise ValueError(f"`{name}` must be from 1 to {most}, as many as the model has, got {value}.")
    panels = Panels(image.convert("RGB"), attention)
    rows = panels.of_all_heads(layer) if head is None else panels.of_one_head(head)
    return _draw_sheet(attention.title, attention.subtitle, rows)


class Panels:
    """Makes the pictures of one object's sheet.

    Args:
        image: the photograph, RGB.
        attention: of the object.
    """

    def __init__(self, image: Image.Image, attention: ObjectAttention) -> None:
        """Keep both."""
        self.image = image
        self.attention = attention
        kind = "portrait" if image.height > image.width else "landscape"
        self.max_columns = MAX_COLUMNS[kind]

    def of_all_heads(self, layer: int) -> list[Row]:
        """Overview, the mask head's maps, each layer's mean, the heads of one layer."""
        mask_maps, cross_maps = self.attention.mask_maps, self.attention.cross_maps
        means = cross_maps.mean(1)
        overview = [
            ("mask and box", self.outlined(3)),
            ("mask head, sum of its heads", self.heat(mask_maps.sum(0), 3)),
            (f"decoder layer {layer}, mean of its heads", self.heat(means[layer - 1], 3)),
        ]
        return [
            Row("", "", len(overview), overview),
            self.mask_head_row(),
            self.heats(
                "Decoder, cross-attention layer by layer",
                "mean of the heads; each picture has its own scale",
                means,
                [f"layer {number}" for number in _numbers(means)],
            ),
            self.heats(
                f"Decoder, cross-attention of layer {layer}",
                "each head has its own scale; the number is the share of its brightest cell",
                cross_maps[layer - 1],
                [f"head {i}: {percent(cross_maps[layer - 1, i - 1].max())}" for i in _numbers(cross_maps[0])],
            ),
        ]

    def of_one_head(self, head: int) -> list[Row]:
        """Overview, and one head of each layer."""
        mask_map, cross_maps = self.attention.mask_maps[head - 1], self.attention.cross_maps[:, head - 1]
        overview = [
            ("mask and box", self.outlined(2)),
            (f"mask head, head {head}: {percent(mask_map.sum())} of all heads", self.heat(mask_map, 2)),
        ]
        captions = [f"layer {i}: {percent(cross_maps[i - 1].max())}" for i in _numbers(cross_maps)]
        meaning = "each layer has its own scale; the number is the share of its brightest cell"
        title = f"Decoder, cross-attention of head {head}"
        return [Row("", "", len(overview), overview), self.heats(title, meaning, cross_maps, captions)]

    def mask_head_row(self) -> Row:
        """The mask head's maps in one scale, each with its share of the attention."""
        maps = self.attention.mask_maps
        captions = [f"head {number}: {percent(maps[number - 1].sum())}" for number in _numbers(maps)]
        meaning = "one softmax over all heads and cells: one scale, and the number is the head's share"
        return self.heats("Mask head, attention maps", meaning, maps, captions, peak=float(maps.max()))

    def heats(
        self, heading: str, meaning: str, maps: np.ndarray, captions: Sequence[str], *, peak: float | None = None
    ) -> Row:
        """Maps (N, h, w) on the photograph; each in its own scale if there is no common `peak`."""
        num_rows = -(-len(maps) // self.max_columns)
        columns = -(-len(maps) // num_rows)  # 8 stand as 4 and 4, not as 6 and 2
        pictures = [self.heat(values, columns, peak=peak) for values in maps]
        return Row(heading, meaning, columns, list(zip(captions, pictures, strict=True)))

    def heat(self, values: np.ndarray, columns: int, *, peak: float | None = None) -> Image.Image:
        """A map (h, w) on the photograph, in the size for so many columns, with the object's outline."""
        small, mask = self.fitted(columns)
        on_pixels = attention_on_pixels(
            values,
            processed_size=self.attention.processed_size,
            stride=self.attention.stride,
            size=(small.height, small.width),
        )
        picture = draw_heat(small, on_pixels / (peak or on_pixels.max() or 1))
        return _with_outline(picture, mask, (255, 255, 255))

    def outlined(self, columns: int) -> Image.Image:
        """The photograph with the object's mask and box."""
        small, mask = self.fitted(columns)
        tinted = np.asarray(small).copy()
        tinted[mask] = np.rint(0.65 * tinted[mask] + 0.35 * np.array(MASK_COLOR)).astype(np.uint8)
        picture = _with_outline(Image.fromarray(tinted), mask, MASK_COLOR)
        scale = small.width / self.image.width, small.height / self.image.height
        left, top, right, bottom = (round(a * b) for a, b in zip(self.attention.box, scale * 2, strict=True))
        box = (left, top, max(left, right - 1), max(top, bottom - 1))
        ImageDraw.Draw(picture).rectangle(box, outline=BOX_COLOR, width=2)
        return picture

    def fitted(self, columns: int) -> tuple[Image.Image, np.ndarray]:
        """Photograph and mask in the size for so many columns."""
        width = _column_width(columns)
        scale = min(width / self.image.width, TALLEST * width / self.image.height)
        size = max(1, round(scale * self.image.width)), max(1, round(scale * self.image.height))
        mask = Image.fromarray(self.attention.mask).resize(size, Image.Resampling.NEAREST)
        return self.image.resize(size, Image.Resampling.LANCZOS), np.asarray(mask)


def _with_outline(picture: Image.Image, mask: np.ndarray, color: tuple[int, int, int]) -> Image.Image:
    pixels = np.asarray(picture).copy()
    pixels[outlines(mask.astype(np.int16), reach=2)] = color
    return Image.fromarray(pixels)


def _draw_sheet(title: str, subtitle: str, rows: Sequence[Row]) -> Image.Image:
    """Rows of pictures under each other."""
    whole = SHEET_WIDTH - 2 * MARGIN
    pictures = []  # (left, top, picture)
    texts = [  # (left, top, text, size, color, width)
        (MARGIN, MARGIN, title, TITLE_SIZE, INK, whole),
        (MARGIN, MARGIN + round(1.35 * TITLE_SIZE), subtitle, CAPTION_SIZE, GRAY_INK, whole),
    ]
    bottom = MARGIN + round(1.35 * TITLE_SIZE + 2.2 * CAPTION_SIZE)
    for row in rows:
        if row.heading:
            bottom += HEADING_SIZE
            texts.append((MARGIN, bottom, row.heading, HEADING_SIZE, INK, whole))
            texts.append((MARGIN, bottom + round(1.4 * HEADING_SIZE), row.meaning, CAPTION_SIZE, GRAY_INK, whole))
            bottom += round(1.4 * HEADING_SIZE + 1.9 * CAPTION_SIZE)
        width, height = _column_width(row.columns), row.pictures[0][1].height
        for place, (caption, picture) in enumerate(row.pictures):
            left = MARGIN + place % row.columns * (width + GAP)
            top = bottom + place // row.columns * (height + 2 * CAPTION_SIZE)
            pictures.append((left, top, picture))
            texts.append((left, top + height + 4, caption, CAPTION_SIZE, INK, width))
        bottom += -(-len(row.pictures) // row.columns) * (height + 2 * CAPTION_SIZE)
    sheet = Image.new("RGB", (SHEET_WIDTH, bottom + MARGIN // 2), PAPER)
    for left, top, picture in pictures:
        sheet.paste(picture, (left, top))
    draw = ImageDraw.Draw(sheet)
    for left, top, text, size, color, width in texts:
        font = font_for(text, size)
        draw.text((left, top), shorten(text, font, width), fill=color, font=font)
    return sheet


def _column_width(columns: int) -> int:
    """Pixels for each of so many pictures beside each other."""
    return (SHEET_WIDTH - 2 * MARGIN - (columns - 1) * GAP) // columns


def _numbers(maps: np.ndarray) -> range:
    """1, 2, … for the maps of the first axis."""
    return range(1, len(maps) + 1)


def percent(share: float) -> str:
    """A share of the attention as the pictures say it, `7.3 %`."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"
