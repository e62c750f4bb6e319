"""Attention maps of one object, drawn over the photograph.

Legend: L decoder layers, M heads, (h, w) the map of the encoded image, (H, W) the photograph.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .labels import INK, PAPER, font_for, shorten
from .overlays import outlines
from .sheets import stack

SHEET_WIDTH = 1400  # pixels
MARGIN, GAP = 24, 10  # pixels around the sheet, and between pictures
TITLE_SIZE, HEADING_SIZE, CAPTION_SIZE = 28, 19, 15  # pixels
MAX_ASPECT = 1.6  # height of a picture, in widths of its column
MAX_COLUMNS, MAX_PORTRAIT_COLUMNS = 6, 8
BACKGROUND_BRIGHTNESS = 0.4  # of the gray photograph where there is no attention
HEAT_GAMMA = 0.6  # half of the peak is drawn as two thirds, so that weak attention stays visible
MAX_COVERAGE = 0.6  # share of the photograph that the peak hides
HEAT_BRIGHTNESS = 0.85  # of the heat colors, so that the photograph is visible under the peak
# matplotlib's "inferno" at quarters of its range: brightness rises in perceptual steps.
HEAT = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], dtype=np.float32)
ONE_SCALE = "one softmax over all heads and cells; the number is the share of the head"
OWN_SCALE = "each map has its own scale; the number is the share of its brightest cell"
BOX_COLOR, MASK_COLOR, OUTLINE_COLOR, GRAY = (255, 214, 0), (0, 200, 255), (255, 255, 255), (96, 100, 108)


@dataclass(frozen=True)
class ObjectAttention:
    """Attention of one query.

    Args:
        title: Class and score, such as `boat 0.97`.
        subtitle: Which query of which image.
        box: (left, top, right, bottom) in pixels of the photograph.
        mask: (H, W) bool.
        mask_maps: (M, h, w) attention maps of the mask head; together they sum to 1 over the padded canvas.
        cross_maps: (L, M, h, w) cross-attention of the decoder; each map sums to 1.
        processed_size: (height, width) of the image as the model saw it, without padding.
        stride: Pixels of the model's image per cell of a map, along each side.
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
    """Enlarges attention maps to an image: each pixel gets the value of the cell that covers it.

    Cell (y, x) covers the square of `stride` pixels at (y * stride, x * stride) of the image as the model saw it.
    Cells in the padding are left out, and those at the border of the image are cut.

    Args:
        maps: (..., h, w) over the padded canvas.
        processed_size: (height, width) of the image on that canvas.
        stride: Pixels of the canvas per cell.
        size: (height, width) of the result, which shows the whole image at any scale.

    Returns:
        (..., *size).

    Examples:
        >>> import numpy as np
        >>> attention_on_pixels(np.array([[1, 2], [3, 4]]), processed_size=(64, 48), stride=32, size=(4, 3))
        array([[1, 1, 2],
               [1, 1, 2],
               [3, 3, 4],
               [3, 3, 4]])
    """
    rows, columns = (
        ((np.arange(length) + 0.5) * processed / (length * stride)).astype(int)
        for length, processed in zip(size, processed_size, strict=True)
    )
    return maps[..., rows[:, None], columns]


def draw_heat(photograph: Image.Image, values: np.ndarray) -> Image.Image:
    """Draws values (H, W) from 0 to 1 over a darkened gray photograph of that size: the higher, the brighter."""
    strength = values.clip(0, 1) ** HEAT_GAMMA
    steps = np.linspace(0, 1, len(HEAT))
    heat = np.stack([np.interp(strength, steps, channel) for channel in HEAT.T], axis=-1)
    gray = BACKGROUND_BRIGHTNESS * np.asarray(photograph.convert("L"), dtype=np.float32)[..., None]
    # The heat is added: painted over a bright photograph, weak attention would be darker than none.
    lit = (1 - MAX_COVERAGE * strength[..., None]) * gray + HEAT_BRIGHTNESS * heat
    return Image.fromarray(np.rint(lit).clip(0, 255).astype(np.uint8))


def draw_attention(
    image: Image.Image, attention: ObjectAttention, *, layer: int | None = None, head: int | None = None
) -> Image.Image:
    """Draws the sheet of one object: its mask and box, the mask head's maps, and the decoder's cross-attention.

    Args:
        image: The photograph, in any mode.
        attention: Of the object.
        layer: Decoder layer, from 1, whose heads are shown; None for the last.
        head: Shows only this head, from 1, of the mask head and of every layer; None for all.

    Returns:
        An RGB image on white, 1400 pixels wide.

    Raises:
        ValueError: If there is no such layer or head.
    """
    num_layers, num_heads = attention.cross_maps.shape[:2]
    layer = num_layers if layer is None else layer
    for name, value, most in (("layer", layer, num_layers), ("head", head, num_heads)):
        if value is not None and not 1 <= value <= most:
            raise ValueError(f"`{name}` must be from 1 to {most}, the number of the model, got {value}.")
    headline = _headline(attention.title, attention.subtitle, size=TITLE_SIZE)
    content = stack([headline, *Panels(image.convert("RGB"), attention).parts(layer, head)], gap=2 * GAP)
    sheet = Image.new("RGB", (SHEET_WIDTH, content.height + 2 * MARGIN), "white")
    sheet.paste(content, (MARGIN, MARGIN))
    return sheet


