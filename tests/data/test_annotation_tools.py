"""Labels go to annotation tools and come back: the same pixels, in the layouts that the tools export."""

import json
import logging
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle

from detr_panoptic import convert_data, read_panoptic
from detr_panoptic.data import segmentation_ids, write_coco_panoptic_dataset
from detr_panoptic.data.categories import Categories
from detr_panoptic.data.outlines import mask_polygons, mask_runs
from detr_panoptic.data.records import measure_segments

# pycocotools 2.0.11 with NumPy 2.4; it is gone when pycocotools' arrays take `copy`.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

CATEGORIES = Categories(("boat", "sea", "sky"), (True, False, False), (9, 155, 187))
SIZES = ((23, 31), (29, 19))
STUFF = ["sea", "Sky"]


def decoded(shape, height, width):
    codes = rle.frPyObjects(shape, height, width)
    return rle.decode(rle.merge(codes) if isinstance(codes, list) else codes).astype(bool)


@given(st.integers(0, 2**31 - 1))
def test_polygons_and_runs_have_the_pixels_of_the_mask(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 17, 2).tolist()
    mask = rng.random((height, width)) < rng.choice([0.2, 0.5, 0.8, 0.97])
    assert np.array_equal(decoded(mask_runs(mask), height, width), mask)
    if mask.any():
        assert np.array_equal(decoded(mask_polygons(mask), height, width), mask)


def test_holes_may_be_many():
    mask = np.ones((3, 2 * sys.getrecursionlimit() + 1), bool)
    mask[1, 1::2] = False
    assert np.array_equal(decoded(mask_polygons(mask), *mask.shape), mask)


def test_an_outline_has_its_corners_only():
    ring = np.ones((5, 7), bool)
    ring[2, 3] = False
    whole = np.ones((5, 7), bool)
    assert mask_polygons(whole) == [[0, 0, 7, 0, 7, 5, 0, 5]]
    assert mask_polygons(ring) == [[0, 0, 4, 0, 4, 2, 3, 2, 3, 3, 4, 3, 4, 5, 0, 5], [4, 0, 7, 0, 7, 5, 4, 5]]


