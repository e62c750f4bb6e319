"""Panoptic quality of files, and the files themselves."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detr_panoptic.data.records import ids_to_rgb
from detr_panoptic.evaluation import evaluate_files
from detr_panoptic.evaluation.files import read_ids
from detr_panoptic.inference.prediction import write_segmentation

GOLDENS = Path(__file__).parents[1] / "goldens" / "panoptic_quality"
CATEGORIES = [{"id": 7, "name": "cat", "isthing": 1}, {"id": 11, "name": "dog", "isthing": 1}]


def test_quality_equals_the_official_evaluator_to_the_last_bit():
    expected = json.loads((GOLDENS / "expected.json").read_text())
    result = evaluate_files(GOLDENS / "truth.json", GOLDENS / "prediction.json")
    for name, group in (("All", result.overall), ("Things", result.things), ("Stuff", result.stuff)):
        assert vars(group) == expected[name]
    per_class = {
        str(row.category_id): {key: getattr(row, key) for key in ("pq", "sq", "rq")}
        for row in result.per_class.values()
    }
    assert per_class == expected["per_class"]


def test_coco_against_itself_is_perfect(coco_folder):
    result = evaluate_files(coco_folder / "panoptic.json", coco_folder / "panoptic.json")
    assert (result.pq, result.sq, result.rq, result.overall.n) == (1.0, 1.0, 1.0, 119)


def written(folder, maps):
    """Writes maps of one row of dogs as a panoptic dataset, image ids from 40."""
    (folder / "panoptic").mkdir(parents=True)
    annotations = []
    for image_id, ids in enumerate(maps, start=40):
        info = [{"id": i, "category_id": 11, "iscrowd": 0, "area": ids.count(i)} for i in sorted(set(ids) - {0})]
        annotations.append({"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": info})
        write_segmentation(folder / "panoptic" / f"{image_id}.png", np.array([ids]))
    (folder / "panoptic.json").write_text(json.dumps({"annotations": annotations, "categories": CATEGORIES}))
    return folder / "panoptic.json"


def test_folders_have_the_names_of_the_json_files_or_others(tmp_path):
    truth = written(tmp_path / "truth", [[1, 1, 70_000], [2, 0, 0]])
    prediction = written(tmp_path / "prediction", [[4, 4, 0], [9, 0, 0]])
    dog = evaluate_files(truth, prediction).per_class["dog"]
    assert (dog.pq, dog.sq, dog.tp, dog.fn) == (2 / 2.5, 1.0, 2, 1)
    folders = (tmp_path / "truth" / "panoptic", tmp_path / "truth" / "panoptic")
    assert evaluate_files(truth, truth, *folders).pq == 1.0


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


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16"])
def test_a_map_of_another_mode_is_an_error(tmp_path, mode):
    picture = Image.new(mode, (3, 2))
    picture.save(tmp_path / "map.png")
    with pytest.raises(ValueError, match=f"must be an RGB image, got mode {mode}"):
        read_ids(tmp_path / "map.png")


def test_a_map_that_is_not_there_is_another_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"map\.png"):
        read_ids(tmp_path / "map.png")


@pytest.mark.parametrize("shape", [(5, 7), (2100, 2003)])  # Pillow holds the large one in two blocks of memory
def test_ids_survive_a_file(tmp_path, shape):
    ids = np.random.default_rng(0).integers(2**24, size=(5, 7)).repeat(shape[0] // 5, 0).repeat(shape[1] // 7, 1)
    ids = np.pad(ids, [(0, length - short) for length, short in zip(shape, ids.shape, strict=True)])
    write_segmentation(tmp_path / "map.png", ids)
    read = read_ids(tmp_path / "map.png")
    assert read.dtype == np.int32
    assert np.array_equal(read, ids)


@pytest.mark.parametrize("contents", [b"", b"no picture"])
def test_a_map_that_is_no_picture_is_named(tmp_path, contents):
    (tmp_path / "map.png").write_bytes(contents)
    with pytest.raises(ValueError, match=r"Cannot read .*map\.png"):
        read_ids(tmp_path / "map.png")


def test_half_a_map_is_named(tmp_path):
    write_segmentation(tmp_path / "map.png", np.random.default_rng(0).integers(2**24, size=(31, 37)))
    whole = (tmp_path / "map.png").read_bytes()
    (tmp_path / "map.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"Cannot read .*map\.png"):
        read_ids(tmp_path / "map.png")
