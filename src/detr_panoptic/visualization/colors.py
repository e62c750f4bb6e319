"""Colors of segments, computed from the label id alone, so that a class looks the same in every picture.

Hues step by the golden ratio around OKLCH, the polar form of the perceptual space OKLab, so that each further class
gets a hue far from those before it. Lightness steps as well: hues that a color-blind reader confuses mostly differ in
brightness.
OKLab and its matrices: Björn Ottosson, "A perceptual color space for image processing", 2020.
"""

from functools import cache

import numpy as np

GOLDEN_RATIO = (5**0.5 - 1) / 2
PLASTIC_NUMBER = 1.324717957244746  # the golden ratio's counterpart in two dimensions
FIRST_HUE = 0.70  # of a turn: label 0, a person in COCO, is blue, which stands out from skin, grass and wood
CLASS_LIGHTNESS = (
    0.66,
    0.80,
    0.73,
)  # three levels, so that neighbors in hue (3, 5 or 8 ids apart) mostly differ in it
INSTANCE_LIGHTNESS = 0.28  # width of the band in which instances of one class differ
INSTANCE_HUE = 0.16  # of a turn, the same: small enough to keep the class recognizable
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


@cache
def color_of(label_id: int, instance: int = 0) -> tuple[int, int, int]:
    """The color of one segment: its hue tells the class, its shade the instance.

    Args:
        label_id: class of the segment, from 0.
        instance: number of the segment among those of its class in the picture, from 0.

    Returns:
        Red, green and blue, 0 to 255.
    """
    if label_id < 0 or instance < 0:
        raise ValueError(f"`label_id` and `instance` must not be negative, got {label_id} and {instance}.")
    # The R2 sequence (Martin Roberts, 2018): points that stay far from each other in the plane of lightness and hue,
    # however many; shifted so that the first instance has the plain color of its class.
    lightness = CLASS_LIGHTNESS[label_id % len(CLASS_LIGHTNESS)]
    lightness += INSTANCE_LIGHTNESS * ((0.5 + instance / PLASTIC_NUMBER) % 1 - 0.5)
    hue = FIRST_HUE + label_id * GOLDEN_RATIO
    hue += INSTANCE_HUE * ((0.5 + instance / PLASTIC_NUMBER**2) % 1 - 0.5)
    return _oklch_to_rgb(lightness, CHROMA, hue)


def _oklch_to_rgb(lightness: float, chroma: float, hue: float) -> tuple[int, int, int]:
    """OKLCH to 8-bit sRGB, with as much of the chroma as the screen can show; hue in turns."""
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