@pytest.fixture(scope="module")
def labeled(tmp_path_factory) -> Path:
    """Boats, sea and sky in blocks; the sea has holes, the second image has no score and a crowd."""
    rng = np.random.default_rng(3)
    records = []
    for number, (height, width) in enumerate(SIZES):
        ids = rng.integers(0, 5, (height // 4 + 1, width // 4 + 1)).repeat(4, 0).repeat(4, 1)[:height, :width]
        labels = {1: 0, 2: 0, 3: 1, 4: 2}
        segments: list[dict] = [
            {"id": i, "label_id": label, "iscrowd": int(number == 1 and i == 2)} for i, label in labels.items()
        ]
        segments = measure_segments(ids, segments)
        if number == 0:
            segments = [{**segment, "score": 0.5 + segment["id"] / 10} for segment in segments]
        picture = Image.fromarray(rng.integers(256, size=(height, width, 3), dtype=np.uint8))
        records.append(
            {
                "image": picture,
                "image_id": number + 4,
                "file_name": f"{number}.png",
                "segmentation": ids,
                "segments_info": segments,
            }
        )
    folder = tmp_path_factory.mktemp("labeled") / "data"
    write_coco_panoptic_dataset(folder, records, CATEGORIES)
    return folder


def classes_of(folder, **options):
    """Per image the map of class names, and the segments as sets of pixels with their names and crowd flags."""
    data = read_panoptic(folder, **options)
    found = []
    for record in data.records:
        ids = segmentation_ids(record["segmentation"])
        segments = {
            ((ids == segment["id"]).tobytes(), data.categories.names[segment["label_id"]], segment["iscrowd"])
            for segment in record["segments_info"]
        }
        found.append(segments)
    return found, data.categories


@pytest.mark.parametrize("masks", ["polygons", "rle"])
def test_the_round_trip_loses_nothing(labeled, tmp_path, masks):
    convert_data(labeled, tmp_path / "tool", to="coco-instances", masks=masks, progress=False)
    expected, _ = classes_of(labeled)
    found, categories = classes_of(tmp_path / "tool")
    assert found == expected
    assert categories == CATEGORIES
    content = json.loads((tmp_path / "tool" / "instances.json").read_text())
    scores = [entry["attributes"].get("score") for entry in content["annotations"]]
    assert scores == [0.6, 0.7, 0.8, 0.9, None, None, None, None]
    for entry in content["annotations"]:
        assert isinstance(entry["segmentation"], dict if masks == "rle" or entry["iscrowd"] else list)
        assert entry.get("score") == entry["attributes"].get("score")
    for path in (labeled / "images").iterdir():
        assert path.read_bytes() == (tmp_path / "tool" / "images" / path.name).read_bytes()


def cvat(tool: Path, export: Path) -> None:
    """CVAT: its own ids, no `isthing`; painted masks, here every second one, are run lengths with `iscrowd` 1."""
    content = json.loads((tool / "instances.json").read_text())
    ids = {entry["id"]: number for number, entry in enumerate(content["categories"], start=1)}
    content["categories"] = [
        {"id": ids[entry["id"]], "name": entry["name"], "supercategory": ""} for entry in content["categories"]
    ]
    sizes = {entry["id"]: (entry["height"], entry["width"]) for entry in content["images"]}
    for entry in content["annotations"]:
        entry["category_id"] = ids[entry["category_id"]]
        entry["attributes"] = {"occluded": False} | entry["attributes"]
        if entry["id"] % 2 and isinstance(entry["segmentation"], list):
            shape = decoded(entry["segmentation"], *sizes[entry["image_id"]])
            entry |= {"segmentation": mask_runs(shape), "iscrowd": 1}
    content |= {"licenses": [{"name": "", "id": 0, "url": ""}], "info": {"year": ""}}
    (export / "annotations").mkdir(parents=True)
    (export / "annotations" / "instances_default.json").write_text(json.dumps(content))
    shutil.copytree(tool / "images", export / "images" / "default")


def label_studio(tool: Path, export: Path) -> None:
    """Label Studio: ids from 0, a prefix and `images/`, on Windows with a backslash, in file names; no crowds."""
    content = json.loads((tool / "instances.json").read_text())
    names = sorted(entry["name"] for entry in content["categories"])
    ids = {entry["id"]: names.index(entry["name"]) for entry in content["categories"]}
    content["categories"] = [{"id": number, "name": name} for number, name in enumerate(names)]
    (export / "images").mkdir(parents=True)
    for number, entry in enumerate(content["images"]):
        new = f"1f3c{number}a2b-{entry['file_name']}"
        shutil.copy(tool / "images" / entry["file_name"], export / "images" / new)
        entry["file_name"] = f"images\\{new}"
    for number, entry in enumerate(content["annotations"]):
        entry |= {"id": number, "category_id": ids[entry["category_id"]], "ignore": 0, "iscrowd": 0}
        del entry["attributes"]
    (export / "result.json").write_text(json.dumps(content))


def roboflow(tool: Path, export: Path) -> None:
    """Roboflow: the file beside the images, new names, and a category that groups the others."""
    content = json.loads((tool / "instances.json").read_text())
    ids = {entry["id"]: number for number, entry in enumerate(content["categories"], start=1)}
    content["categories"] = [{"id": 0, "name": "coast", "supercategory": "none"}] + [
        {"id": ids[entry["id"]], "name": entry["name"], "supercategory": "coast"} for entry in content["categories"]
    ]
    (export / "train").mkdir(parents=True)
    for entry in content["images"]:
        new = entry["file_name"].replace(".", "_png.rf.0c1f2e.")
        shutil.copy(tool / "images" / entry["file_name"], export / "train" / new)
        entry |= {"file_name": new, "license": 1, "date_captured": "2026-01-01", "extra": {"name": entry["file_name"]}}
    for entry in content["annotations"]:
        entry |= {"category_id": ids[entry["category_id"]], "iscrowd": 0}
        del entry["attributes"]
    (export / "train" / "_annotations.coco.json").write_text(json.dumps(content))


@pytest.mark.parametrize(("tool", "split"), [(cvat, None), (label_studio, None), (roboflow, "train")])
def test_exports_of_tools_are_read_back(labeled, tmp_path, tool, split):
    convert_data(labeled, tmp_path / "tool", to="coco-instances", progress=False)
    tool(tmp_path / "tool", tmp_path / "export")
    expected, _ = classes_of(labeled)
    if tool is not cvat:
        expected = [{(pixels, name, 0) for pixels, name, _ in image} for image in expected]
    found, categories = classes_of(tmp_path / "export", split=split, stuff=STUFF)
    assert found == expected
    assert set(zip(categories.names, categories.is_thing, strict=True)) == {
        ("boat", True),
        ("sea", False),
        ("sky", False),
    }
    _, without = classes_of(tmp_path / "export", split=split)
    assert all(without.is_thing)
    convert_data(tmp_path / "export", tmp_path / "back", split=split, stuff=STUFF, progress=False)
    assert classes_of(tmp_path / "back")[0] == expected


def write_export(folder, shapes):
    """One image of 8x6 pixels with polygons given as (category, box)."""
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (8, 6)).save(folder / "images" / "a.png")
    annotations = [
        {
            "id": number,
            "image_id": 1,
            "category_id": category,
            "iscrowd": 0,
            "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
        }
        for number, (category, (x0, y0, x1, y1)) in enumerate(shapes)
    ]
    categories = [{"id": 1, "name": "boat"}, {"id": 2, "name": "sea"}, {"id": 3, "name": "sky"}]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 6}],
        "annotations": annotations,
        "categories": categories,
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return folder


