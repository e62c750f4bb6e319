"""Sheets: every picture keeps its pixels and its place."""

import numpy as np
import pytest
from PIL import Image

from detr_panoptic.visualization import stack

COLORS = [(200, 0, 0), (0, 150, 0), (0, 0, 180), (90, 90, 0), (0, 70, 90)]


def pictures() -> list[Image.Image]:
    """Of 11 x 7, 13 x 7, and so on."""
    return [Image.new("RGB", (11 + 2 * i, 7 + i), color) for i, color in enumerate(COLORS)]


@pytest.mark.parametrize("captions", [None, list("abcde")])
@pytest.mark.parametrize("columns", [1, 2, 3, 7])
def test_each_picture_is_there_once_and_whole_and_nothing_else(columns, captions):
    sheet = np.asarray(stack(pictures(), columns=columns, captions=captions, gap=3))
    for picture, color in zip(pictures(), COLORS, strict=True):
        ys, xs = np.nonzero((sheet == color).all(-1))
        assert (np.ptp(xs) + 1, np.ptp(ys) + 1) == picture.size
        assert len(xs) == picture.width * picture.height


def test_rows_and_columns_are_as_large_as_their_largest_picture():
    assert stack(pictures(), columns=2, gap=3).size == (19 + 3 + 17, 8 + 3 + 10 + 3 + 11)


def test_the_order_is_that_of_reading():
    sheet = np.asarray(stack(pictures(), columns=2, gap=3))
    places = [np.argwhere((sheet == color).all(-1))[0].tolist() for color in COLORS]
    assert places == [[0, 0], [0, 22], [11, 0], [11, 22], [24, 0]]


def test_a_caption_stands_above_its_picture_and_is_cut_to_its_width():
    white = [Image.new("RGB", (60, 40), "white"), Image.new("RGB", (60, 40), "white")]
    sheet = np.asarray(stack(white, columns=2, captions=["short", "a caption that is much too long"], gap=9))
    ink = np.all(sheet < 100, axis=-1)
    assert not ink[-40:].any()
    assert ink[:-40, :60].any()
    assert not ink[:, 60:69].any()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"pictures": []}, "`pictures`"),
        ({"columns": 0}, "`columns`"),
        ({"captions": ["one"]}, "`captions`"),
    ],
)
def test_arguments_are_checked(arguments, name):
    with pytest.raises(ValueError, match=name):
        stack(**({"pictures": pictures()} | arguments))
