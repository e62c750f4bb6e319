"""Segment ids and their colors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detr_panoptic.data.records import ids_to_rgb
from detr_panoptic.segment_ids import MAX_ID, rgb_to_ids

SEEDS = st.integers(0, 2**31 - 1)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1)])
def test_ids_of_few_pixels(shape):
    ids = np.full(shape, MAX_ID - 513)
    assert np.array_equal(rgb_to_ids(ids_to_rgb(ids)), ids)


def test_ids_of_colors_that_lie_elsewhere_in_memory():
    colors = np.random.default_rng(3).integers(256, size=(5, 7, 4), dtype=np.uint8)
    expected = colors[..., :3].astype(int) @ [1, 256, 256**2]
    assert np.array_equal(rgb_to_ids(colors[..., :3]), expected)
    assert np.array_equal(rgb_to_ids(colors[::-1, ::2, :3]), expected[::-1, ::2])


@given(seed=SEEDS)
def test_ids_survive_the_colors(seed):
    ids = np.random.default_rng(seed).integers(2**24, size=(5, 7))
    assert np.array_equal(rgb_to_ids(ids_to_rgb(ids)), ids)
    red_green_blue = 1 + 256 * 2 + 256**2 * 3
    assert ids_to_rgb(np.array([[red_green_blue]])).tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize("ids", [[[-1]], [[2**24]], [[0.5]]])
def test_ids_that_have_no_color_are_errors(ids):
    with pytest.raises(ValueError, match="`ids` must"):
        ids_to_rgb(np.array(ids))


@pytest.mark.parametrize("rgb", [np.zeros((2, 3), np.uint8), np.zeros((2, 3, 4), np.uint8), np.zeros((2, 3, 3), int)])
def test_what_is_no_rgb_is_an_error(rgb):
    with pytest.raises(ValueError, match="`rgb` must be uint8"):
        rgb_to_ids(rgb)
