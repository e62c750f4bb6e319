"""Colors of segments: a color per class, a shade of it per instance.

COCO's classes have COCO's own colors. Colors of other classes are computed from the label id alone, so that a class
has the same color in every picture. Hues step by the golden ratio around OKLCH, the polar form of the perceptual space
OKLab, so that each class gets a hue far from those before it. Lightness varies as well, because color-blind readers
confuse some hues.
OKLab and its matrices: Björn Ottosson, "A perceptual color space for image processing", 2020.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import count
from typing import Any

import numpy as np
from PIL import ImageColor

from ..data.categories import COCO_PANOPTIC

Color = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

GOLDEN_RATIO = (5**0.5 - 1) / 2
PLASTIC_NUMBER = 1.324717957244746  # the golden ratio's counterpart in two dimensions
FIRST_HUE = 0.70  # of a turn: label 0, often a person, is blue, which stands out from skin, grass and wood
CLASS_LIGHTNESS = (0.66, 0.80, 0.73)  # neighbors in hue (3, 5 or 8 ids apart) mostly differ in lightness
INSTANCE_LIGHTNESS = 0.28  # width of the band of lightness of the instances of one class
INSTANCE_HUE = 0.10  # of a turn: width of the band of hues, small enough to keep the class recognizable
DARKEST, BRIGHTEST = 0.26, 0.96  # lightness: a band that would leave this range is moved
DISTANCE = 0.06  # by this above or below the class's own lightness
UNUSED = "unused_"  # how the names of numbers without a class begin in converted checkpoints
CHROMA = 0.15

OKLAB_TO_LMS = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)
LMS_TO_LINEAR_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)

# "category id, color" from panoptic_coco_categories.json of cocodataset/panopticapi, in the order of that file.
_COCO_TABLE = """
1 dc143c, 2 770b20, 3 00008e, 4 0000e6, 5 6a00e4, 6 003c64, 7 005064, 8 000046, 9 0000c0, 10 faaa1e, 11 64aa1e,
13 dcdc00, 14 af74af, 15 fa001e, 16 a52a2a, 17 ff4dff, 18 00e2fc, 19 b6b6ff, 20 005200, 21 78a69d, 22 6e4c00,
23 ae39ff, 24 c76400, 25 480076, 27 ffb3f0, 28 007d5c, 31 d10097, 32 bcd0b6, 33 00dcb0, 34 ff63a4, 35 5c0049,
36 8581ff, 37 4eb4ff, 38 00e400, 39 aefff3, 40 2d59ff, 41 868667, 42 9194ae, 43 ffd0ba, 44 c5e2ff, 46 ab8601,
47 6d3f36, 48 cf8aff, 49 97005f, 50 09503d, 51 546933, 52 4a4169, 53 a6c466, 54 d0c3d2, 55 ff6d41, 56 008f95,
57 b300c2, 58 d1636a, 59 057900, 60 e3ffcd, 61 93bad0, 62 994501, 63 035fa1, 64 a3ff00, 65 7700aa, 67 00b6c7,
70 00a578, 72 b78258, 73 5f2000, 74 827287, 75 6e8185, 76 a64a76, 77 db8eb9, 78 4fd272, 79 b25a3e, 80 41460f,
81 7fa773, 82 3b696a, 84 8e6c2d, 85 c4ac00, 86 5f3650, 87 804cff, 88 c93901, 89 f6007a, 90 bfa2d0, 92 ffff80,
93 93d3cb, 95 966464, 100 a8abac, 107 9270c6, 109 d2aa64, 112 5c8859, 118 da58b8, 119 f18100, 122 d911ff,
125 7c4ab5, 128 464646, 130 ffe4ff, 133 9ad000, 138 c1005c, 141 4c5b71, 144 ffb4c3, 145 6a9ab0, 147 e6968c,
148 3c8fff, 149 804080, 151 5c5237, 154 fed47c, 155 494dae, 156 ffa062, 159 ffffff, 161 68546d, 166 a9a483,
168 e1c7ff, 171 89364a, 175 879edf, 176 07f6e7, 177 6bffc8, 178 3a2995, 180 b7798e, 181 ff4961, 184 6b8e23,
185 be9999, 186 928b8d, 187 4682b4, 188 86c79c, 189 d1e28c, 190 60246c, 191 606060, 192 40aa40, 193 98fb98,
194 d0e5e4, 195 cebaab, 196 98a140, 197 747000, 198 00728f, 199 66669c, 200 fa8dff
"""


COCO_COLORS: dict[str, Color] = {
    COCO_PANOPTIC.names[COCO_PANOPTIC.label_id(int(entry.split()[0]))]: ImageColor.getrgb("#" + entry.split()[1])[:3]
    for entry in _COCO_TABLE.split(",")
}
"""Red, green and blue, 0 to 255, of each class by its name."""


def class_colors(id2label: Mapping[int, str]) -> dict[int, Color]:
    """Returns a color for each class.

    Args:
        id2label: Name of each label id of a model or dataset. Pass all of them: COCO's colors are used if every class
            is one of COCO's, whatever its label id. Numbers without a class (`unused_12`) do not count.

    Examples:
        >>> class_colors({0: "person", 1: "sky-other-merged"})
        {0: (220, 20, 60), 1: (70, 130, 180)}
    """
    used = {name for name in id2label.values() if not name.startswith(UNUSED)}
    official = COCO_COLORS if used <= COCO_COLORS.keys() else {}
    return {label_id: official.get(name) or color_of(label_id) for label_id, name in id2label.items()}


def segment_colors(segments: Iterable[Mapping[str, Any]], id2label: Mapping[int, str]) -> list[Color]:
    """Returns a color per segment; those of a class get its shades by their `instance`, or in the order given."""
    of_class = class_colors(id2label)
    instances: defaultdict[int, Iterator[int]] = defaultdict(count)
    numbered = [(int(segment["label_id"]), segment.get("instance")) for segment in segments]
    return [shade(of_class[label], next(instances[label]) if n is None else n) for label, n in numbered]


@cache
def color_of(label_id: int) -> Color:
    """Returns the computed color of a class, given its label id, from 0."""
    if label_id < 0:
        raise ValueError(f"`label_id` must not be negative, got {label_id}.")
    return _oklch_to_rgb(CLASS_LIGHTNESS[label_id % len(CLASS_LIGHTNESS)], CHROMA, FIRST_HUE + label_id * GOLDEN_RATIO)


@cache
def shade(color: Color, instance: int) -> Color:
    """Returns the color of one of several segments of a class.

    Args:
        color: Of the class.
        instance: Number of the segment among those of its class in the picture; 0 has the class's own color.
    """
    if instance < 0:
        raise ValueError(f"`instance` must not be negative, got {instance}.")
    if instance == 0:
        return color
    # The R2 sequence (Martin Roberts, 2018): any number of points in the plane of lightness and hue stay far from each
    # other; shifted so that the first instance has the color of its class.
    lightness, chroma, hue = _rgb_to_oklch(color)
    half = INSTANCE_LIGHTNESS / 2
    lightness += (half + DISTANCE) * ((lightness < DARKEST + half) - (lightness > BRIGHTEST - half))
    lightness += INSTANCE_LIGHTNESS * ((0.5 + instance / PLASTIC_NUMBER) % 1 - 0.5)
    hue += INSTANCE_HUE * ((0.5 + instance / PLASTIC_NUMBER**2) % 1 - 0.5)
    return _oklch_to_rgb(lightness, chroma, hue)


def _oklch_to_rgb(lightness: float, chroma: float, hue: float) -> Color:
    """Converts OKLCH to 8-bit sRGB with as much of the chroma as sRGB holds; hue in turns."""
    angle = 2 * np.pi * hue
    for radius in np.linspace(chroma, 0, 21):
        lms = OKLAB_TO_LMS @ (lightness, radius * np.cos(angle), radius * np.sin(angle))
        linear = LMS_TO_LINEAR_RGB @ lms**3
        if linear.min() >= 0 and linear.max() <= 1:
            break
    linear = linear.clip(0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = (int(value) for value in np.rint(255 * srgb))
    return red, green, blue


def _rgb_to_oklch(color: Color) -> tuple[float, float, float]:
    """Converts 8-bit sRGB to lightness, chroma and hue in turns."""
    srgb = np.array(color) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    lms = np.linalg.solve(LMS_TO_LINEAR_RGB, linear)
    lightness, a, b = np.linalg.solve(OKLAB_TO_LMS, np.cbrt(lms))
    return float(lightness), float(np.hypot(a, b)), float(np.arctan2(b, a) / (2 * np.pi))
