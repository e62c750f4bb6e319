"""Ids as colors, augmentation, and the image processor: maps, entries, boxes and pictures that stay together."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from detr_panoptic import DetrPanopticImageProcessor
from detr_panoptic.box_ops import cxcywh_to_xyxy
from detr_panoptic.data import LargeScaleJitter, RandomAugmentation
from detr_panoptic.data.records import ids_to_rgb
from detr_panoptic.segment_ids import MAX_ID, rgb_to_ids, segment_extents
from tests.data.datasets_on_disk import records
from tests.fuzz import examples, message_of
from tests.mask_boxes import masks_to_boxes

pytestmark = pytest.mark.fuzz
IDS = st.integers(0, MAX_ID)
SHAPES = st.tuples(st.integers(0, 6), st.integers(0, 6))


@examples(40)
@given(SHAPES.flatmap(lambda shape: arrays.arrays(np.int64, shape, elements=IDS)))
def test_ids_survive_colors(ids):
    colors = ids_to_rgb(ids)
    assert colors.shape == (*ids.shape, 3)
    np.testing.assert_array_equal(rgb_to_ids(colors), ids)
    np.testing.assert_array_equal(colors.astype(np.int64) @ [1, 256, 65536], ids)


@examples(20)
@given(SHAPES.flatmap(lambda s: arrays.arrays(np.uint8, (*s, 3))))
def test_colors_survive_ids(colors):
    np.testing.assert_array_equal(ids_to_rgb(rgb_to_ids(colors)), colors)


@examples(40)
@given(SHAPES.flatmap(lambda s: arrays.arrays(st.sampled_from([np.int64, np.uint8, np.float32, bool]), s)))
def test_what_is_no_id_is_an_error_that_says_so(values):
    message = message_of(lambda: ids_to_rgb(values), ValueError)
    is_valid = values.dtype.kind in "iu" and (not values.size or 0 <= values.min() <= values.max() <= MAX_ID)
    assert (message is None) == is_valid
    assert message is None or "`ids`" in message


@examples(40)
@given(SHAPES.flatmap(lambda shape: arrays.arrays(np.int64, shape, elements=st.integers(0, 4))))
def test_extents_are_those_of_masks(ids):
    found = segment_extents(ids)
    assert found.ids.tolist() == np.unique(ids).tolist()
    for segment_id, area, (x, y, width, height) in zip(*(part.tolist() for part in found), strict=True):
        rows, columns = np.nonzero(ids == segment_id)
        assert area == len(rows)
        assert [x, y, x + width, y + height] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


AUGMENTATIONS = st.builds(
    RandomAugmentation,
    st.lists(st.integers(1, 13), min_size=1, max_size=3),
    max_size=st.integers(14, 40),
    crop_scales=st.lists(st.integers(1, 17), min_size=1, max_size=2),
    crop_range=st.tuples(st.integers(1, 5), st.integers(5, 9)),
    flip_probability=st.floats(0, 1),
    crop_probability=st.floats(0, 1),
) | st.builds(
    LargeScaleJitter,
    st.integers(1, 30),
    scale_range=st.tuples(st.floats(0.05, 1), st.floats(1, 3)),
    flip_probability=st.floats(0, 1),
)


@examples(40)
@given(records(), AUGMENTATIONS, st.integers(0, 2**63 - 1))
def test_augmented_maps_and_segments_agree(made, augment, seed):
    for record in made:
        found = augment(record, seed)
        ids = found["segmentation"]
        assert found["image"].size == ids.shape[::-1]
        listed = [segment["id"] for segment in found["segments_info"]]
        assert set(np.unique(ids).tolist()) - {0} == set(listed)
        labels = {segment["id"]: segment["label_id"] for segment in record["segments_info"]}
        for segment in found["segments_info"]:
            assert segment["label_id"] == labels[segment["id"]]
            assert segment["area"] == (ids == segment["id"]).sum()
            (box,) = masks_to_boxes(torch.from_numpy(ids == segment["id"])[None]).tolist()
            x, y, width, height = segment["bbox"]
            assert [x, y, x + width, y + height] == box
        assert np.array_equal(augment(record, seed)["segmentation"], ids)


@examples(20)
@given(records(), st.integers(1, 24), st.integers(24, 60), st.booleans())
def test_a_batch_holds_what_each_image_gives_alone(made, shortest, longest, is_resized):
    processor = DetrPanopticImageProcessor(size={"shortest_edge": shortest, "longest_edge": longest})
    options = {"return_tensors": "pt", "do_resize": is_resized}
    batch = processor([record["image"] for record in made], annotations=made, **options)
    for index, record in enumerate(made):
        alone = processor(record["image"], annotations=record, **options)
        height, width = alone["pixel_values"].shape[-2:]
        assert torch.equal(batch["pixel_values"][index, :, :height, :width], alone["pixel_values"][0])
        assert not batch["pixel_values"][index, :, height:].any()
        assert not batch["pixel_values"][index, :, :, width:].any()
        mask = batch["pixel_mask"][index]
        assert mask.sum() == mask[:height, :width].sum() == height * width
        for name, value in alone["labels"][0].items():
            assert torch.equal(batch["labels"][index][name], value), name
        target = alone["labels"][0]
        scale = torch.tensor([width, height, width, height])
        boxes = masks_to_boxes(target["masks"]) if len(target["masks"]) else torch.zeros(0, 4)
        torch.testing.assert_close(cxcywh_to_xyxy(target["boxes"]) * scale, boxes, atol=1e-3, rtol=0)
        torch.testing.assert_close(target["area"], target["masks"].flatten(1).sum(1).float())
        assert target["masks"].sum(0).max() <= 1 if len(target["masks"]) else True


KINDS = st.sampled_from([np.uint8, np.uint16, np.int64, np.float32, bool])
ARRAYS = arrays.arrays(KINDS, arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5))


@examples(40)
@given(ARRAYS)
def test_any_array_is_an_image_or_refused(values):
    """Refused with what was expected; an image is three finite channels of its size."""
    processor, taken = DetrPanopticImageProcessor(), []
    message = message_of(lambda: taken.append(processor.process_image(values)), ValueError)
    if message is not None:
        assert "mage" in message
        return
    assert taken[0].ndim == 3
    assert taken[0].shape[0] == 3
    assert taken[0].dtype in (torch.uint8, torch.float32)


@examples(20)
@given(st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16"]), SHAPES)
def test_pictures_of_every_mode_and_size_are_images(mode, shape):
    height, width = (side + 1 for side in shape)
    pixels = DetrPanopticImageProcessor().process_image(Image.new(mode, (width, height)))
    assert pixels.shape == (3, height, width)
