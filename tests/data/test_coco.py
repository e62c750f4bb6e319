"""Reading COCO panoptic folders."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from datasets import load_from_disk
from PIL import Image

from detr_panoptic.data.categories import COCO_PANOPTIC
from detr_panoptic.data.coco import find_coco_panoptic
from detr_panoptic.data.lazy_records import image_id_of
from detr_panoptic.data.reading import read_panoptic
from detr_panoptic.data.records import ids_to_rgb, measure_segments, segmentation_ids

CATEGORIES = [{"id": 200, "name": "sea", "isthing": 0}, {"id": 7, "name": "boat", "isthing": 1}]
MAPS = {31: np.array([[9, 9, 70_001], [0, 70_001, 70_001]]), 4: np.full((5, 7), 300)}
LABELS = {9: 7, 70_001: 200, 300: 7}


@pytest.fixture
def folder(tmp_path):
    """Two pictures, a grayscale one among them; images and annotations in different order."""
    for name in ("images", "panoptic"):
        (tmp_path / name).mkdir()
    annotations = []
    for image_id, ids in MAPS.items():
        mode = "L" if image_id == 4 else "RGB"
        Image.new(mode, ids.shape[::-1], image_id).save(tmp_path / "images" / f"{image_id}.png")
        Image.fromarray(ids_to_rgb(ids)).save(tmp_path / "panoptic" / f"map{image_id}.png")
        present = [i for i in np.unique(ids).tolist() if i]
        segments = measure_segments(
            ids, [{"id": i, "category_id": LABELS[i], "iscrowd": int(i == 9)} for i in present]
        )
        annotations.append({"image_id": image_id, "file_name": f"map{image_id}.png", "segments_info": segments})
    images = [{"id": image_id, "file_name": f"{image_id}.png"} for image_id in reversed(MAPS)]
    write(tmp_path, {"images": images, "annotations": annotations, "categories": CATEGORIES})
    return tmp_path


def write(folder, contents):
    (folder / "panoptic.json").write_text(json.dumps(contents))


def read(folder, **options):
    return read_panoptic(folder, data_format="coco-panoptic", **options)


def test_rows_are_matched_by_image_id_with_contiguous_labels(folder):
    dataset, categories = read(folder)
    assert categories.names == ("sea", "boat")
    assert list(dataset["image_id"]) == [31, 4]
    for row in dataset:
        assert np.array_equal(segmentation_ids(row["segmentation"]), MAPS[row["image_id"]])
        assert row["image"].size == row["segmentation"].size
        assert row["image"].mode == "RGB"
        assert measure_segments(MAPS[row["image_id"]], row["segments_info"]) == row["segments_info"]
    assert [(s["id"], s["label_id"], s["iscrowd"]) for s in dataset[0]["segments_info"]] == [(9, 1, 1), (70_001, 0, 0)]


def test_a_saved_dataset_needs_no_file_beside_it(folder, tmp_path):
    dataset, _ = read(folder)
    before = [np.asarray(row[key]) for row in dataset for key in ("image", "segmentation")]
    dataset.save_to_disk(tmp_path / "saved")
    shutil.rmtree(folder / "images")
    shutil.rmtree(folder / "panoptic")
    after = [np.asarray(row[key]) for row in load_from_disk(tmp_path / "saved") for key in ("image", "segmentation")]
    assert all(np.array_equal(first, second) for first, second in zip(before, after, strict=True))


def test_measures_that_the_file_does_not_give_are_made(folder):
    complete = list(read(folder).records)
    contents = json.loads((folder / "panoptic.json").read_text())
    first, second = contents["annotations"][0]["segments_info"]
    del first["area"], first["bbox"]
    second["area"] = 99.0  # what is there stays, also if it is wrong
    write(folder, contents)
    for streaming in (False, True):
        records, _ = read(folder, streaming=streaming)
        segments = next(iter(records))["segments_info"]
        assert segments[0] == complete[0]["segments_info"][0]
        assert segments[1] == {**complete[0]["segments_info"][1], "area": 99}


def test_images_may_be_named_by_text(folder):
    contents = json.loads((folder / "panoptic.json").read_text())
    names = {31: "000031", 4: "harbor"}
    for entry, key in [(entry, "id") for entry in contents["images"]] + [
        (entry, "image_id") for entry in contents["annotations"]
    ]:
        entry[key] = names[entry[key]]
    write(folder, contents)
    assert list(read(folder).records["image_id"]) == [31, image_id_of("harbor")]


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("annotations", 1, "image_id"), 555, r"panoptic\.json: .*entry 1: image 555"),
        (("annotations", 1, "image_id"), 31, r"panoptic\.json: .*entry 1: image 31"),
        (("images", 1, "id"), 4, r"panoptic\.json: .*entry 1: id 4"),
        (("images", 0, "id"), 4.5, r"panoptic\.json: .*entry 0: `id` .*4\.5"),
        (("annotations", 0, "file_name"), "gone.png", r"panoptic\.json, 31\.png: .*gone\.png"),
        (("annotations", 0, "file_name"), "../panoptic/map31.png", r"inside .*panoptic, got '\.\./panoptic"),
        (("images", 0, "file_name"), "gone.jpg", r"panoptic\.json, gone\.jpg: .*images/gone\.jpg"),
        (("images", 1, "file_name"), "C:\\31.png", r"inside .*images, got"),
        (("annotations", 0, "segments_info", 0, "category_id"), 12, r"31\.png: segment 9: .*\b12\b"),
        (("annotations", 0, "segments_info", 1, "id"), None, r"31\.png: .*`id`.*None"),
        (("annotations", 0, "segments_info", 1, "area"), 2.5, r"31\.png: segment 70001: `area` .*2\.5"),
        (("annotations", 0, "segments_info", 1, "bbox"), [0, 0, 1], r"segment 70001: `bbox` .*\[0, 0, 1\]"),
        (("categories",), None, r"panoptic\.json .*`categories`"),
    ],
)
def test_invalid_files_are_named(folder, place, value, message):
    contents = json.loads((folder / "panoptic.json").read_text())
    entry = contents
    for key in place[:-1]:
        entry = entry[key]
    entry[place[-1]] = value
    write(folder, contents)
    with pytest.raises(ValueError, match=message):
        read(folder)


@pytest.mark.parametrize("maps", ["annotations/panoptic_val2017", "panoptic_val2017"])
def test_the_official_layout_is_found(folder, maps):
    plain, _ = read(folder)
    (folder / "annotations").mkdir()
    (folder / "panoptic.json").rename(folder / "annotations" / "panoptic_val2017.json")
    (folder / "panoptic").rename(folder / maps)
    (folder / "images").rename(folder / "val2017")
    official, _ = read_panoptic(folder, split="val2017")
    assert list(official["segments_info"]) == list(plain["segments_info"])
    with pytest.raises(ValueError, match=r"panoptic\.json"):
        find_coco_panoptic(folder)


@pytest.mark.skipif("DETR_PANOPTIC_COCO" not in os.environ, reason="names no folder with coco_panoptic_100/")
def test_real_annotations_measure_as_they_say():
    dataset, categories = read(Path(os.environ["DETR_PANOPTIC_COCO"]) / "coco_panoptic_100")
    assert categories == COCO_PANOPTIC
    assert len(dataset) == 100
    assert sum(len(segments) for segments in dataset["segments_info"]) == 1111
    for row in dataset.select(range(0, 100, 7)):
        ids = segmentation_ids(row["segmentation"])
        assert row["image"].size == ids.shape[::-1]
        assert measure_segments(ids, row["segments_info"]) == row["segments_info"]
        assert set(np.unique(ids)) - {0} == {segment["id"] for segment in row["segments_info"]}
