"""Panoptic quality: maps worked out by hand, relations, errors, and the files around it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detr_panoptic.evaluation import PanopticStats, evaluate_files, files, panoptic_stats
from detr_panoptic.evaluation.files import read_ids
from detr_panoptic.evaluation.panoptic_quality import panoptic_quality
from detr_panoptic.inference.results import coco_annotation, write_coco_panoptic, write_segmentation
from detr_panoptic.segment_ids import MAX_ID, ids_to_rgb, rgb_to_ids

CATEGORY_IDS = (7, 11, 13)
IS_THING = (True, True, False)
CATEGORIES = [
    {"id": category_id, "name": f"class {category_id}", "isthing": int(thing)}
    for category_id, thing in zip(CATEGORY_IDS, IS_THING, strict=True)
]
COCO = os.environ.get("DETR_PANOPTIC_COCO")
SEEDS = st.integers(0, 2**31 - 1)


def segments(**category_of_id):
    return [{"id": int(i[1:]), "category_id": category_id} for i, category_id in category_of_id.items()]


def stats_of(truth, truth_segments, prediction, prediction_segments):
    return panoptic_stats(np.array(truth), truth_segments, np.array(prediction), prediction_segments, CATEGORY_IDS)


def as_lists(stats):
    return stats.iou.tolist(), stats.tp.tolist(), stats.fp.tolist(), stats.fn.tolist()


def random_map(rng, num_segments=6, shape=(11, 13)):
    """A map of ids with void, and entries for those that occur; ids use all three bytes."""
    ids = np.concatenate([[0], rng.choice(2**24 - 1, num_segments, replace=False) + 1])
    segmentation = ids[rng.integers(len(ids), size=(4, 4))].repeat(4, 0).repeat(4, 1)[: shape[0], : shape[1]]
    present = np.unique(segmentation[segmentation > 0]).tolist()
    return segmentation, [{"id": i, "category_id": int(rng.choice(CATEGORY_IDS))} for i in present]


def assert_same(stats, other):
    assert as_lists(stats) == as_lists(other)


def test_perfect_by_hand():
    ids = [[1, 1, 2, 2], [1, 1, 2, 2], [0, 0, 3, 3]]
    stats = stats_of(ids, segments(_1=7, _2=7, _3=13), ids, segments(_1=7, _2=7, _3=13))
    assert as_lists(stats) == ([2.0, 0.0, 1.0], [2, 0, 1], [0, 0, 0], [0, 0, 0])
    assert stats.pq().nan_to_num(nan=-1).tolist() == [1.0, -1.0, 1.0]


def test_nothing_predicted_by_hand():
    ids = [[1, 1, 2, 2], [1, 1, 2, 2], [0, 0, 3, 3]]
    stats = stats_of(ids, segments(_1=7, _2=7, _3=13), np.zeros((3, 4), int), [])
    assert as_lists(stats) == ([0.0, 0.0, 0.0], [0, 0, 0], [0, 0, 0], [2, 0, 1])


def test_mixed_by_hand():
    truth = [[1, 1, 1, 2], [1, 1, 1, 2], [0, 0, 0, 2]]
    prediction = [[4, 4, 6, 5], [4, 4, 6, 5], [4, 4, 6, 6]]
    stats = stats_of(truth, segments(_1=7, _2=11), prediction, segments(_4=7, _5=11, _6=13))
    # 4 on 1: 4 pixels of 6 + 6 - 4, less 2 in void: 4 / 6. 5 on 2: 2 of 3. 6: 1 of 4 pixels in void, so it counts.
    assert as_lists(stats) == ([4 / 6, 2 / 3, 0.0], [1, 1, 0], [0, 0, 1], [0, 0, 0])
    quality = panoptic_quality(stats, category_ids=CATEGORY_IDS, is_thing=IS_THING)
    assert quality["per_class"][11] == {"pq": 2 / 3, "sq": 2 / 3, "rq": 1.0}
    assert quality["per_class"][13] == {"pq": 0.0, "sq": 0.0, "rq": 0.0}
    assert quality["All"] == {"pq": (4 / 6 + 2 / 3) / 3, "sq": (4 / 6 + 2 / 3) / 3, "rq": 2 / 3, "n": 3}
    assert quality["Things"] == {"pq": 2 / 3, "sq": 2 / 3, "rq": 1.0, "n": 2}
    assert quality["Stuff"] == {"pq": 0.0, "sq": 0.0, "rq": 0.0, "n": 1}


def test_half_is_no_match():
    stats = stats_of([[1, 1, 0, 0]], segments(_1=7), [[2, 0, 0, 0]], segments(_2=7))
    assert as_lists(stats) == ([0.0, 0.0, 0.0], [0, 0, 0], [1, 0, 0], [1, 0, 0])


def test_another_class_is_no_match():
    stats = stats_of([[1, 1, 1]], segments(_1=7), [[1, 1, 1]], segments(_1=11))
    assert as_lists(stats) == ([0.0, 0.0, 0.0], [0, 0, 0], [0, 1, 0], [1, 0, 0])


@pytest.mark.parametrize(("prediction", "wrong"), [([[2, 2, 2, 2, 2]], 0), ([[0, 2, 2, 2, 2]], 1)])
def test_a_prediction_mostly_in_void_is_not_wrong(prediction, wrong):
    truth = [[0, 0, 0, 1, 1]]
    stats = stats_of(truth, segments(_1=11), prediction, segments(_2=7))
    assert stats.fp.tolist() == [wrong, 0, 0]


@pytest.mark.parametrize(("category_id", "wrong"), [(7, [0, 0, 0]), (11, [0, 1, 0])])
def test_a_crowd_excuses_its_own_class_and_is_neither_found_nor_missed(category_id, wrong):
    crowd = [{"id": 1, "category_id": 7, "iscrowd": 1}]
    stats = stats_of([[1, 1, 1, 0]], crowd, [[2, 2, 2, 0]], [{"id": 2, "category_id": category_id}])
    assert as_lists(stats) == ([0.0, 0.0, 0.0], [0, 0, 0], wrong, [0, 0, 0])


def test_true_ids_without_an_entry_are_neither_void_nor_missed():
    stats = stats_of([[9, 9, 9, 0]], [], [[2, 2, 2, 0]], segments(_2=7))
    assert as_lists(stats) == ([0.0, 0.0, 0.0], [0, 0, 0], [1, 0, 0], [0, 0, 0])


@settings(deadline=None, max_examples=40)
@given(seed=SEEDS)
def test_a_map_against_itself_is_perfect(seed):
    segmentation, entries = random_map(np.random.default_rng(seed))
    stats = panoptic_stats(segmentation, entries, segmentation, entries, CATEGORY_IDS)
    assert stats.tp.sum() == len(entries)
    assert as_lists(stats)[0] == stats.tp.tolist()
    assert stats.fp.sum() == stats.fn.sum() == 0


@settings(deadline=None, max_examples=40)
@given(seed=SEEDS)
def test_renaming_ids_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    (truth, truth_entries), (prediction, prediction_entries) = random_map(rng, 2), random_map(rng, 2)
    new_ids = {entry["id"]: i for entry, i in zip(prediction_entries, rng.permutation(90) + 1, strict=False)}
    renamed = np.vectorize(lambda i: new_ids.get(i, 0))(prediction)
    renamed_entries = [{**entry, "id": int(new_ids[entry["id"]])} for entry in prediction_entries]
    before = panoptic_stats(truth, truth_entries, prediction, prediction_entries, CATEGORY_IDS)
    after = panoptic_stats(truth, truth_entries, renamed, renamed_entries, CATEGORY_IDS)
    torch.testing.assert_close(after.to_tensor(), before.to_tensor())


@settings(deadline=None, max_examples=20)
@given(seed=SEEDS)
def test_statistics_of_halves_add_up_and_cross_processes(seed):
    rng = np.random.default_rng(seed)
    images = [(*random_map(rng, 2), *random_map(rng, 2)) for _ in range(5)]
    each = [panoptic_stats(*image, CATEGORY_IDS) for image in images]
    whole = sum(each, start=PanopticStats.zeros(3))
    halves = sum(each[:2], start=PanopticStats.zeros(3)) + sum(each[2:], start=PanopticStats.zeros(3))
    torch.testing.assert_close(halves.to_tensor(), whole.to_tensor())
    assert_same(PanopticStats.from_tensor(whole.to_tensor()), whole)
    # A map made of all images side by side counts the same, as long as no id occurs in two of them.
    offsets = [np.where(image[0] > 0, image[0] + i * 2**24, 0) for i, image in enumerate(images)]
    entries = [{**entry, "id": entry["id"] + i * 2**24} for i, image in enumerate(images) for entry in image[1]]
    predictions = [np.where(image[2] > 0, image[2] + i * 2**24, 0) for i, image in enumerate(images)]
    guesses = [{**entry, "id": entry["id"] + i * 2**24} for i, image in enumerate(images) for entry in image[3]]
    wide = panoptic_stats(np.hstack(offsets), entries, np.hstack(predictions), guesses, CATEGORY_IDS)
    torch.testing.assert_close(wide.to_tensor(), whole.to_tensor())


def test_label_ids_and_tensors_count_as_category_ids_and_arrays():
    truth, prediction = torch.tensor([[1, 1, 2]]), torch.tensor([[3, 3, 0]], dtype=torch.int32)
    stats = panoptic_stats(
        truth,
        [{"id": 1, "label_id": 1}, {"id": 2, "label_id": 2}],
        prediction,
        [{"id": 3, "label_id": 1}],
        CATEGORY_IDS,
    )
    assert_same(stats, stats_of([[1, 1, 2]], segments(_1=11, _2=13), [[3, 3, 0]], segments(_3=11)))
    assert stats.tp.tolist() == [0, 1, 0]


def test_a_group_without_classes_has_quality_zero():
    quality = panoptic_quality(PanopticStats.zeros(3), category_ids=CATEGORY_IDS, is_thing=IS_THING)
    assert quality["All"] == quality["Stuff"] == {"pq": 0.0, "sq": 0.0, "rq": 0.0, "n": 0}


@pytest.mark.parametrize(
    ("prediction", "entries", "message"),
    [
        ([[1, 5]], segments(_1=7), r"Segments \[5\] are in the prediction's map"),
        ([[1, 0]], segments(_1=7, _5=7), r"Segments \[5\] are in the prediction's `segments_info`"),
        ([[1, 1]], segments(_1=8), "Segment 1 has the unknown `category_id` 8"),
        ([[1, 1]], [{"id": 1, "label_id": 3}], "Segment 1 has the unknown `label_id` 3"),
        ([[1, 1, 1]], segments(_1=7), "must have one shape"),
    ],
)
def test_errors_name_the_segment(prediction, entries, message):
    with pytest.raises(ValueError, match=message):
        stats_of([[1, 1]], segments(_1=7), prediction, entries)


def written(folder, maps):
    """Write two-pixel maps of things as a panoptic data set, image ids from 40."""
    results = []
    for image_id, ids in enumerate(maps, start=40):
        info = [{"id": i, "label_id": 1, "score": 0.5, "area": ids.count(i)} for i in sorted(set(ids) - {0})]
        annotation = coco_annotation(
            info, category_ids=CATEGORY_IDS, stuff_label_ids=[2], image_id=image_id, file_name=f"{image_id}.png"
        )
        results.append((torch.tensor([ids], dtype=torch.int32), annotation))
    return write_coco_panoptic(folder, results, categories=CATEGORIES)


def test_written_predictions_are_read_by_the_evaluator(tmp_path):
    truth = written(tmp_path / "truth", [[1, 1, 70_000], [2, 0, 0]])
    prediction = written(tmp_path / "prediction", [[4, 4, 0], [9, 0, 0]])
    assert rgb_to_ids(Image.open(tmp_path / "truth" / "panoptic" / "40.png")).tolist() == [[1, 1, 70_000]]
    first = json.loads(prediction.read_text())["annotations"][0]["segments_info"]
    assert first == [{"id": 4, "category_id": 11, "isthing": 1, "iscrowd": 0, "area": 2, "score": 0.5}]
    assert evaluate_files(truth, prediction)["per_class"][11] == {"pq": 2 / 2.5, "sq": 1.0, "rq": 2 / 2.5}
    folders = (tmp_path / "truth" / "panoptic", tmp_path / "truth" / "panoptic")
    assert evaluate_files(truth, truth, *folders)["All"] == {"pq": 1.0, "sq": 1.0, "rq": 1.0, "n": 1}


def test_label_ids_are_category_ids_where_none_are_given():
    info = [{"id": 1, "label_id": 2, "score": 0.5, "area": 2}]
    annotation = coco_annotation(info, category_ids=None, stuff_label_ids=[2], image_id=1, file_name="1.png")
    assert [(s["category_id"], s["isthing"]) for s in annotation["segments_info"]] == [(2, 0)]


def test_a_missing_prediction_names_the_image(tmp_path):
    truth, prediction = written(tmp_path / "a", [[1, 1], [2, 0]]), written(tmp_path / "b", [[1, 1]])
    with pytest.raises(ValueError, match=r"image with id 41 \(1 missing\) in .*b/panoptic\.json"):
        evaluate_files(truth, prediction)


def test_a_broken_prediction_names_image_and_file(tmp_path):
    truth, prediction = written(tmp_path / "a", [[1, 1], [2, 0]]), written(tmp_path / "b", [[1, 1], [2, 0]])
    Image.fromarray(ids_to_rgb(np.array([[3, 2]]))).save(tmp_path / "b" / "panoptic" / "41.png")
    with pytest.raises(ValueError, match=r"Image 41 \(.*b/panoptic/41\.png\): Segments \[3\]"):
        evaluate_files(truth, prediction)


def test_a_map_that_is_no_rgb_image_is_an_error(tmp_path):
    truth, prediction = written(tmp_path / "a", [[1, 1]]), written(tmp_path / "b", [[1, 1]])
    Image.fromarray(np.ones((1, 2), np.uint8)).save(tmp_path / "b" / "panoptic" / "40.png")
    with pytest.raises(ValueError, match=r"40\.png must be an RGB image, got mode L"):
        evaluate_files(truth, prediction)


@pytest.fixture(params=["kornia-rs", "Pillow"])
def decoder(request, monkeypatch):
    """Either decoder, if it is there."""
    if request.param == "Pillow":
        monkeypatch.setattr(files, "read_image_png_u8", None)
    elif files.read_image_png_u8 is None:
        pytest.skip("kornia-rs, the extra fast-png, is not installed")
    return request.param


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16"])
def test_a_map_of_another_mode_is_an_error(tmp_path, mode):
    picture = Image.new(mode, (3, 2))
    picture.save(tmp_path / "map.png")
    with pytest.raises(ValueError, match=f"must be an RGB image, got mode {mode}"):
        read_ids(tmp_path / "map.png")


@pytest.mark.usefixtures("decoder")
def test_a_map_that_is_not_there_is_another_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"map\.png"):
        read_ids(tmp_path / "map.png")


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("shape", [(5, 7), (2100, 2003)])  # Pillow holds the large one in two blocks of memory
def test_ids_survive_a_file(tmp_path, shape):
    ids = np.random.default_rng(0).integers(2**24, size=(5, 7)).repeat(shape[0] // 5, 0).repeat(shape[1] // 7, 1)
    ids = np.pad(ids, [(0, length - short) for length, short in zip(shape, ids.shape, strict=True)])
    write_segmentation(tmp_path / "map.png", ids)
    read = read_ids(tmp_path / "map.png")
    assert read.dtype == np.int32
    assert np.array_equal(read, ids)


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("contents", [b"", b"no picture"])
def test_a_map_that_is_no_picture_is_named(tmp_path, contents):
    (tmp_path / "map.png").write_bytes(contents)
    with pytest.raises(ValueError, match=r"Cannot read .*map\.png"):
        read_ids(tmp_path / "map.png")


@pytest.mark.usefixtures("decoder")
def test_half_a_map_is_named(tmp_path):
    write_segmentation(tmp_path / "map.png", np.random.default_rng(0).integers(2**24, size=(31, 37)))
    whole = (tmp_path / "map.png").read_bytes()
    (tmp_path / "map.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"Cannot read .*map\.png"):
        read_ids(tmp_path / "map.png")


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


@pytest.mark.skipif(COCO is None, reason="DETR_PANOPTIC_COCO does not point to a folder with coco_panoptic_100")
def test_coco_against_itself_is_perfect():
    truth = Path(str(COCO)) / "coco_panoptic_100" / "panoptic.json"
    quality = evaluate_files(truth, truth)
    assert quality["All"] == {"pq": 1.0, "sq": 1.0, "rq": 1.0, "n": 119}