@dataclass(frozen=True)
class Panels:
    """Draws the parts of one object's sheet over an RGB photograph."""

    image: Image.Image
    attention: ObjectAttention

    def parts(self, layer: int, head: int | None) -> list[Image.Image]:
        """Returns the overview, and the maps of the mask head, of the layers and of one layer with their headlines."""
        chosen = slice(None) if head is None else slice(head - 1, head)
        mask_maps, cross_maps = self.attention.mask_maps[chosen], self.attention.cross_maps[:, chosen]
        means, heads = cross_maps.mean(1), cross_maps[layer - 1]
        whose = "all heads" if head is None else f"head {head}"
        overview = {
            "mask and box": self.outlined(3),
            f"mask head, sum of {whose}: {percent(mask_maps.sum())}": self.heat(mask_maps.sum(0), 3),
            f"decoder layer {layer}, mean of {whose}": self.heat(means[layer - 1], 3),
        }
        shares = [f"head {i}: {percent(values.sum())}" for i, values in enumerate(mask_maps, start=1)]
        layers = [f"layer {i}: {percent(values.max())}" for i, values in enumerate(means, start=1)]
        peaks = [f"head {i}: {percent(values.max())}" for i, values in enumerate(heads, start=1)]
        sections = [
            ("Mask head, attention maps", ONE_SCALE, mask_maps, shares, float(mask_maps.max())),
            (f"Decoder, cross-attention of each layer, mean of {whose}", OWN_SCALE, means, layers, None),
            (f"Decoder, cross-attention of the heads of layer {layer}", OWN_SCALE, heads, peaks, None),
        ]
        parts = [_grid(overview, columns=3)]
        for title, note, maps, captions, peak in sections if head is None else sections[1:2]:
            parts += [_headline(title, note), self.heats(maps, captions, peak=peak)]
        return parts

    def heats(self, maps: np.ndarray, captions: Sequence[str], *, peak: float | None = None) -> Image.Image:
        """Draws maps (N, h, w) over the photograph; each has its own scale if there is no common `peak`."""
        most = MAX_PORTRAIT_COLUMNS if self.image.height > self.image.width else MAX_COLUMNS
        num_rows = -(-len(maps) // most)
        columns = -(-len(maps) // num_rows)  # 8 are 4 and 4, not 6 and 2
        pictures = [self.heat(values, columns, peak=peak) for values in maps]
        return _grid(dict(zip(captions, pictures, strict=True)), columns=columns)

    def heat(self, values: np.ndarray, columns: int, *, peak: float | None = None) -> Image.Image:
        """Draws a map (h, w) over the photograph with the object's outline, in the size for that many columns."""
        small, mask = self.fitted(columns)
        processed_size, stride = self.attention.processed_size, self.attention.stride
        on_pixels = attention_on_pixels(values, processed_size=processed_size, stride=stride, size=mask.shape)
        return _with_outline(draw_heat(small, on_pixels / (peak or on_pixels.max() or 1)), mask, OUTLINE_COLOR)

    def outlined(self, columns: int) -> Image.Image:
        """Draws the object's mask and box on the photograph."""
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
        """Resizes photograph and mask to the size for that many columns."""
        width = (SHEET_WIDTH - 2 * MARGIN - (columns - 1) * GAP) // columns
        scale = min(width / self.image.width, MAX_ASPECT * width / self.image.height)
        size = max(1, round(scale * self.image.width)), max(1, round(scale * self.image.height))
        mask = Image.fromarray(self.attention.mask).resize(size, Image.Resampling.NEAREST)
        return self.image.resize(size, Image.Resampling.LANCZOS), np.asarray(mask)


def _with_outline(picture: Image.Image, mask: np.ndarray, color: tuple[int, int, int]) -> Image.Image:
    pixels = np.asarray(picture).copy()
    pixels[outlines(mask.astype(np.int16), reach=2)] = color
    return Image.fromarray(pixels)


def _grid(pictures: dict[str, Image.Image], *, columns: int) -> Image.Image:
    """Returns pictures in rows, each under its caption."""
    captions = list(pictures)
    return stack(list(pictures.values()), columns=columns, captions=captions, gap=GAP, caption_size=CAPTION_SIZE)


def _headline(title: str, note: str, *, size: float = HEADING_SIZE) -> Image.Image:
    """Returns a title of that letter size with a gray line below it."""
    lines = ((title, size, INK), (note, 0.75 * size, GRAY))
    width = SHEET_WIDTH - 2 * MARGIN
    block = Image.new("RGB", (width, round(sum(1.5 * line_size for _, line_size, _ in lines))), PAPER)
    draw, top = ImageDraw.Draw(block), 0.0
    for text, line_size, color in lines:
        font = font_for(text, line_size)
        draw.text((0, top), shorten(text, font, width), fill=color, font=font)
        top += 1.5 * line_size
    return block


def percent(share: float) -> str:
    """Returns a share as text, such as `7.3 %`."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"
