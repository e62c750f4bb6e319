"""Things of the generated scenes: houses, trees, sheep, cars, boats, balls, birds and balloons."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .painting import LAMP, Color, Light, Sprite


def _pick(rng: np.random.Generator, colors: Sequence[Color]) -> Color:
    return colors[int(rng.integers(len(colors)))]


def _toned(color: Color, factor: float) -> Color:
    red, green, blue = (min(round(channel * factor), 255) for channel in color)
    return red, green, blue


PAINTS: tuple[Color, ...] = (
    *((214, 62, 54), (240, 178, 54), (60, 124, 196)),
    *((70, 158, 110), (232, 120, 70), (146, 90, 170)),
)
WHITE, INK, WOOD = (246, 244, 236), (44, 44, 52), (112, 78, 52)
GLASS = (132, 178, 204)


def _house(unit: float, rng: np.random.Generator, light: Light) -> Sprite:
    sprite = Sprite(unit, 0.56, mirrored=rng.random() < 0.5)
    walls = ((244, 232, 206), (226, 128, 96), (196, 216, 226), (240, 204, 120), (206, 90, 78), (178, 206, 170))
    wall = _pick(rng, walls)
    roof = _pick(rng, ((150, 62, 50), (84, 84, 98), (120, 80, 60), (66, 90, 112)))
    sprite.box(0.10, 0.19, 0.6, 0.98, _toned(roof, 0.8))  # chimney
    sprite.box(0.08, 0.46, 0, 0.5, _toned(wall, 0.82))
    sprite.polygon([(-0.44, 0), (-0.44, 0.48), (-0.18, 0.84), (0.08, 0.48), (0.08, 0)], wall)
    sprite.polygon([(-0.18, 0.89), (0.24, 0.89), (0.53, 0.46), (0.1, 0.46)], roof)
    for step in (0.25, 0.5, 0.75):  # rows of tiles
        x, y = 0.28 * step, 0.89 - 0.43 * step
        sprite.line([(x - 0.18, y), (x + 0.25, y)], 0.008, _toned(roof, 0.82))
    sprite.line([(-0.50, 0.43), (-0.18, 0.88), (0.1, 0.46)], 0.05, _toned(roof, 1.15))
    sprite.box(-0.26, -0.10, 0, 0.27, _pick(rng, PAINTS))
    sprite.ellipse(-0.12, 0.13, 0.012, 0.012, LAMP)
    sprite.ellipse(-0.18, 0.54, 0.075, 0.075, WHITE)
    sprite.ellipse(-0.18, 0.54, 0.055, 0.055, GLASS)
    for x in (0.18, 0.35):
        sprite.box(x - 0.065, x + 0.065, 0.16, 0.36, WHITE)
        for left, bottom in ((x - 0.048, 0.18), (x + 0.006, 0.18), (x - 0.048, 0.268), (x + 0.006, 0.268)):
            if light.dark:
                sprite.lamp(left, left + 0.042, bottom, bottom + 0.072)
            else:
                sprite.box(left, left + 0.042, bottom, bottom + 0.072, GLASS)
    return sprite


def _tree(unit: float, rng: np.random.Generator, _light: Light) -> Sprite:
    return _pine(unit, rng) if rng.random() < 0.4 else _leafy_tree(unit, rng)


def _leafy_tree(unit: float, rng: np.random.Generator) -> Sprite:
    sprite = Sprite(unit, 0.44)
    leaf = _pick(rng, ((74, 138, 62), (98, 152, 58), (56, 118, 70), (190, 136, 52), (226, 140, 150)))
    sprite.polygon([(-0.06, 0), (-0.035, 0.5), (0.035, 0.5), (0.06, 0)], WOOD)
    sprite.line([(0, 0.3), (0.16, 0.52)], 0.035, WOOD)
    count = 26
    for index in range(count):  # from the shaded leaves behind to the bright ones in front, above
        rise = index / count
        angle, reach = rng.uniform(0, 2 * math.pi), 0.2 * math.sqrt(rng.random())
        x, y = 1.1 * reach * math.cos(angle), 0.6 + 0.1 * rise + reach * math.sin(angle)
        radius = rng.uniform(0.1, 0.14) * (1.15 - 0.5 * rise)
        sprite.ellipse(x, y, radius, radius, _toned(leaf, 0.72 + 0.5 * rise + rng.uniform(-0.06, 0.06)))
    return sprite


def _pine(unit: float, rng: np.random.Generator) -> Sprite:
    sprite = Sprite(unit, 0.34)
    leaf = _pick(rng, ((40, 96, 70), (52, 110, 62), (36, 84, 82)))
    sprite.box(-0.04, 0.04, 0, 0.2, WOOD)
    for tier in range(4):
        bottom, half = 0.12 + 0.19 * tier, 0.3 - 0.06 * tier
        top = min(bottom + 0.36, 0.99)
        points = [(half * step, bottom + (0.035 if k % 2 else 0)) for k, step in enumerate(np.linspace(-1, 1, 9))]
        sprite.polygon([*points, (0, top)], _toned(leaf, 0.8 + 0.14 * tier))
    return sprite


def _palm(unit: float, rng: np.random.Generator, _light: Light) -> Sprite:
    sprite = Sprite(unit, 0.56, mirrored=rng.random() < 0.5)
    lean = rng.uniform(0.05, 0.2)
    trunk = [(lean * (t**2) - 0.08, 0.72 * t) for t in np.linspace(0, 1, 9)]
    sprite.line(trunk, 0.055, (150, 112, 72))
    for x, y in trunk[1::2]:
        sprite.line([(x - 0.03, y), (x + 0.03, y - 0.008)], 0.014, (112, 82, 54))
    crown_x, crown_y = trunk[-1]
    for angle in np.linspace(-0.35, math.pi + 0.35, 8) + rng.uniform(-0.1, 0.1, 8):
        reach, leaf = rng.uniform(0.3, 0.38), _toned((74, 150, 66), rng.uniform(0.75, 1.15))
        upper, lower = [], []
        for t in np.linspace(0, 1, 7):
            x = crown_x + reach * t * math.cos(angle)
            y = crown_y + reach * (t * math.sin(angle) * 0.75 - 0.75 * t**2) + 0.04
            thick = 0.05 * math.sin(math.pi * min(t + 0.12, 1))
            upper.append((x, y + 0.5 * thick))
            lower.append((x, y - thick))
        sprite.polygon([*upper, *reversed(lower)], leaf)
    for offset in (-0.03, 0.03):
        sprite.ellipse(crown_x + offset, crown_y - 0.01, 0.032, 0.032, (96, 66, 44))
    return sprite


def _sheep(unit: float, rng: np.random.Generator, _light: Light) -> Sprite:
    sprite = Sprite(unit, 0.82, 1.05, mirrored=rng.random() < 0.5)
    wool = _pick(rng, ((244, 238, 224), (244, 238, 224), (226, 214, 196), (92, 80, 74)))
    face = (58, 50, 50) if wool[0] > 200 else (220, 208, 192)
    for x in (-0.36, -0.2, 0.16, 0.32):
        sprite.line([(x, 0.4), (x, 0.01)], 0.09, _toned(face, 0.9))
    sprite.ellipse(-0.03, 0.56, 0.52, 0.31, _toned(wool, 0.93))
    for index, angle in enumerate(np.linspace(0, 2 * math.pi, 13)[:-1]):
        radius = 0.15 + 0.03 * (index % 2)
        sprite.ellipse(-0.03 + 0.45 * math.cos(angle), 0.57 + 0.24 * math.sin(angle), radius, radius, wool)
    for x, y in ((-0.25, 0.6), (0.02, 0.52), (0.18, 0.68), (-0.08, 0.74)):
        sprite.ellipse(x, y, 0.14, 0.11, _toned(wool, 1.04))
    sprite.ellipse(0.42, 0.78, 0.07, 0.045, face)
    sprite.ellipse(0.58, 0.70, 0.14, 0.19, face)
    sprite.ellipse(0.54, 0.88, 0.12, 0.09, wool)
    sprite.ellipse(0.61, 0.74, 0.045, 0.045, WHITE)
    sprite.ellipse(0.625, 0.74, 0.024, 0.024, INK)
    return sprite


def _car(unit: float, rng: np.random.Generator, light: Light) -> Sprite:
    sprite = Sprite(unit, 1.2, mirrored=rng.random() < 0.5)
    paint = _pick(rng, PAINTS)
    window = _toned(GLASS, 0.75) if light.dark else GLASS
    roof = [(-0.78, 0.5), (-0.6, 0.9), (-0.46, 0.98), (0.2, 0.98), (0.34, 0.9), (0.62, 0.5)]
    sprite.polygon(roof, _toned(paint, 0.96))
    sprite.polygon([(-0.62, 0.54), (-0.5, 0.85), (-0.12, 0.88), (-0.12, 0.54)], window)
    sprite.polygon([(-0.04, 0.54), (-0.04, 0.88), (0.2, 0.87), (0.46, 0.54)], window)
    body = [(-1.08, 0.16), (-1.12, 0.46), (-1.0, 0.56), (0.62, 0.56), (1.0, 0.48), (1.14, 0.38), (1.12, 0.16)]
    sprite.polygon(body, paint)
    sprite.box(-1.1, 1.12, 0.16, 0.22, _toned(paint, 0.7))
    sprite.line([(-0.08, 0.24), (-0.08, 0.53)], 0.02, _toned(paint, 0.75))
    sprite.line([(-0.26, 0.46), (-0.16, 0.46)], 0.03, _toned(paint, 0.6))
    sprite.ellipse(1.04, 0.4, 0.08, 0.07, WHITE)
    if light.dark:
        sprite.lamp(0.99, 1.1, 0.35, 0.45)
    sprite.box(-1.12, -1.05, 0.36, 0.46, (200, 40, 40))
    for x in (-0.66, 0.68):
        sprite.ellipse(x, 0.2, 0.21, 0.21, INK)
        sprite.ellipse(x, 0.2, 0.11, 0.11, (190, 194, 200))
        sprite.ellipse(x, 0.2, 0.04, 0.04, (90, 94, 100))
    return sprite


def _boat(unit: float, rng: np.random.Generator, _light: Light) -> Sprite:
    sprite = Sprite(unit, 0.5, mirrored=rng.random() < 0.5)
    hull, sail = _pick(rng, (*PAINTS, WHITE)), _pick(rng, (WHITE, WHITE, (240, 204, 150), (222, 90, 80)))
    sprite.line([(-0.02, 0.15), (-0.02, 0.99)], 0.025, WOOD)
    belly = [(0.02 + 0.36 * math.sin(math.pi * t) * (1 - 0.45 * t), 0.2 + 0.72 * t) for t in np.linspace(0, 1, 9)]
    sprite.polygon([*belly, (0.0, 0.94)], sail)
    for t in (0.3, 0.55):
        sprite.line([(0.0, 0.2 + 0.72 * t), belly[int(8 * t)]], 0.01, _toned(sail, 0.86))
    sprite.polygon([(-0.05, 0.22), (-0.05, 0.9), (-0.36, 0.24)], _toned(sail, 0.9))
    sprite.polygon([(-0.02, 0.99), (-0.02, 0.93), (0.11, 0.955)], _pick(rng, PAINTS))
    sprite.polygon([(-0.44, 0.19), (0.46, 0.2), (0.36, 0.02), (-0.3, 0.0), (-0.4, 0.08)], hull)
    sprite.line([(-0.43, 0.155), (0.445, 0.165)], 0.03, WHITE if hull != WHITE else PAINTS[2])
    return sprite


def _ball(unit: float, rng: np.random.Generator, _light: Light) -> Sprite:
    sprite = Sprite(unit, 0.54)
    first = _pick(rng, PAINTS)
    colors = (first, WHITE, PAINTS[(PAINTS.index(first) + 2) % len(PAINTS)], WHITE)
    sprite.ellipse(0, 0.5, 0.5, 0.5, WHITE)
    turn, panels = rng.uniform(0, 2 * math.pi), 8
    pole_x, pole_y = 0.16 * math.cos(turn), 0.5 + 0.16 * math.sin(turn)
    for panel in range(panels):  # from a pole off the middle to the rim
        angles = turn + 2 * math.pi * (panel + np.linspace(0, 1, 7)) / panels
        rim = [(0.5 * math.cos(angle), 0.5 + 0.5 * math.sin(angle)) for angle in angles]
        sprite.polygon([(pole_x, pole_y), *rim], colors[panel % len(colors)])
    sprite.ellipse(pole_x, pole_y, 0.07, 0.07, WHITE)
    return sprite


def _bird(unit: float, rng: np.random.Generator, _light: Light) -> Sprite:
    sprite = Sprite(unit, 1.15, mirrored=rng.random() < 0.5)
    feather = _pick(rng, ((240, 240, 240), (70, 74, 90), (88, 120, 176), (196, 84, 66)))
    lift = rng.uniform(0.75, 0.97)  # of the wing tips
    far_wing = [(0.05, 0.42), (0.5, lift + 0.02), (1.1, lift - 0.25), (0.55, lift - 0.14), (-0.2, 0.34)]
    sprite.polygon(far_wing, _toned(feather, 0.8))
    sprite.polygon([(-0.5, 0.3), (-0.95, 0.42), (-0.85, 0.3), (-0.98, 0.2)], _toned(feather, 0.9))
    sprite.ellipse(-0.08, 0.32, 0.5, 0.15, feather)
    sprite.ellipse(0.4, 0.4, 0.17, 0.15, feather)
    sprite.polygon([(0.53, 0.44), (0.74, 0.37), (0.53, 0.34)], (240, 168, 50))
    near_wing = [(0.12, 0.4), (-0.2, lift), (-0.75, lift - 0.12), (-0.38, lift - 0.18), (-0.3, 0.32)]
    sprite.polygon(near_wing, _toned(feather, 0.94))
    sprite.ellipse(0.45, 0.44, 0.035, 0.035, INK if feather[0] > 80 else WHITE)
    return sprite


def _balloon(unit: float, rng: np.random.Generator, _light: Light) -> Sprite:
    sprite = Sprite(unit, 0.4)
    first = rng.integers(len(PAINTS))
    colors = (PAINTS[first], WHITE if rng.random() < 0.5 else PAINTS[(first + 1) % len(PAINTS)])
    for x in (-0.06, 0.06):
        sprite.line([(x, 0.12), (2.2 * x, 0.3)], 0.01, INK)
    sprite.box(-0.07, 0.07, 0.0, 0.12, (150, 104, 60))
    sprite.box(-0.08, 0.08, 0.1, 0.13, (110, 74, 44))
    for index, width in enumerate((1.0, 0.78, 0.5, 0.2)):  # gores, the outermost first
        taper = [(-0.34 * width, 0.56), (-0.11 * width, 0.25), (0.11 * width, 0.25), (0.34 * width, 0.56)]
        sprite.polygon(taper, colors[index % 2])
        sprite.ellipse(0, 0.64, 0.36 * width, 0.35, colors[index % 2])
    return sprite


@dataclass(frozen=True)
class ThingKind:
    """How a kind of thing looks and where it stands."""

    draw: Callable[[float, np.random.Generator, Light], Sprite]  # from the unit in pixels
    size: float  # of the unit in the foreground, in parts of the picture's shorter side
    grounds: tuple[str, ...]  # names of the stuff that it stands on, swims on or flies before
    relief: float  # see `Sprite.shaded`
    texture: float = 0.02  # see `Sprite.shaded`


# A palm is a tree that grows on sand: one class, two rows.
THING_KINDS: tuple[tuple[str, ThingKind], ...] = (
    ("house", ThingKind(_house, 0.44, ("grass",), 0.25)),
    ("tree", ThingKind(_tree, 0.56, ("grass",), 0.9, 0.07)),
    ("tree", ThingKind(_palm, 0.56, ("sand",), 0.4, 0.04)),
    ("sheep", ThingKind(_sheep, 0.17, ("grass",), 1.0, 0.05)),
    ("car", ThingKind(_car, 0.16, ("road",), 0.5)),
    ("boat", ThingKind(_boat, 0.44, ("sea",), 0.5)),
    ("ball", ThingKind(_ball, 0.15, ("sand", "grass"), 1.5)),
    ("bird", ThingKind(_bird, 0.1, ("sky",), 0.5)),
    ("balloon", ThingKind(_balloon, 0.36, ("sky",), 1.3)),
)
