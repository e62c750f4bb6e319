"""Attention maps for the page: the cells that lie on the picture, in the scales that are promised."""

import base64

import numpy as np
import pytest

from detr_panoptic.visualization import ObjectAttention
from detr_panoptic.visualization.attention_panel import attention_data

STRIDE, ROWS, COLUMNS = 32, 3, 5
PROCESSED = (70, 150)  # ends within the third row and the fifth column
HEADS, LAYERS = 2, 3


def attention(title: str) -> ObjectAttention:
    """Random maps over a canvas that is larger than the picture, with the highest values on the padding."""
    random = np.random.default_rng(0)
    mask_maps = random.random((HEADS, ROWS + 1, COLUMNS + 2)) / 100
    cross_maps = random.random((LAYERS, HEADS, ROWS + 1, COLUMNS + 2)) / 100
    mask_maps[0] *= 3
    mask_maps[:, ROWS:], cross_maps[..., COLUMNS:] = 9, 9
    return ObjectAttention(
        title,
        "",
        (0, 0, 1, 1),
        np.zeros((7, 15), bool),
        mask_maps,
        cross_maps,
        processed_size=PROCESSED,
        stride=STRIDE,
    )


@pytest.fixture
def data() -> dict:
    return attention_data(iter([attention("boat 0.97"), attention("tree 0.88")]))  # gone through once


def decoded(entry: dict) -> np.ndarray:
    return np.frombuffer(base64.b64decode(entry["values"]), np.uint8).reshape(ROWS, COLUMNS).astype(float)


def test_cells_are_where_the_picture_is(data):
    assert (data["rows"], data["columns"]) == (ROWS, COLUMNS)
    assert data["cell"] == [STRIDE / PROCESSED[1], STRIDE / PROCESSED[0]]
    assert [entry["title"] for entry in data["objects"]] == ["boat 0.97", "tree 0.88"]


def test_each_map_has_its_scale(data):
    expected = attention("")
    total, *rest = data["objects"][0]["maps"]
    layers, heads = rest[:LAYERS], rest[LAYERS:]
    assert len(heads) == HEADS
    on_picture = expected.mask_maps[:, :ROWS, :COLUMNS]
    summed = on_picture.sum(0)
    assert np.abs(decoded(total) - 255 * summed / summed.max()).max() <= 0.5
    for head, values in zip(heads, on_picture, strict=True):  # one scale
        assert np.abs(decoded(head) - 255 * values / on_picture.max()).max() <= 0.5
    for layer, values in zip(layers, expected.cross_maps.mean(1)[:, :ROWS, :COLUMNS], strict=True):  # each its own
        assert np.abs(decoded(layer) - 255 * values / values.max()).max() <= 0.5
    assert [entry["caption"].split(":")[0] for entry in heads] == ["mask head, head 1", "mask head, head 2"]


def test_no_attention_at_all_is_black_not_an_error():
    empty = attention("")
    empty.mask_maps[:], empty.cross_maps[:] = 0, 0
    assert not any(decoded(entry).any() for entry in attention_data([empty])["objects"][0]["maps"])
