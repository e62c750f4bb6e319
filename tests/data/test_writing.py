"""Writers, and that nothing is lost on the way from one format to another."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import Image, concatenate_datasets, load_dataset, load_from_disk
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCard, DatasetCardData
from PIL import Image as PILImage

from detr_panoptic.data import (
    categories_of,
    panoptic_features,
    read_panoptic,
    save_dataset,
    segmentation_ids,
    write_coco_panoptic_dataset,
    write_parquet,
    writing,
)
from detr_panoptic.data.categories import Categories
from detr_panoptic.scenes import SCENE_CATEGORIES, make_scene
from detr_panoptic.segment_ids import MAX_ID
from tests import data_folders
from tests.data_folders import CATEGORIES, PHOTOS, same_records

WRITERS: dict[str, Callable] = {"coco": write_coco_panoptic_dataset, "dataset": save_dataset, "parquet": write_parquet}


@pytest.fixture
def coco(tmp_path):
    return data_folders.coco_panoptic(tmp_path / "coco")


def files(records):
    """Records whose pictures are as they are stored."""
    return records.cast_column("image", Image(decode=False))


def scenes(count):
    return [make_scene(seed, height=64, width=71 + 2 * seed) for seed in range(count)]


@pytest.mark.parametrize("name", WRITERS)
def test_written_and_read_again_it_is_the_same(name, coco, tmp_path):
    records, categories = read_panoptic(coco)
    WRITERS[name](tmp_path / "out", files(records), categories)
    shutil.rmtree(coco)  # nothing is needed beside it
    again, same_categories = read_panoptic(tmp_path / "out")
    assert same_categories == CATEGORIES
    assert same_records(data_folders_records(tmp_path), again)
    streamed, same_categories = read_panoptic(tmp_path / "out", streaming=True)
    assert same_categories == CATEGORIES
    assert same_records(again, streamed)


def data_folders_records(tmp_path):
    return read_panoptic(data_folders.coco_panoptic(tmp_path / "again")).records


@pytest.mark.parametrize("name", ["dataset", "parquet"])
def test_from_coco_through_rows_to_coco_every_byte_comes_back(name, coco, tmp_path):
    records, categories = read_panoptic(coco)
    maps_too = files(records).cast_column("segmentation", Image(decode=False))
    WRITERS[name](tmp_path / "rows", maps_too, categories)
    rows, categories = read_panoptic(tmp_path / "rows")
    write_coco_panoptic_dataset(
        tmp_path / "out", files(rows).cast_column("segmentation", Image(decode=False)), categories
    )
    before, after = (json.loads((folder / "panoptic.json").read_text()) for folder in (coco, tmp_path / "out"))
    assert after["categories"] == before["categories"]
    for old, new in zip(before["annotations"], after["annotations"], strict=True):
        assert new["image_id"] == old["image_id"]
        assert new["segments_info"] == old["segments_info"]
        name = PHOTOS[old["image_id"]][0]
        assert (tmp_path / "out/images" / name).read_bytes() == (coco / "images" / name).read_bytes()
        new_map = tmp_path / "out/panoptic" / new["file_name"]
        assert new_map.read_bytes() == (coco / "panoptic" / old["file_name"]).read_bytes()
    assert {(image["id"], image["file_name"]) for image in before["images"]} == {
        (image["id"], image["file_name"]) for image in after["images"]
    }
    sizes = {image["id"]: (image["width"], image["height"]) for image in after["images"]}
    assert sizes == {31: (7, 5), 4: (11, 3), 12: (5, 13)}  # 12 is turned by its EXIF tag


@pytest.mark.parametrize("name", WRITERS)
def test_pictures_in_memory_are_written_without_loss(name, tmp_path):
    records = scenes(3)
    WRITERS[name](tmp_path / "out", records, SCENE_CATEGORIES)
    again, categories = read_panoptic(tmp_path / "out")
    assert categories == SCENE_CATEGORIES
    assert same_records(records, again)


@pytest.mark.parametrize("name", WRITERS)
def test_records_of_any_iterable_with_maps_as_arrays(name, tmp_path):
    plain = [
        {**record, "segmentation": segmentation_ids(record["segmentation"]), "file_name": None} for record in scenes(2)
    ]
    WRITERS[name](tmp_path / "out", iter(plain), SCENE_CATEGORIES)
    again, _ = read_panoptic(tmp_path / "out")
    assert list(again["file_name"]) == ["000000000000.png", "000000000001.png"]
    for record, other in zip(plain, again, strict=True):
        assert np.array_equal(record["segmentation"], segmentation_ids(other["segmentation"]))


def with_scores(records):
    return [
        {**record, "segments_info": [{**s, "score": 0.5 + s["label_id"] / 64} for s in record["segments_info"]]}
        for record in records
    ]


def test_scores_of_predictions_are_kept(tmp_path):
    predictions = with_scores(scenes(2))
    write_coco_panoptic_dataset(tmp_path / "coco", predictions, SCENE_CATEGORIES)
    annotations = json.loads((tmp_path / "coco" / "panoptic.json").read_text())["annotations"]
    assert [[s["score"] for s in a["segments_info"]] for a in annotations] == [
        [s["score"] for s in record["segments_info"]] for record in predictions
    ]
    save_dataset(tmp_path / "dataset", predictions, SCENE_CATEGORIES, with_scores=True)
    write_parquet(tmp_path / "parquet", predictions, SCENE_CATEGORIES, with_scores=True)
    for name in ("dataset", "parquet"):
        assert same_records(predictions, read_panoptic(tmp_path / name).records)


def test_parquet_goes_into_several_files_that_read_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "SHARD_BYTES", 1)
    monkeypatch.setattr(writing, "ROW_GROUP", 2)
    records = scenes(5)
    names = [path.name for path in write_parquet(tmp_path, iter(records), SCENE_CATEGORIES, split="night")]
    assert names == [f"night-0000{index}-of-00003.parquet" for index in range(3)]
    assert same_records(records, read_panoptic(tmp_path).records)


# ------ categories stay with a dataset


def test_names_kinds_and_ids_stay_through_everything_that_datasets_does(coco, tmp_path):
    records, categories = read_panoptic(coco)
    saved = save_dataset(tmp_path / "saved", files(records), categories)
    saved.to_parquet(tmp_path / "plain.parquet")
    card_data = DatasetCardData()
    DatasetInfosDict({"default": saved.info}).to_dataset_card_data(card_data)  # what push_to_hub writes
    write_parquet(tmp_path / "hub", files(records), categories)
    card = DatasetCard(f"---\n{card_data.to_yaml()}\n---\n")
    card.save(tmp_path / "hub" / "README.md")
    stages = {
        "load_from_disk": load_from_disk(tmp_path / "saved"),
        "to_parquet": load_dataset("parquet", data_files=str(tmp_path / "plain.parquet"), split="train"),
        "the Hub's card": load_dataset(str(tmp_path / "hub"), split="train"),
        "stream": load_dataset(str(tmp_path / "hub"), split="train", streaming=True),
        "map": saved.map(_as_it_is),
        "filter": saved.filter(_all, input_columns="image_id"),
        "shard": saved.shuffle(seed=0).shard(2, 1),
        "concatenate": concatenate_datasets([saved, saved]),
        "in memory": records,
    }
    for stage, dataset in stages.items():
        assert categories_of(dataset.features) == CATEGORIES, stage
    assert yaml.safe_load(card_data.to_yaml())["dataset_info"]  # the card was no empty one


def _as_it_is(row):
    return {"image_id": row["image_id"]}


def _all(_):
    return True


def test_features_without_categories_say_none():
    assert categories_of(panoptic_features()) is None
    assert categories_of(None) is None
    odd = Categories(names=("ü: {", 'a"b'), is_thing=(True, False), category_ids=(5, 0))
    assert categories_of(panoptic_features(odd)) == odd


# ------ what is refused


def test_a_map_must_fit_its_picture(tmp_path):
    (record,) = scenes(1)
    record["segmentation"] = record["segmentation"].resize((5, 3))
    for writer in WRITERS.values():
        with pytest.raises(ValueError, match=r"Image 0 \(scene_0\.png\): the map must .* 71x64, got 5x3"):
            writer(tmp_path / "out", [record], SCENE_CATEGORIES)


def test_a_map_of_the_stored_pixels_of_a_turned_picture_is_refused(coco, tmp_path):
    path = coco / "panoptic" / f"map{data_folders.TURNED}.png"
    with PILImage.open(path) as picture:
        turned = picture.transpose(PILImage.Transpose.ROTATE_90)
    turned.save(path)
    records, categories = read_panoptic(coco)
    with pytest.raises(ValueError, match=r"Image 12 \(12\.jpg\).* 5x13, got 13x5; if an EXIF tag"):
        write_coco_panoptic_dataset(tmp_path / "out", files(records), categories)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": 0}, r"each id and file name once, got 0 twice"),
        ({"file_name": "scene_0.png"}, r"once, got 'scene_0\.png' twice"),
        ({"file_name": "../outside.png"}, r"expected a file name inside .*, got '\.\./outside\.png'"),
        ({"file_name": "/tmp/outside.png"}, r"expected a file name inside"),
        ({"segmentation": np.full((64, 73), MAX_ID + 1)}, r"`ids` must lie in"),
    ],
)
def test_records_that_would_spoil_others_are_refused(changes, message, tmp_path):
    first, second = scenes(2)
    with pytest.raises(ValueError, match=message):
        write_coco_panoptic_dataset(tmp_path / "out" / "in", [first, {**second, **changes}], SCENE_CATEGORIES)
    assert not list(Path(tmp_path).glob("**/outside.png"))


@pytest.mark.parametrize("name", ["dataset", "parquet"])
def test_nothing_makes_no_dataset(name, tmp_path):
    with pytest.raises(ValueError, match="`records` must hold at least one record"):
        WRITERS[name](tmp_path / "out", [], SCENE_CATEGORIES)
