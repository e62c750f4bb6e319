"""Light, patches and sprites of the generated scenes.

A sprite is drawn four times too large and averaged down, so it has soft edges. Colors are (R, G, B): 0 to 255 while
drawing, 0 to 1 float32 in arrays.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SUPERSAMPLING = 4
LAMP = (255, 226, 130)

Color = tuple[int, int, int]
Point = tuple[float, float]


@dataclass(frozen=True)
class Light:
    """The light of a time of day."""

    sky_top: Color  # color overhead
    sky_horizon: Color  # color above the horizon, and of the haze over far things
    sun: Color  # color of the disk and of its glitter
    tint: tuple[float, float, float]  # factor (R, G, B) on all that is not sky
    elevation: float  # of the sun over the horizon, in parts of the sky's height
    dark: bool = False  # windows are lit and stars are out

    @property
    def tint_factors(self) -> np.ndarray:
        """The tint as an array, (3,) float32."""
        return np.array(self.tint, dtype=np.float32)


def float_color(color: Color) -> np.ndarray:
    """Returns a color as (3,) float32 in [0, 1]."""
    return np.array(color, dtype=np.float32) / 255


LIGHTS = (
    Light((86, 128, 196), (255, 205, 178), (255, 240, 200), (1.02, 0.92, 0.86), 0.25),  # morning
    Light((62, 132, 218), (198, 226, 246), (255, 252, 228), (1.02, 1.01, 0.98), 0.7),  # noon
    Light((92, 152, 214), (236, 232, 214), (255, 246, 205), (1.04, 0.98, 0.88), 0.5),  # afternoon
    Light((74, 88, 158), (255, 166, 102), (255, 222, 140), (1.02, 0.80, 0.66), 0.16),  # sunset
    Light((16, 22, 62), (74, 92, 150), (240, 240, 225), (0.50, 0.54, 0.80), 0.62, dark=True),  # moonlight
)


@dataclass(frozen=True)
class Patch:
    """An image to lay onto a canvas."""

    color: np.ndarray  # (h, w, 3) float32 in [0, 1], premultiplied by the coverage
    coverage: np.ndarray  # (h, w) float32 in [0, 1]
    top: int = 0  # row of the canvas for the first row; negative if the patch hangs over the border
    left: int = 0  # the same for columns

    def clipped(self, height: int, width: int) -> "Patch":
        """Returns the part that lies on a canvas of this size; it may be empty."""
        rows = slice(max(-self.top, 0), max(height - self.top, 0))
        columns = slice(max(-self.left, 0), max(width - self.left, 0))
        return Patch(
            self.color[rows, columns],
            self.coverage[rows, columns],
            min(max(self.top, 0), height),
            min(max(self.left, 0), width),
        )

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of a clipped patch on the canvas."""
        height, width = self.coverage.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


class Sprite:
    """A drawing in units of its own: x from its middle to the right, y from its foot up, 1 = `unit` pixels."""

    def __init__(self, unit: float, half_width: float, height: float = 1.0, *, mirrored: bool = False) -> None:
        self.scale = unit * SUPERSAMPLING
        self.sign = -1 if mirrored else 1
        size = (math.ceil(2 * half_width * unit) + 2, math.ceil(height * unit) + 2)
        self.image = Image.new("RGBA", (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING))
        self.lamps = Image.new("L", self.image.size)
        self._draw = ImageDraw.Draw(self.image)

    def _at(self, x: float, y: float) -> Point:
        foot = self.image.height - SUPERSAMPLING
        return self.image.width / 2 + self.sign * x * self.scale, foot - y * self.scale

    def polygon(self, points: Sequence[Point], color: Color) -> None:
        """Fills a polygon."""
        self._draw.polygon([self._at(*point) for point in points], fill=(*color, 255))

    def box(self, left: float, right: float, bottom: float, top: float, color: Color) -> None:
        """Fills an upright rectangle."""
        self.polygon([(left, bottom), (left, top), (right, top), (right, bottom)], color)

    def lamp(self, left: float, right: float, bottom: float, top: float) -> None:
        """Fills an upright rectangle that shines by itself."""
        corners = [self._at(left, bottom), self._at(left, top), self._at(right, top), self._at(right, bottom)]
        ImageDraw.Draw(self.lamps).polygon(corners, fill=255)
        self._draw.polygon(corners, fill=(*LAMP, 255))

    def ellipse(self, x: float, y: float, rx: float, ry: float, color: Color) -> None:
        """Fills an ellipse around (x, y)."""
        (x0, y0), (x1, y1) = self._at(x, y + ry), self._at(x, y - ry)
        reach = rx * self.scale
        self._draw.ellipse([x0 - reach, y0, x1 + reach, y1], fill=(*color, 255))

    def line(self, points: Sequence[Point], width: float, color: Color) -> None:
        """Draws a line, `width` in units and at least half a pixel."""
        pixels = max(round(width * self.scale), SUPERSAMPLING // 2)
        self._draw.line([self._at(*point) for point in points], fill=(*color, 255), width=pixels, joint="curve")

    def shaded(
        self, rng: np.random.Generator, light: Light, *, light_x: float, relief: float, texture: float
    ) -> Patch:
        """Returns the drawing in its final size under the light, at the corner of the canvas.

        `light_x` is -1 for light from the left to 1 from the right, `relief` how round the thing looks (0 is flat),
        and `texture` the standard deviation of the surface's brightness.
        """
        # "RGBa" is premultiplied, so averaging mixes no color of the empty sheet into the border.
        small = np.asarray(self.image.convert("RGBa").reduce(SUPERSAMPLING), dtype=np.float32) / 255
        color, coverage = small[..., :3], small[..., 3]
        # The blurred outline serves as a height map: its slopes face outward.
        blur = max(coverage.shape[0] * 0.13, 1)
        outline = Image.fromarray((coverage * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(blur))
        down, right = np.gradient(np.asarray(outline, dtype=np.float32) / 255)
        shade = 1 + relief * blur * (0.8 * down - light_x * right)
        shade += texture * rng.standard_normal(coverage.shape, dtype=np.float32)
        lit = color * np.clip(shade, 0.45, 1.5)[..., None] * light.tint_factors
        shining = np.asarray(self.lamps.reduce(SUPERSAMPLING), dtype=np.float32)[..., None] / 255
        return Patch(np.clip(lit + shining * (color - lit), 0, coverage[..., None]), coverage)
