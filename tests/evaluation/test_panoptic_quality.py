"""Panoptic quality: maps worked out by hand, relations and errors."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detr_panoptic.data.categories import Categories
from detr_panoptic.evaluation import PanopticQuality
from detr_panoptic.inference.prediction import Prediction, Segment

CATEGORIES = Categories(("cat", "dog", "sky"), (True, True, False), (7, 11, 13))
NONE = {"iou": [0, 0, 0], "tp": [0, 0, 0], "fp": [0, 0, 0], "fn": [0, 0, 0]}
SEEDS = st.integers(0, 2**31 - 1)


def segments(**category_of_id):
    return [{"id": int(i[1:]), "category_id": category_id} for i, category_id in category_of_id.items()]


def quality_of(*images):
    """Each image is a true map and its segments, a predicted map and its segments."""
    quality = PanopticQuality(CATEGORIES)
    for truth, truth_segments, prediction, prediction_segments in images:
        quality.update(
            {"segmentation": np.array(truth), "segments_info": truth_segments},
            {"segmentation": np.array(prediction), "segments_info": prediction_segments},
        )
    return quality


def sums_of(*image):
    rows = quality_of(image).compute().per_class.values()
    sums = {key: [getattr(row, key) for row in rows] for key in ("tp", "fp", "fn")}
    return {"iou": [row.sq * row.tp for row in rows], **sums}


def assert_near(result, expected):
    """Counts are the same, sums but for the order of adding."""
    for name, row in expected.per_class.items():
        assert vars(result.per_class[name]) == pytest.approx(vars(row), rel=1e-12), name
    assert vars(result.overall) == pytest.approx(vars(expected.overall), rel=1e-12)


def random_map(rng, num_segments=6, shape=(11, 13)):
    """A map of ids with void, and entries for those that occur; ids use all three bytes."""
    ids = np.concatenate([[0], rng.choice(2**24 - 1, num_segments, replace=False) + 1])
    segmentation = ids[rng.integers(len(ids), size=(4, 4))].repeat(4, 0).repeat(4, 1)[: shape[0], : shape[1]]
    present = np.unique(segmentation[segmentation > 0]).tolist()
    return segmentation, [{"id": i, "category_id": int(rng.choice(CATEGORIES.category_ids))} for i in present]


def test_perfect_by_hand():
    ids, entries = [[1, 1, 2, 2], [1, 1, 2, 2], [0, 0, 3, 3]], segments(_1=7, _2=7, _3=13)
    assert sums_of(ids, entries, ids, entries) == NONE | {"iou": [2, 0, 1], "tp": [2, 0, 1]}
    result = quality_of((ids, entries, ids, entries)).compute()
    assert (result.pq, result.overall.n) == (1.0, 2)
    assert [row.pq for row in result.per_class.values()] == [1.0, 0.0, 1.0]
    assert not result.per_class["dog"].occurs


def test_nothing_predicted_by_hand():
    ids = [[1, 1, 2, 2], [1, 1, 2, 2], [0, 0, 3, 3]]
    assert sums_of(ids, segments(_1=7, _2=7, _3=13), np.zeros((3, 4), int), []) == NONE | {"fn": [2, 0, 1]}


def test_mixed_by_hand():
    truth = [[1, 1, 1, 2], [1, 1, 1, 2], [0, 0, 0, 2]]
    prediction = [[4, 4, 6, 5], [4, 4, 6, 5], [4, 4, 6, 6]]
    image = (truth, segments(_1=7, _2=11), prediction, segments(_4=7, _5=11, _6=13))
    # 4 on 1: 4 pixels of 6 + 6 - 4, less 2 in void: 4 / 6. 5 on 2: 2 of 3. 6: 1 of 4 pixels in void, so it counts.
    assert sums_of(*image) == {"iou": [4 / 6, 2 / 3, 0], "tp": [1, 1, 0], "fp": [0, 0, 1], "fn": [0, 0, 0]}
    result = quality_of(image).compute()
    dog, sky = result.per_class["dog"], result.per_class["sky"]
    assert (dog.pq, dog.sq, dog.rq, dog.category_id, dog.is_thing) == (2 / 3, 2 / 3, 1.0, 11, True)
    assert (sky.pq, sky.sq, sky.rq, sky.is_thing) == (0.0, 0.0, 0.0, False)
    assert (result.pq, result.sq, result.rq) == ((4 / 6 + 2 / 3) / 3, (4 / 6 + 2 / 3) / 3, 2 / 3)
    assert vars(result.things) == {"pq": 2 / 3, "sq": 2 / 3, "rq": 1.0, "n": 2}
    assert vars(result.stuff) == {"pq": 0.0, "sq": 0.0, "rq": 0.0, "n": 1}


def test_the_result_prints_as_tables_in_percent():
    ids, entries = [[1, 1, 2]], segments(_1=7, _2=13)
    lines = str(quality_of((ids, entries, [[1, 1, 0]], segments(_1=7))).compute()).splitlines()
    assert lines[2].split() == ["|", "all", "|", "2", "|", "50.0", "|", "50.0", "|", "50.0", "|"]
    assert lines[-1].split() == [
        x for cell in ("sky", "stuff", "0.0", "0.0", "0.0", "0", "0", "1") for x in ("|", cell)
    ] + ["|"]
    assert not any("dog" in line for line in lines)


def test_half_is_no_match():
    sums = sums_of([[1, 1, 0, 0]], segments(_1=7), [[2, 0, 0, 0]], segments(_2=7))
    assert sums == NONE | {"fp": [1, 0, 0], "fn": [1, 0, 0]}


def test_another_class_is_no_match():
    sums = sums_of([[1, 1, 1]], segments(_1=7), [[1, 1, 1]], segments(_1=11))
    assert sums == NONE | {"fp": [0, 1, 0], "fn": [1, 0, 0]}


@pytest.mark.parametrize(("prediction", "wrong"), [([[2, 2, 2, 2, 2]], 0), ([[0, 2, 2, 2, 2]], 1)])
def test_a_prediction_mostly_in_void_is_not_wrong(prediction, wrong):
    assert sums_of([[0, 0, 0, 1, 1]], segments(_1=11), prediction, segments(_2=7))["fp"] == [wrong, 0, 0]


@pytest.mark.parametrize(("category_id", "wrong"), [(7, [0, 0, 0]), (11, [0, 1, 0])])
def test_a_crowd_excuses_its_own_class_and_is_neither_found_nor_missed(category_id, wrong):
    crowd = [{"id": 1, "category_id": 7, "iscrowd": 1}]
    sums = sums_of([[1, 1, 1, 0]], crowd, [[2, 2, 2, 0]], [{"id": 2, "category_id": category_id}])
    assert sums == NONE | {"fp": wrong}


def test_true_ids_without_an_entry_are_neither_void_nor_missed():
    assert sums_of([[9, 9, 9, 0]], [], [[2, 2, 2, 0]], segments(_2=7)) == NONE | {"fp": [1, 0, 0]}


@settings(max_examples=40)
@given(seed=SEEDS)
def test_a_map_against_itself_is_perfect(seed):
    image = random_map(np.random.default_rng(seed))
    result = quality_of((*image, *image)).compute()
    assert result.pq == (1.0 if image[1] else 0.0)
    assert sum(row.tp for row in result.per_class.values()) == len(image[1])


@settings(max_examples=40)
@given(seed=SEEDS)
def test_renaming_ids_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    truth, (prediction, entries) = random_map(rng, 2), random_map(rng, 2)
    new_ids = {entry["id"]: i for entry, i in zip(entries, rng.permutation(90) + 1, strict=False)}
    renamed = np.vectorize(lambda i: new_ids.get(i, 0))(prediction)
    renamed_entries = [{**entry, "id": int(new_ids[entry["id"]])} for entry in entries]
    before = quality_of((*truth, prediction, entries)).compute()
    after = quality_of((*truth, renamed, renamed_entries)).compute()
    assert_near(after, before)


@settings(max_examples=20)
@given(seed=SEEDS, cut=st.integers(0, 9))
def test_parts_add_up_to_the_bits_of_the_whole(seed, cut):
    rng = np.random.default_rng(seed)
    images: list[Any] = []
    for _ in range(9):
        ids, entries = random_map(rng, 3)
        moved = np.pad(ids, 1)[rng.integers(3) :, rng.integers(3) :][: ids.shape[0], : ids.shape[1]]
        images.append((ids, entries, moved, [entry for entry in entries if (moved == entry["id"]).any()]))
    whole, parts = quality_of(*images), (quality_of(*images[:cut]), quality_of(*images[cut:]))
    both = parts[0] + parts[1]
    assert both.compute() == whole.compute()
    assert (len(both), len(parts[0])) == (9, cut)  # and the parts are as they were
    # A map made of all images side by side counts the same, as long as no id occurs in two of them.
    sides = []
    for side in (0, 2):
        maps = [np.where(image[side] > 0, image[side] + i * 2**24, 0) for i, image in enumerate(images)]
        entries = [{**e, "id": e["id"] + i * 2**24} for i, image in enumerate(images) for e in image[side + 1]]
        sides += [np.hstack(maps), entries]
    assert_near(quality_of(sides).compute(), whole.compute())


def test_qualities_of_other_categories_do_not_add():
    other = PanopticQuality(Categories(("cat", "sky", "dog"), (True, False, True), (7, 13, 11)))
    with pytest.raises(ValueError, match="same categories"):
        quality_of() + other


def test_label_ids_tensors_and_pictures_count_as_category_ids_and_arrays():
    entries = [{"id": 1, "label_id": 1}, {"id": 2, "label_id": 2}]
    picture = np.zeros((1, 3, 3), np.uint8)
    picture[..., 0] = [[1, 1, 2]]
    expected = quality_of(([[1, 1, 2]], segments(_1=11, _2=13), [[3, 3, 0]], segments(_3=11))).compute()
    for truth in (torch.tensor([[1, 1, 2]]), Image.fromarray(picture)):
        quality = PanopticQuality(CATEGORIES)
        prediction = {"segmentation": torch.tensor([[3, 3, 0]]), "segments_info": [{"id": 3, "label_id": 1}]}
        quality.update({"segmentation": truth, "segments_info": entries}, prediction)
        assert quality.compute() == expected
    assert expected.per_class["dog"].tp == 1


def test_classes_of_a_prediction_are_matched_by_name_and_unknown_ones_become_void():
    truth = {"segmentation": np.array([[1, 1, 2, 2, 0]]), "segments_info": segments(_1=7, _2=13)}
    id2label = {0: "Sky", 1: "zebra", 2: "cat"}
    entries = [
        Segment(
            id=i,
            label_id=label,
            label=id2label[label],
            score=0.9,
            is_thing=True,
            area=1,
            bbox=(0, 0, 1, 1),
            category_id=9,
        )
        for i, label in ((1, 2), (2, 0), (3, 1))
    ]
    ids = np.array([[1, 1, 2, 2, 3]], np.int32)
    quality = PanopticQuality(CATEGORIES)
    quality.update(truth, Prediction(Image.new("RGB", (5, 1)), ids, entries, id2label))
    result = quality.compute()
    assert (result.pq, result.overall.n) == (1.0, 2)


def test_a_group_without_classes_has_quality_zero():
    result = quality_of().compute()
    assert (result.pq, result.sq, result.rq, result.overall.n, result.stuff.n) == (0.0, 0.0, 0.0, 0, 0)


@pytest.mark.parametrize(
    ("prediction", "entries", "message"),
    [
        ([[1, 5]], segments(_1=7), r"Segments \[5\] are in the prediction's map"),
        ([[1, 0]], segments(_1=7, _5=7), r"Segments \[5\] are in the prediction's `segments_info`"),
        ([[1, 1]], segments(_1=8), "Segment 1 has the unknown `category_id` 8"),
        ([[1, 1]], [{"id": 1, "label_id": 3}], "Segment 1 has the unknown `label_id` 3"),
        ([[1, 1, 1]], segments(_1=7), "the same shape"),
    ],
)
def test_errors_name_the_segment(prediction, entries, message):
    with pytest.raises(ValueError, match=message):
        quality_of(([[1, 1]], segments(_1=7), prediction, entries))
