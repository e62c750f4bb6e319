"""Stuff of the generated scenes: sky, mountain, sea, sand, grass and road, each a patch as large as the canvas."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from .painting import Light, Patch, float_color


@dataclass(frozen=True)
class Place:
    """What all backdrops of a scene share."""

    height: int  # of the canvas, pixels
    width: int  # of the canvas, pixels
    horizon: float  # row of the horizon, may be a fraction
    sun_x: float  # column of the sun, in parts of the width
    light: Light  # of the time of day

    @property
    def rows(self) -> np.ndarray:
        """Center of each row, (H, 1) float32."""
        return np.arange(self.height, dtype=np.float32)[:, None] + 0.5

    @property
    def columns(self) -> np.ndarray:
        """Center of each column, (1, W) float32."""
        return np.arange(self.width, dtype=np.float32)[None] + 0.5


def smooth_noise(rng: np.random.Generator, height: int, width: int, cells: tuple[float, float]) -> np.ndarray:
    """Returns noise (H, W) float32 of three octaves, mean 0, deviation about 1, with `cells` down and across."""
    total = np.zeros((height, width), dtype=np.float32)
    for octave, weight in ((1, 0.83), (2.6, 0.45), (6.1, 0.3)):
        down, across = (max(round(count * octave), 1) + 1 for count in cells)
        grid = rng.standard_normal((down, across), dtype=np.float32)
        total += 1.4 * weight * np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))
    return total


def ridge(rng: np.random.Generator, width: int, cells: Sequence[int], fall: float) -> np.ndarray:
    """Returns a line (W,) float64 of mean 0: noise in octaves of `cells` points, each `fall` times as high."""
    line = np.zeros(width)
    for octave, count in enumerate(cells):
        points = np.linspace(-rng.random(), count + rng.random(), count + 2)
        line += fall**octave * np.interp(np.linspace(0, count, width), points, rng.uniform(-1, 1, count + 2))
    return line - line.mean()


def _mix(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Blends two colors: `share` (H, W) or (H, 1) of the second one."""
    return first + (second - first) * share[..., None]


def _below(place: Place, edge: np.ndarray, color: np.ndarray) -> Patch:
    """Fills everything below a line: `edge` (W,) rows, `color` (H, W or 1, 3) in [0, 1]."""
    coverage = np.clip(place.rows + 0.5 - edge[None].astype(np.float32), 0, 1)
    return Patch(np.clip(color, 0, 1) * coverage[..., None], coverage)


def sky(place: Place, rng: np.random.Generator) -> Patch:
    """Paints a gradient, clouds, stars, and the sun or the moon with its glow."""
    light, height, width = place.light, place.height, place.width
    down = np.clip(place.rows / place.horizon, 0, 1)
    color = _mix(float_color(light.sky_top), float_color(light.sky_horizon), down**1.3)
    color = np.broadcast_to(color, (height, width, 3))
    if light.dark:
        stars = (rng.random((height, width), dtype=np.float32) > 0.997) * (1 - down)
        color = color + 0.7 * stars[..., None]
    sun_y = place.horizon * (1 - light.elevation)
    distance = np.hypot(place.rows - sun_y, place.columns - place.sun_x * width) / min(height, width)
    color = _mix(color, float_color(light.sun), 0.55 * np.exp(-9 * distance))
    color = _mix(color, float_color(light.sun), np.clip((0.045 - distance) * min(height, width) + 0.5, 0, 1))
    amount = smooth_noise(rng, height, width, (9, 2.5)) + rng.uniform(-1.2, 0.2)
    cloud = np.clip(amount * 0.45, 0, 1) * np.clip(1.25 - down, 0, 0.9)
    puff = _mix(np.ones(3, dtype=np.float32), float_color(light.sky_horizon), np.full((1, 1), 0.35, dtype=np.float32))
    lit = puff * light.tint_factors * (1.0 if not light.dark else 0.75)
    color = _mix(color, lit, cloud)
    return Patch(np.clip(color, 0, 1), np.ones((height, width), dtype=np.float32))


