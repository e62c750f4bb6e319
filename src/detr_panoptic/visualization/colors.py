"""Colors of segments: a color per class, a shade of it per instance.

COCO's classes have COCO's own colors. Colors of other classes are computed from the label id alone, so that a class
has the same color in every picture. Hues step by the golden ratio around OKLCH, the polar form of the perceptual space
OKLab, so that each class gets a hue far from those before it. Lightness varies as well, because color-blind readers
confuse some hues.
OKLab and its matrices: Björn Ottosson, "A perceptual color space for image processing", 2020.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np

from .coco_colors import COCO_COLORS

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
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
LMS_TO_LINEAR_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def class_colors(id2label: Mapping[int, str]) -> dict[int, Color]:
    """Returns a color for each class.

    Args:
        id2label: Name of each label id of a model or dataset. Pass all of them: COCO's colors are used if every class
            is one of COCO's, whatever its label id. Numbers without a class (`unused_12`) do not count.

    Example:
        >>> class_colors({0: "person", 1: "sky-other-merged"})
        {0: (220, 20, 60), 1: (70, 130, 180)}
    """
    used = [name for name in id2label.values() if not name.startswith(UNUSED)]
    if used and COCO_COLORS.keys() >= set(used):
        return {label_id: COCO_COLORS.get(name) or color_of(label_id) for label_id, name in id2label.items()}
    return {label_id: color_of(label_id) for label_id in id2label}


def segment_colors(segments: Iterable[Mapping[str, Any]], id2label: Mapping[int, str]) -> list[Color]:
    """Returns a color per segment; the segments of a class get its shades in the order given."""
    of_class = class_colors(id2label)
    seen: defaultdict[int, int] = defaultdict(int)
    colors = []
    for segment in segments:
        label_id = int(segment["label_id"])
        colors.append(shade(of_class[label_id], seen[label_id]))
        seen[label_id] += 1
    return colors


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
    if lightness < DARKEST + half:
        lightness += half + DISTANCE
    elif lightness > BRIGHTEST - half:
        lightness -= half + DISTANCE
    lightness += INSTANCE_LIGHTNESS * ((0.5 + instance / PLASTIC_NUMBER) % 1 - 0.5)
    hue += INSTANCE_HUE * ((0.5 + instance / PLASTIC_NUMBER**2) % 1 - 0.5)
    return _oklch_to_rgb(lightness, chroma, hue)


def _oklch_to_rgb(lightness: float, chroma: float, hue: float) -> Color:
    """Converts OKLCH to 8-bit sRGB with as much of the chroma as sRGB holds; hue in turns."""
    angle = 2 * np.pi * hue
    direction = np.array([0.0, np.cos(angle), np.sin(angle)])
    for share in np.linspace(1, 0, 21):
        lms = OKLAB_TO_LMS @ (np.array([lightness, 0.0, 0.0]) + share * chroma * direction)
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
