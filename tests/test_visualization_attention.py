"""Attention on photographs: every pixel gets the value of its cell, padding is left out, and sheets show all maps."""

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
    values = {
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


def test_a_sheet_shows_every_map_of_the_mask_head_and_of_the_layer():
    names = [caption for row in Panels(photograph(), attention()).of_all_heads(2) for caption, _ in row.pictures]
    for number in range(1, 6):
        assert sum(name.startswith(f"head {number}: ") for name in names) == 2
    assert [name for name in names if name.startswith("layer")] == ["layer 1", "layer 2", "layer 3"]


def test_the_panel_of_a_head_is_its_own_map():
    """A single bright cell shows where its pixels are, in the panel of that head alone."""
    maps = np.full((5, 5, 8), 1e-9)
    maps[3, 1, 4] = 1
    rows = Panels(Image.new("RGB", (103, 71), (99, 99, 99)), attention(mask_maps=maps)).of_all_heads(1)
    heads = rows[1].pictures
    assert [caption for caption, _ in heads] == [
        f"head {i}: {share}" for i, share in zip(range(1, 6), ("0.0 %",) * 3 + ("100 %", "0.0 %"), strict=True)
    ]
    for number, (_, picture) in enumerate(heads):
        bright = pixels(picture)[..., 0] > 200
        bright &= pixels(picture).min(-1) < 200  # not the white outline
        if number != 3:
            assert not bright.any()
            continue
        ys, xs = np.nonzero(bright)
        scale_y, scale_x = picture.height / 142, picture.width / 206
        assert abs(ys.min() - 32 * scale_y) < 1.5
        assert abs(ys.max() + 1 - 64 * scale_y) < 1.5
        assert abs(xs.min() - 128 * scale_x) < 1.5
        assert abs(xs.max() + 1 - 160 * scale_x) < 1.5


def test_panels_of_the_decoder_are_those_of_the_chosen_layer_and_head():
    image, of_object = photograph(), attention()
    panels = Panels(image, of_object)
    _, _, layers, heads = panels.of_all_heads(2)
    assert heads.heading.endswith("layer 2")
    for number, (caption, picture) in enumerate(heads.pictures):
        values = of_object.cross_maps[1, number]
        assert caption == f"head {number + 1}: {100 * values.max():.{0 if values.max() >= 0.1 else 1}f} %"
        assert np.array_equal(pixels(picture), pixels(panels.heat(values, heads.columns)))
    for number, (_, picture) in enumerate(layers.pictures):
        mean = of_object.cross_maps[number].mean(0)
        assert np.array_equal(pixels(picture), pixels(panels.heat(mean, layers.columns)))
    overview, layers = panels.of_one_head(4)
    assert np.array_equal(pixels(overview.pictures[1][1]), pixels(panels.heat(of_object.mask_maps[3], 2)))
    for number, (_, picture) in enumerate(layers.pictures):
        expected = panels.heat(of_object.cross_maps[number, 3], layers.columns)
        assert np.array_equal(pixels(picture), pixels(expected))


def test_shares_of_the_heads_add_up():
    heads = Panels(photograph(), attention()).mask_head_row().pictures
    shares = [float(caption.split(": ")[1].removesuffix(" %")) for caption, _ in heads]
    assert abs(sum(shares) - 100) < 3


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
