"""`convert_data`: every target reads as its source; what is broken stops it or is left out and listed."""

import json

import numpy as np
import pytest
from PIL import Image

from detr_panoptic.data import convert_data, read_panoptic
from tests import data_folders
from tests.data_folders import CATEGORIES, same_records, save, write_json


@pytest.fixture
def coco(tmp_path):
    return data_folders.coco_panoptic(tmp_path / "coco")


@pytest.mark.parametrize("target", ["coco", "dataset", "parquet"])
def test_every_target_reads_as_the_source(target, coco, tmp_path, capsys):
    conversion = convert_data(coco, tmp_path / "out", to=target)
    records, categories = read_panoptic(tmp_path / "out")
    assert categories == CATEGORIES
    assert same_records(read_panoptic(coco).records, records)
    crowds = [segment["iscrowd"] for segments in records["segments_info"] for segment in segments]
    assert (conversion.images, conversion.segments, conversion.crowds) == (3, len(crowds), sum(crowds))
    assert conversion.labels == {0, 1, 2}
    assert f"3 images, {len(crowds)} segments, {sum(crowds)} crowds, 3 of 3 classes" in str(conversion)
    assert list(tmp_path.glob("out.*")) == []
    assert not capsys.readouterr().out


def test_options_reach_the_reader_and_data_that_was_read_is_taken(coco, tmp_path):
    coco.rename(tmp_path / "night")
    convert_data(tmp_path, tmp_path / "out", split="night", limit=2, to="parquet", progress=False)
    assert [path.name for path in (tmp_path / "out/data").iterdir()] == ["night-00000-of-00001.parquet"]
    convert_data(read_panoptic(tmp_path / "out"), tmp_path / "again", limit=1, progress=False)
    assert len(read_panoptic(tmp_path / "again").records) == 1
    for options in ({"data_format": "rows"}, {"stuff": ["sea"]}):
        with pytest.raises(ValueError, match=f"`{next(iter(options))}`.* do not apply"):
            convert_data(read_panoptic(tmp_path / "out"), tmp_path / "third", **options, progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"to": "voc"}, "`to`.*'voc'"), ({"on_error": "go"}, "`on_error`.*'go'"), ({}, "`output`")],
)
def test_wrong_arguments_are_named_and_nothing_is_touched(options, message, coco, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=message):
        convert_data(coco, tmp_path / "out", **options)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("file", "lost", "message"),
    [
        ("images/31.jpg", 20, "31.jpg"),
        ("panoptic/map31.png", 40, "the map .*map31.png is broken"),
        ("images/31.jpg", None, "images/31.jpg"),
        ("panoptic/map31.png", None, "panoptic/map31.png"),
    ],
    ids=["truncated image", "truncated map", "no image", "no map"],
)
def test_a_broken_file_stops_or_is_left_out_and_listed(file, lost, message, coco, tmp_path):
    path = coco / file
    contents = path.read_bytes()
    path.unlink()
    if lost:
        path.write_bytes(contents[:-lost])  # the header is complete
    with pytest.raises(ValueError, match=message):
        convert_data(coco, tmp_path / "out", progress=False)
    assert list(tmp_path.glob("out*")) == []
    conversion = convert_data(coco, tmp_path / "out", on_error="skip", progress=False)
    (skipped,) = conversion.failures
    assert "31" in skipped
    assert "BytesIO" not in skipped
    assert skipped in str(conversion)
    assert list(read_panoptic(tmp_path / "out").records["image_id"]) == [4, 12]


def test_nothing_but_broken_files_makes_no_dataset(coco, tmp_path):
    for path in (coco / "panoptic").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(ValueError, match="no image that can be read"):
        convert_data(coco, tmp_path / "out", on_error="skip", progress=False)
    assert not (tmp_path / "out").exists()


def test_what_a_decoder_refuses_is_left_out_too(tmp_path):
    folder = tmp_path / "semantic"
    for name, value in (("good", 3), ("odd", 4)):
        save(folder / "images" / f"{name}.jpg", Image.new("RGB", (5, 3)))
        save(folder / "maps" / f"{name}.png", Image.fromarray(np.full((3, 5), value, np.uint8)))
    write_json(folder / "categories.json", [{"id": 3, "name": "sea"}])
    conversion = convert_data(folder, tmp_path / "out", on_error="skip", progress=False)
    assert "odd.jpg" in conversion.failures[0]
    contents = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert [image["file_name"] for image in contents["images"]] == ["good.jpg"]