def test_overlapping_polygons_are_named_and_stuff_lies_below(tmp_path, caplog):
    """A small sea lies below a large boat, and two polygons of the sea are one segment."""
    folder = write_export(tmp_path, [(1, (0, 0, 6, 6)), (2, (4, 0, 8, 2)), (2, (4, 4, 8, 6)), (3, (6, 1, 8, 5))])
    with caplog.at_level(logging.INFO, "detr_panoptic.data"):
        record = read_panoptic(folder, stuff=STUFF).records[0]
    ids = segmentation_ids(record["segmentation"])
    assert (ids[:, :6] == 1).all()
    sea, sky = (segment["id"] for segment in record["segments_info"][1:])
    assert ids[:, 6:].tolist() == [[sea] * 2, [sea] * 2, [sky] * 2, [sky] * 2, [sea] * 2, [sea] * 2]
    assert "Image 1 (a.png): 12 pixels lie in several instances" in caplog.text


def test_a_class_that_is_its_own_supercategory_stays(tmp_path):
    folder = write_export(tmp_path, [(1, (0, 0, 6, 6))])
    content = json.loads((folder / "instances.json").read_text())
    for entry in content["categories"]:
        entry["supercategory"] = entry["name"]
    (folder / "instances.json").write_text(json.dumps(content))
    assert read_panoptic(folder).categories.names == ("boat", "sea", "sky")


def test_wrong_stuff_is_named(tmp_path, labeled):
    folder = write_export(tmp_path, [(1, (0, 0, 6, 6))])
    with pytest.raises(ValueError, match=r"`stuff` names 'skyy', .* boat, sea, sky"):
        read_panoptic(folder, stuff=["skyy"])
    with pytest.raises(ValueError, match=r"`stuff` applies to coco-instances only; coco-panoptic"):
        read_panoptic(labeled, stuff=["sky"])
    with pytest.raises(ValueError, match="`masks`"):
        convert_data(labeled, tmp_path / "out", to="coco-instances", masks="boxes")  # type: ignore[arg-type]
