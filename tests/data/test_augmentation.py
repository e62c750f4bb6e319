"""Augmentation: picture and map stay one, and the seed alone decides."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from detr_panoptic import DetrPanopticImageProcessor
from detr_panoptic.data.augmentation import (
    Augmentation,
    LargeScaleJitter,
    RandomAugmentation,
    build_augmentation,
    sample_seed,
)
from detr_panoptic.data.records import ids_to_rgb, measure_segments

HEIGHT, WIDTH = 61, 83
SMALL: Any = {"scales": (48, 64, 80), "max_size": 110, "crop_scales": (50, 61), "crop_range": (23, 41)}

BOTH = (RandomAugmentation(**SMALL), LargeScaleJitter(110, scale_range=(0.8, 2.0)))


@pytest.fixture
def record():
    """Picture and map of the same colors, in blocks of 14 by 11 pixels: what moves one and not the other is seen."""
    rows, columns = np.arange(HEIGHT)[:, None] // 14, np.arange(WIDTH)[None] // 11
    ids = 40 * (rows + 1) + 256 * 25 * (columns + 1)
    segments = [{"id": int(i), "label_id": n % 5, "iscrowd": 0} for n, i in enumerate(np.unique(ids))]
    picture = Image.fromarray(ids_to_rgb(ids))
    return {
        "image": picture,
        "image_id": 11,
        "segmentation": picture.copy(),
        "segments_info": measure_segments(ids, segments),
    }


@pytest.fixture
def pixel_record(record):
    """Every pixel is a segment of its own, so a map tells where each of its pixels was taken from."""
    ids = np.arange(1, HEIGHT * WIDTH + 1).reshape(HEIGHT, WIDTH)
    return record | {"segmentation": ids, "segments_info": []}


@pytest.mark.parametrize("augment", BOTH, ids=type)
def test_picture_and_map_move_together(record, augment):
    for seed in range(20):
        result = augment(record, seed)
        colors = ids_to_rgb(result["segmentation"]).astype(int)
        difference = np.abs(np.asarray(result["image"]).astype(int) - colors).max(-1)
        # Only the seams between blocks may differ, by the mixture: three quarters of a step after two resizes.
        assert (difference <= 2).mean() > 0.6
        assert difference.max() <= 30


def test_segments_are_measured_on_what_is_left(record):
    augment = RandomAugmentation(**SMALL, crop_probability=1)
    for seed in range(10):
        result = augment(record, seed)
        ids, counts = np.unique(result["segmentation"], return_counts=True)
        areas = {segment["id"]: segment["area"] for segment in result["segments_info"]}
        assert areas == dict(zip(ids.tolist(), counts.tolist(), strict=True))
        assert len(areas) < len(record["segments_info"])
        labels = {segment["id"]: segment["label_id"] for segment in record["segments_info"]}
        assert all(labels[segment["id"]] == segment["label_id"] for segment in result["segments_info"])


@pytest.mark.parametrize("augment", BOTH, ids=type)
def test_the_seed_alone_decides(record, augment):
    torch.manual_seed(1)
    first = [augment(record, seed)["image"].tobytes() for seed in range(8)]
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = [augment(record, seed)["image"].tobytes() for seed in reversed(range(8))][::-1]
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)
    assert len(set(first)) == 8


def test_the_record_stays_as_it_was(record):
    before = copy.deepcopy(record)
    RandomAugmentation(**SMALL, crop_probability=1, flip_probability=1)(record, 3)
    assert record["segments_info"] == before["segments_info"]
    assert all(np.array_equal(record[key], before[key]) for key in ("image", "segmentation"))


def test_sizes_are_of_the_scales(record):
    augment = RandomAugmentation(**SMALL, crop_probability=0)
    sizes = {augment(record, seed)["image"].size for seed in range(30)}
    # 80 would make the long side 108; the shape is 61 x 83.
    assert sizes == {(65, 48), (87, 64), (108, 80)}
    limited = RandomAugmentation(scales=(80,), max_size=100, crop_probability=0)(record, 0)
    assert limited["image"].size == (100, 74)


def test_a_crop_is_a_window_of_the_asked_size(pixel_record):
    augment = RandomAugmentation(
        scales=(90,), max_size=4000, crop_scales=(HEIGHT,), crop_range=(23, 41), crop_probability=1, flip_probability=0
    )
    windows = set()
    for seed in range(60):
        rows, columns = np.divmod(np.unique(augment(pixel_record, seed)["segmentation"]) - 1, WIDTH)
        rows, columns = np.unique(rows), np.unique(columns)
        assert np.ptp(rows) + 1 == len(rows)
        assert np.ptp(columns) + 1 == len(columns)
        windows.add((rows[0], len(rows), columns[0], len(columns)))
    tops, heights, lefts, widths = (set(values) for values in zip(*windows, strict=True))
    for lengths in (heights, widths):
        assert 23 <= min(lengths) <= 25
        assert 39 <= max(lengths) <= 41
    assert min(tops) < 4
    assert min(lefts) < 6
    assert max(top + height for top, height, _, _ in windows) > HEIGHT - 4
    assert max(left + width for _, _, left, width in windows) > WIDTH - 6


def test_a_crop_of_a_small_picture_is_the_whole(pixel_record):
    augment = RandomAugmentation(
        scales=(HEIGHT,), max_size=400, crop_scales=(HEIGHT,), crop_range=(200, 300), crop_probability=1
    )
    assert len(np.unique(augment(pixel_record, 5)["segmentation"])) == HEIGHT * WIDTH


def test_flip_and_resize_change_places(pixel_record):
    options: Any = {"scales": (48,), "max_size": 400, "crop_probability": 0}
    plain = RandomAugmentation(**options, flip_probability=0)(pixel_record, 0)
    flipped = RandomAugmentation(**options, flip_probability=1)(pixel_record, 0)
    # Holds for the nearest center only: the nearest corner is another one after mirroring.
    assert np.array_equal(flipped["segmentation"], plain["segmentation"][:, ::-1])
    mirrored = np.asarray(plain["image"]).astype(int)[:, ::-1]
    assert np.abs(np.asarray(flipped["image"]).astype(int) - mirrored).max() <= 1


@pytest.mark.parametrize("augment", BOTH, ids=type)
def test_the_largest_id_survives(record, augment):
    ids = np.full((HEIGHT, WIDTH), 2**24 - 1)
    ids[:, 40:] = 2**24 - 2
    result = augment(record | {"segmentation": ids, "segments_info": []}, 0)
    assert set(np.unique(result["segmentation"])) <= {2**24 - 1, 2**24 - 2}


def test_jitter_scales_and_cuts_to_its_square(record):
    sizes = set()
    for seed in range(60):
        result = LargeScaleJitter(70)(record, seed)
        assert result["image"].size == result["segmentation"].shape[::-1]
        sizes.add(result["image"].size)
    widths, heights = (sorted(lengths) for lengths in zip(*sizes, strict=True))
    # At a scale of 0.1 the longer side, 83, becomes 7; from 70 / 61 * 83 / 70 = 1.36 on both sides are cut.
    assert 7 <= widths[0] <= 14
    assert max(widths) == max(heights) == 70
    assert (70, 70) in sizes


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.7])
def test_jitter_keeps_the_scale_in_the_window(pixel_record, scale):
    """What is seen is as much of the picture as the scale says, from anywhere in it, in its own proportions."""
    jitter = LargeScaleJitter(70, scale_range=(scale, scale), flip_probability=0)
    factor, tops, lefts = scale * 70 / WIDTH, set(), set()
    for seed in range(40):
        segmentation = jitter(pixel_record, seed)["segmentation"]
        rows, columns = np.divmod(segmentation - 1, WIDTH)
        for places, axis, side in ((rows, 0, HEIGHT), (columns, 1, WIDTH)):
            expected = min(factor * side, 70)
            assert abs(segmentation.shape[axis] - expected) <= 1
            assert abs(np.ptp(places) + 1 - min(side, 70 / factor)) <= 1 + 1 / factor
        tops.add(rows.min())
        lefts.add(columns.min())
    if scale == 1.7:
        assert len(tops) > 10
        assert len(lefts) > 10
        assert abs(max(lefts) + 70 / factor - WIDTH) <= 3
    else:
        assert max(tops) <= 1
        assert max(lefts) <= 1


def test_jitter_finds_its_segments_anew(record):
    jitter = LargeScaleJitter(70, scale_range=(1.5, 2.0))
    for seed in range(10):
        result = jitter(record, seed)
        present = np.unique(result["segmentation"])
        assert [s["id"] for s in result["segments_info"]] == [
            s["id"] for s in record["segments_info"] if s["id"] in present
        ]
        assert result["segments_info"] == measure_segments(result["segmentation"], result["segments_info"])
        assert len(present) < len(record["segments_info"])


def mask_by_mask(ids, segments_info):
    """`measure_segments`, written out: a mask per segment."""
    for segment in segments_info:
        rows, columns = np.nonzero(ids == segment["id"])
        if len(rows):
            x, y = columns.min(), rows.min()
            bbox = [int(x), int(y), int(columns.max() + 1 - x), int(rows.max() + 1 - y)]
            yield {**segment, "area": len(rows), "bbox": bbox}


@given(st.integers(0, 2**31 - 1))
def test_one_pass_measures_what_a_mask_per_segment_does(seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, rng.integers(1, 9), rng.integers(0, 9, 2)).astype(rng.choice(["int32", "int64", "uint8"]))
    ids = ids.repeat(rng.integers(1, 5), 1) if seed % 2 else ids.T
    segments = [{"id": int(i), "label_id": 1} for i in rng.permutation(10)] + [{"id": 2, "label_id": 3}]
    assert measure_segments(ids, segments) == list(mask_by_mask(ids, segments))


def test_sample_seeds_differ_in_every_part():
    seeds = {sample_seed(*parts) for parts in np.ndindex(3, 4, 5)}
    assert len(seeds) == 60
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert sample_seed(1, 2, 3) == sample_seed(1, 2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": ()}, "`scales`"),
        ({"scales": (1400,)}, "`scales` .*1333.*1400"),
        ({"crop_scales": (0,)}, "`crop_scales`"),
        ({"crop_range": (9, 5)}, "`crop_range`"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        RandomAugmentation(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"size": 0}, "`size`"), ({"scale_range": (0, 1)}, "`scale_range`"), ({"scale_range": (2, 1)}, "`scale_range`")],
)
def test_bad_settings_of_jitter_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        LargeScaleJitter(**options)


def test_a_map_of_another_size_is_refused(record):
    with pytest.raises(ValueError, match=r"image 11 .*\(61, 83\).*\(61, 82\)"):
        RandomAugmentation(**SMALL)(record | {"segmentation": np.ones((61, 82), dtype=int)}, 0)


@pytest.mark.parametrize("augment", [LargeScaleJitter(30), RandomAugmentation((13,), max_size=30, crop_scales=(1,))])
def test_a_picture_that_becomes_one_pixel_wide_keeps_its_colors(augment):
    """PyTorch's resize of bytes mixes rows and channels there, or stops with an internal error.

    torchvision's rule for the sizes makes this picture 0 pixels wide.
    """
    record = {
        "image": Image.new("RGB", (3, 100), (250, 130, 10)),
        "image_id": 1,
        "segmentation": np.ones((100, 3), dtype=np.int64),
        "segments_info": [{"id": 1, "label_id": 0}],
    }
    pictures = [augment(record, seed)["image"] for seed in range(20)]
    assert any(picture.width == 1 for picture in pictures)
    assert all(picture.getcolors() == [(picture.width * picture.height, (250, 130, 10))] for picture in pictures)


def test_training_and_inference_read_a_picture_of_16_bits_alike(record):
    class Unchanged(Augmentation):
        flip_probability = 0

        def _transform(self, image, ids, _):
            return image, ids

    values = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    picture = Image.fromarray(values)
    assert picture.mode == "I;16"
    trained = Unchanged()(record | {"image": picture}, 0)["image"]
    read = DetrPanopticImageProcessor(do_resize=False)
    pixels = [read(image, return_tensors="pt")["pixel_values"] for image in (trained, picture)]
    assert torch.equal(*pixels)
    assert len(pixels[0].unique()) > 200, "it is scaled, not clipped"


@pytest.mark.parametrize("kind", ["none", "flip", "paper", "jitter"])
def test_augmentation_of_a_run_keeps_to_its_size(kind):
    augmentation: Any = build_augmentation(kind, short_side=400, long_side=666)
    if kind == "none":
        assert augmentation is None
    elif kind == "jitter":
        assert augmentation.size == 666
    else:
        assert max(augmentation.scales) == 400
        assert augmentation.max_size == 666
