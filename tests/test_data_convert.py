"""`detr-panoptic data convert`."""

import json

import numpy as np
import pytest
from PIL import Image

from detr_panoptic.cli import main
from detr_panoptic.data import read_panoptic
from tests import data_folders
from tests.data_folders import CATEGORIES, same_records, save, write_json


@pytest.fixture
def coco(tmp_path):
    return data_folders.coco_panoptic(tmp_path / "coco")


def convert(*arguments):
    return main(["data", "convert", *map(str, arguments)])


@pytest.mark.parametrize("target", ["coco-panoptic", "dataset", "parquet"])
def test_every_target_reads_as_the_source(target, coco, tmp_path, capsys):
    assert convert(coco, tmp_path / "out", "--to", target) == 0
    records, categories = read_panoptic(tmp_path / "out")
    assert categories == CATEGORIES
    assert same_records(read_panoptic(coco).records, records)
    crowds = [segment["iscrowd"] for segments in records["segments_info"] for segment in segments]
    output = capsys.readouterr().out
    expected = f"Images: 3, segments: {len(crowds)}, crowds among them: {sum(crowds)}, classes used: 3 of 3."
    assert sum(crowds) > 0
    assert expected in output
    assert list(tmp_path.glob("out.*")) == []


def test_options_of_the_source_reach_the_reader(coco, tmp_path):
    coco.rename(tmp_path / "night")
    assert convert(tmp_path, tmp_path / "out", "--split", "night", "--limit", "2", "--to", "parquet") == 0
    assert [path.name for path in (tmp_path / "out/data").iterdir()] == ["night-00000-of-00001.parquet"]
    assert len(read_panoptic(tmp_path / "out").records) == 2
    assert convert("scenes", tmp_path / "scenes", "--limit", "2") == 0
    assert len(read_panoptic(tmp_path / "scenes").records) == 2


def test_a_folder_that_holds_something_is_left_alone(coco, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert convert(coco, tmp_path / "out") == 2
    assert "must be a folder that is empty or does not exist" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    assert convert(coco, tmp_path / "empty") == 0


@pytest.mark.parametrize(("broken", "lost"), [("images/31.jpg", 20), ("panoptic/map31.png", 40)])
def test_a_broken_file_stops_or_is_left_out_and_listed(broken, lost, coco, tmp_path, capsys):
    whole = read_panoptic(coco).records.to_list()
    path = coco / broken
    path.write_bytes(path.read_bytes()[:-lost])  # bytes; the head is whole
    assert convert(coco, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "31.jpg: " in error
    assert "(`--on-error skip` leaves such images out)" in error
    assert list(tmp_path.glob("out*")) == []
    assert convert(coco, tmp_path / "out", "--on-error", "skip") == 0
    assert "Left out, as they cannot be read: 1.\n  31.jpg: " in capsys.readouterr().out
    records, _ = read_panoptic(tmp_path / "out")
    assert list(records["image_id"]) == [row["image_id"] for row in whole if row["image_id"] != 31]


@pytest.mark.parametrize("missing", ["images/31.jpg", "panoptic/map31.png"])
def test_a_missing_file_stops_or_is_left_out_and_listed(missing, coco, tmp_path, capsys):
    (coco / missing).unlink()
    assert convert(coco, tmp_path / "out") == 2
    assert f"expected the file {coco / missing}, which does not exist" in capsys.readouterr().err
    assert convert(coco, tmp_path / "out", "--on-error", "skip") == 0
    assert f"31.jpg: {coco / missing}: No such file" in capsys.readouterr().out
    assert 31 not in read_panoptic(tmp_path / "out").records["image_id"]


def test_nothing_but_broken_files_makes_no_dataset(coco, tmp_path, capsys):
    for path in (coco / "panoptic").iterdir():
        path.write_bytes(b"broken")
    assert convert(coco, tmp_path / "out", "--on-error", "skip") == 2
    assert "no image of SOURCE can be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [1, 100])
def test_a_broken_map_is_told_from_a_broken_picture(tmp_path, capsys, size):
    folder = data_folders.coco_panoptic(tmp_path / "data")
    broken = folder / "panoptic" / "map31.png"
    noise = np.random.default_rng(0).integers(256, size=(40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(broken)
    broken.write_bytes(broken.read_bytes()[:size])
    assert convert(folder, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert f"Image 31 (31.jpg): its map {broken} is broken" in error
    assert "BytesIO" not in error


def test_what_a_decoder_refuses_is_left_out_too(tmp_path, capsys):
    folder = tmp_path / "semantic"
    for name, value in (("good", 3), ("odd", 4)):
        save(folder / "images" / f"{name}.jpg", Image.new("RGB", (5, 3)))
        save(folder / "maps" / f"{name}.png", Image.new("L", (5, 3), value))
    write_json(folder / "categories.json", [{"id": 3, "name": "sea"}])
    assert convert(folder, tmp_path / "out") == 2
    assert "odd.jpg: Image" in capsys.readouterr().err
    assert convert(folder, tmp_path / "out", "--on-error", "skip") == 0
    assert "the map has the classes [4]" in capsys.readouterr().out
    contents = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert [image["file_name"] for image in contents["images"]] == ["good.jpg"]


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
def test_pixels_in_dispute_are_reported(tmp_path, capsys):
    folder = tmp_path / "instances"
    save(folder / "images" / "a.jpg", Image.fromarray(np.zeros((6, 8, 3), np.uint8)))
    square = [[0, 0, 4, 0, 4, 4, 0, 4]]
    annotations = [
        {"id": index, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": polygons}
        for index, polygons in enumerate((square, square, [[3, 3, 8, 3, 8, 6, 3, 6]]))
    ]
    categories = [{"id": 1, "name": "kite"}]
    images = [{"id": 1, "file_name": "a.jpg"}]
    write_json(folder / "instances.json", {"images": images, "annotations": annotations, "categories": categories})
    assert convert(folder, tmp_path / "out") == 0
    line = "Instances overlap in 1 images: 16 pixels went to the smaller one, 1 instances have no pixel left."
    assert line in capsys.readouterr().out