def mountain(place: Place, rng: np.random.Generator, *, rise: float, haze: float) -> Patch:
    """Paints a range whose peaks reach up to `rise` of the sky, with `haze` of its color lost."""
    cells = (int(rng.integers(2, 5)), 8, 17, 40)
    line = ridge(rng, place.width, cells, 0.45)
    line = (line - line.min()) / np.ptp(line)
    edge = place.horizon * (1 - rise * (0.15 + 0.85 * line))
    rock = float_color(((96, 104, 128), (104, 118, 112), (126, 104, 100))[rng.integers(3)])
    crags = smooth_noise(rng, place.height, place.width, (14, 18))
    # The side of a crest that faces away from the sun is dark; its shade runs down the slope, slanted and ragged.
    slope = np.gradient(np.convolve(np.pad(line, 2, mode="edge"), np.ones(5) / 5, mode="valid")) * place.width
    fall = place.rows - edge[None].astype(np.float32)
    source = place.columns + 0.6 * fall * (1 if place.sun_x < 0.5 else -1) + 0.012 * place.width * crags
    facing = slope.astype(np.float32)[np.clip(source, 0, place.width - 1).astype(np.intp)]
    facing = facing * (1 if place.sun_x < 0.5 else -1) * np.exp(-np.clip(fall, 0, None) / (0.12 * place.height))
    color = rock * (1 + 0.12 * np.clip(-facing, -1.2, 1.2) + 0.07 * crags)[..., None]
    if rise > 0.55:
        snow_line = place.horizon * (1 - 0.62 * rise) + 0.02 * place.height * crags
        snow = np.float32(0.94) * (0.9 + 0.1 * np.clip(-facing, -1, 1))[..., None]
        color = _mix(color, snow, place.rows < snow_line)
    mist = np.clip(haze + 0.25 * (place.rows / place.horizon - 0.5), 0, 0.9)
    color = _mix(color * place.light.tint_factors, float_color(place.light.sky_horizon), mist)
    return _below(place, edge, color.astype(np.float32))


def _depth(place: Place) -> np.ndarray:
    """Returns (H, 1): 0 at the horizon, 1 at the lower border."""
    return np.clip((place.rows - place.horizon) / (place.height - place.horizon), 0, 1)


def _ground(place: Place, edge: np.ndarray, color: np.ndarray, haze: float) -> Patch:
    """Paints ground under the light, hazy toward the horizon."""
    tinted = color * place.light.tint_factors
    return _below(place, edge, _mix(tinted, float_color(place.light.sky_horizon), haze * (1 - _depth(place)) ** 2))


def sea(place: Place, rng: np.random.Generator, edge: np.ndarray) -> Patch:
    """Paints water with waves that grow toward the viewer, and the reflection of the sun."""
    height, width = place.height, place.width
    deep, near = (((24, 92, 150), (58, 168, 186)), ((30, 78, 128), (70, 140, 170)), ((18, 110, 140), (84, 196, 190)))[
        rng.integers(3)
    ]
    depth = _depth(place)
    fine, broad = smooth_noise(rng, height, width, (height / 3, 14)), smooth_noise(rng, height, width, (height / 9, 5))
    waves = fine * (1 - depth) + broad * depth
    color = _mix(float_color(deep), float_color(near), depth) * (1 + 0.09 * waves)[..., None]
    path = np.exp(-(((place.columns / width - place.sun_x) / (0.04 + 0.16 * depth)) ** 2))
    sparkle = np.clip(waves - 0.1, 0, 1) * path * (1.1 - depth)
    patch = _ground(place, edge, color, 0.35)
    color = _mix(patch.color, float_color(place.light.sun), sparkle * patch.coverage)
    return Patch(np.clip(color, 0, 1), patch.coverage)


def sand(place: Place, rng: np.random.Generator, edge: np.ndarray) -> Patch:
    """Paints dunes and grains, wet and dark along the upper edge."""
    height, width = place.height, place.width
    color = float_color(((232, 206, 158), (238, 216, 176), (224, 190, 142))[rng.integers(3)])
    dunes = 0.05 * smooth_noise(rng, height, width, (8, 4))
    tone = 1 + dunes + 0.035 * rng.standard_normal((height, width), dtype=np.float32)
    wet = np.exp(-np.clip(place.rows - edge[None].astype(np.float32), 0, None) / (0.03 * height))
    return _ground(place, edge, color * (tone - 0.22 * wet)[..., None], 0.2)


