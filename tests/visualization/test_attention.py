"""Attention over photographs: each pixel has the value of its cell, padding is left out, sheets show all maps."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detr_panoptic.visualization import ObjectAttention, attention_on_pixels, draw_attention
from detr_panoptic.visualization.attention import Panels, draw_heat


def attention(*, layers: int = 3, heads: int = 5, **overrides) -> ObjectAttention:
    """Of an image of 71 x 103 that the model saw as 142 x 206 on a canvas of 160 x 256, stride 32: 5 x 8 cells."""
    generator = np.random.default_rng(0)
    mask = np.zeros((71, 103), dtype=bool)
    mask[20:40, 30:60] = True
    values: Any = {
        "title": "boat 0.97",
        "subtitle": "query 3 of photo.jpg",
        "box": (30.0, 20.0, 60.0, 40.0),
        "mask": mask,
        "mask_maps": generator.dirichlet(np.ones(heads * 40)).reshape(heads, 5, 8),
        "cross_maps": generator.dirichlet(np.ones(40), size=(layers, heads)).reshape(layers, heads, 5, 8),
        "processed_size": (142, 206),
        "stride": 32,
    }
    return ObjectAttention(**(values | overrides))


def photograph() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(256, size=(71, 103, 3), dtype=np.uint8))


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def test_pixels_of_the_models_image_get_the_value_of_their_cell():
    maps = np.arange(40.0).reshape(5, 8)
    values = attention_on_pixels(maps, processed_size=(142, 206), stride=32, size=(142, 206))
    for y, x in ((0, 0), (31, 31), (32, 31), (31, 32), (141, 205), (127, 191), (128, 192)):
        assert values[y, x] == maps[y // 32, x // 32]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_an_image_of_any_scale_shows_the_cells_where_the_model_saw_them(data):
    """Against the definition: the cell that the middle of a pixel falls in, in whole numbers."""
    height, width, processed_height, processed_width = (data.draw(st.integers(1, 90)) for _ in range(4))
    stride = data.draw(st.sampled_from([3, 16, 32]))
    h, w = -(-processed_height // stride) + 1, -(-processed_width // stride) + 2  # a canvas with padding
    maps = np.random.default_rng(0).random((2, h, w))
    values = attention_on_pixels(
        maps, processed_size=(processed_height, processed_width), stride=stride, size=(height, width)
    )
    assert values.shape == (2, height, width)
    y, x = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    row, column = (
        (2 * y + 1) * processed_height // (2 * height * stride),
        (2 * x + 1) * processed_width // (2 * width * stride),
    )
    assert np.array_equal(values[:, y, x], maps[:, row, column])


def test_padding_is_not_shown():
    maps = np.zeros((5, 8))
    maps[:, 7] = 1  # the canvas beyond 206 columns
    assert not attention_on_pixels(maps, processed_size=(142, 206), stride=32, size=(71, 103)).any()


def test_heat_grows_with_attention_and_darkens_the_rest():
    gray = Image.new("RGB", (7, 5), (180, 180, 180))
    brightness = [pixels(draw_heat(gray, np.full((5, 7), value))).sum() for value in (0, 0.1, 0.3, 0.6, 1)]
    assert brightness == sorted(brightness)
    assert len(set(brightness)) == 5
    assert brightness[0] < pixels(gray).sum() / 2


@pytest.fixture
def drawn(monkeypatch) -> list[tuple[np.ndarray, float | None]]:
    """The maps that a sheet draws over the photograph, in their order, with their common peak."""
    maps = []
    heat = Panels.heat

    def spy(panels, values, columns, *, peak=None):
        maps.append((values, peak))
        return heat(panels, values, columns, peak=peak)

    monkeypatch.setattr(Panels, "heat", spy)
    return maps


def test_a_sheet_shows_every_map_of_the_mask_head_and_of_the_layer(drawn):
    of_object = attention()
    draw_attention(photograph(), of_object, layer=2)
    means = of_object.cross_maps.mean(1)
    expected = [of_object.mask_maps.sum(0), means[1], *of_object.mask_maps, *means, *of_object.cross_maps[1]]
    assert all(np.array_equal(values, wanted) for (values, _), wanted in zip(drawn, expected, strict=True))
    peaks = {peak for _, peak in drawn[2:7]}
    assert peaks == {of_object.mask_maps.max()}  # the heads of the mask head compete
    assert {peak for _, peak in drawn[7:]} == {None}


def test_the_sheet_of_a_head_shows_this_head_alone(drawn):
    of_object = attention()
    draw_attention(photograph(), of_object, layer=2, head=4)
    expected = [of_object.mask_maps[3], of_object.cross_maps[1, 3], *of_object.cross_maps[:, 3]]
    assert all(np.array_equal(values, wanted) for (values, _), wanted in zip(drawn, expected, strict=True))


def test_a_bright_cell_is_drawn_where_its_pixels_are():
    values = np.full((5, 8), 1e-9)
    values[1, 4] = 1
    picture = Panels(Image.new("RGB", (103, 71), (99, 99, 99)), attention()).heat(values, 4)
    bright = (pixels(picture)[..., 0] > 200) & (pixels(picture).min(-1) < 200)  # not the white outline
    ys, xs = np.nonzero(bright)
    scale_y, scale_x = picture.height / 142, picture.width / 206
    corners = np.array([ys.min(), ys.max() + 1, xs.min(), xs.max() + 1])
    assert np.abs(corners - [32 * scale_y, 64 * scale_y, 128 * scale_x, 160 * scale_x]).max() < 1.5


def test_layer_and_head_choose():
    image, small = photograph(), attention(layers=2, heads=2)
    sheets = {
        choice: pixels(draw_attention(image, small, layer=choice[0], head=choice[1]))
        for choice in ((None, None), (2, None), (1, None), (None, 1), (None, 2))
    }
    assert np.array_equal(sheets[None, None], sheets[2, None])  # the last layer is the default
    assert not np.array_equal(sheets[2, None], sheets[1, None])
    assert not np.array_equal(sheets[None, 1], sheets[None, 2])
    assert len(sheets[None, 1]) < len(sheets[None, None])  # less to show


@pytest.mark.parametrize(("choice", "most"), [({"layer": 4}, 3), ({"head": 6}, 5), ({"head": 0}, 5)])
def test_there_are_only_so_many(choice, most):
    with pytest.raises(ValueError, match=f"must be from 1 to {most}"):
        draw_attention(photograph(), attention(), **choice)


@pytest.mark.parametrize("size", [(103, 71), (71, 103), (500, 3), (3, 500)])
def test_sheets_of_any_format_hold_their_panels(size):
    width, height = size
    image = Image.new("RGB", size, (250, 10, 10))
    mask = np.zeros((height, width), dtype=bool)  # nothing may be left of an object
    sheet = draw_attention(image, attention(mask=mask, box=(0.0, 0.0, float(width), float(height))))
    assert sheet.width == 1400
    assert (pixels(sheet)[-5:] == 255).all()
    assert (pixels(sheet)[:, -5:] == 255).all()