def grass(place: Place, rng: np.random.Generator, edge: np.ndarray) -> Patch:
    """Paints a meadow with upright blades, lighter patches and sometimes flowers."""
    height, width = place.height, place.width
    far, near = (((128, 168, 84), (74, 136, 60)), ((150, 176, 84), (96, 146, 56)), ((176, 172, 92), (140, 142, 62)))[
        rng.integers(3)
    ]
    depth = _depth(place)
    blades = smooth_noise(rng, height, width, (height / 5, width / 2.2))
    hills = smooth_noise(rng, height, width, (9, 3))
    tone = 1 + 0.08 * blades * (0.4 + depth) + 0.07 * hills
    color = _mix(float_color(far), float_color(near), depth) * tone[..., None]
    if rng.random() < 0.6:
        petal = float_color(((250, 236, 120), (248, 244, 240), (232, 110, 120), (190, 140, 220))[rng.integers(4)])
        flowers = rng.random((height, width), dtype=np.float32) < 0.012 * depth * np.clip(hills + 0.6, 0, 1)
        color = _mix(color, petal, np.float32(0.85) * flowers)
    return _ground(place, edge, color, 0.3)


def road(place: Place, rng: np.random.Generator, middle: np.ndarray, half_width: float) -> Patch:
    """Paints a road from border to border: `middle` (W,) rows of its dashed line, `half_width` in pixels."""
    offset = place.rows - middle[None].astype(np.float32)
    coverage = np.clip(half_width - np.abs(offset) + 0.5, 0, 1)
    noise = rng.standard_normal(offset.shape, dtype=np.float32)
    color = np.repeat((0.40 + 0.02 * noise)[..., None], 3, axis=-1)
    line = max(0.07 * half_width, 0.5)
    dashes = (place.columns / half_width + rng.random()) % 2.2 < 1.2
    paint = np.clip(line - np.abs(offset) + 0.5, 0, 1) * dashes
    paint = paint + np.clip(line - np.abs(np.abs(offset) - 0.86 * half_width) + 0.5, 0, 1)
    color = _mix(color, float_color((230, 224, 204)), np.clip(0.8 * paint, 0, 1))
    return Patch(np.clip(color * place.light.tint_factors, 0, 1) * coverage[..., None], coverage)


def foam(place: Place, edge: np.ndarray) -> Patch:
    """Paints surf just above the shore line (W,); its pixels belong to the water."""
    thick = 0.012 * place.height + 1
    distance = edge[None].astype(np.float32) - place.rows
    coverage = 0.8 * np.exp(-(np.clip(distance, 0, None) / thick)) * (distance > -1)
    # A second, fainter wave farther out.
    coverage = np.clip(coverage + 0.35 * np.exp(-(((distance - 4.5 * thick) / (0.5 * thick)) ** 2)), 0, 1)
    return Patch(coverage[..., None] * place.light.tint_factors.clip(0, 1), coverage)


def shadow(sprite: Patch, place: Place, foot: tuple[float, float]) -> Patch:
    """Paints the shadow of a thing at `foot` (column, row): toward the viewer, away from the sun."""
    height, width = sprite.coverage.shape
    length = 1 - place.light.elevation
    tall = max(round((0.12 + 0.3 * length) * height), 2)
    slant = 1.6 * (0.5 - place.sun_x) * length * height / tall  # columns per row
    margin = math.ceil(abs(slant) * tall) + 4
    # The outline of the thing upside down, flattened, and slanted away from the sun.
    outline = Image.fromarray((sprite.coverage[::-1] * 255).astype(np.uint8)).resize((width, tall))
    sheet = Image.new("L", (width + 2 * margin, tall + 8))
    sheet.paste(outline, (margin, 4))
    sheet = sheet.transform(sheet.size, Image.Transform.AFFINE, (1, -slant, 4 * slant, 0, 1, 0))
    soft = np.asarray(sheet.filter(ImageFilter.GaussianBlur(0.7 + 0.015 * height)), dtype=np.float32) / 255
    coverage = (0.25 if place.light.dark else 0.42) * soft
    color = coverage[..., None] * float_color((13, 15, 36))
    return Patch(color, coverage, round(foot[1]) - 6, round(foot[0] - width / 2) - margin)


def reflection(sprite: Patch, foot: tuple[float, float]) -> Patch:
    """Paints the reflection of a thing in the water below `foot` (column, row)."""
    half = max(sprite.coverage.shape[0] // 2, 1)
    fade = np.linspace(0.45, 0.0, half, dtype=np.float32)[:, None]
    coverage = sprite.coverage[::-2][:half] * fade[: sprite.coverage[::-2].shape[0]]
    color = sprite.color[::-2][:half] * fade[: coverage.shape[0], :, None] * float_color((191, 224, 242))
    return Patch(color, coverage, round(foot[1]) - 1, round(foot[0] - sprite.coverage.shape[1] / 2))


GROUNDS: dict[str, Callable[[Place, np.random.Generator, np.ndarray], Patch]] = {
    "sea": sea,
    "sand": sand,
    "grass": grass,
}
