"""Datasets of `datasets`: saved, Parquet, with the columns and encodings that others use."""

from io import BytesIO

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as PILImage
from torch.utils.data import DataLoader

from detr_panoptic.data import read_panoptic, segmentation_ids
from detr_panoptic.data.categories import COCO_PANOPTIC, Categories
from detr_panoptic.data.records import ids_to_rgb
from detr_panoptic.data.rows import map_ids
from detr_panoptic.segment_ids import MAX_ID
from tests.data_folders import same_records, write_json

CATEGORIES = Categories(names=("sea", "boat"), is_thing=(False, True), category_ids=(200, 7))
IDS = np.array([[0, 5, 5], [9, 9, 5]])
SEGMENTS = [{"id": 5, "category_id": 7}, {"id": 9, "category_id": 200}]
MEASURES = [{"area": 3, "bbox": [1, 0, 2, 2]}, {"area": 2, "bbox": [0, 1, 2, 1]}]


def file_of(picture, name=None):
    buffer = BytesIO()
    picture.save(buffer, format="TIFF" if picture.mode == "I" else "PNG")
    return {"bytes": buffer.getvalue(), "path": name}


def rows(*, map_column="label", ids=IDS, segments=SEGMENTS, count=3, **columns):
    """Rows as others have them; further columns as lists of values."""
    picture = PILImage.fromarray(ids_to_rgb(ids)) if isinstance(ids, np.ndarray) else ids
    data = {
        "image": [file_of(PILImage.new("RGB", picture.size, (index, 0, 0))) for index in range(count)],
        map_column: [file_of(picture)] * count,
        **columns,
    }
    features = {"image": Image(), map_column: Image()}
    if segments is not None:
        data["segments_info"] = [segments] * count
    inferred = Dataset.from_dict({key: value for key, value in data.items() if key not in features}).features
    return Dataset.from_dict(data, features=Features({**(inferred or {}), **features}))


def save_with_categories(dataset, folder, categories=CATEGORIES):
    dataset.save_to_disk(folder)
    write_json(folder / "categories.json", categories.to_coco())
    return folder


@pytest.mark.parametrize(
    ("name", "length"), [("data-00000-of-00001.arrow", 100), ("dataset_info.json", 40), ("state.json", 0)]
)
def test_a_saved_dataset_of_which_a_file_is_broken_is_named(name, length, tmp_path):
    """pyarrow's and json's own errors say where in a file, and not in which."""
    file = save_with_categories(rows(), tmp_path / "saved") / name
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"saved' is not a saved dataset, or a broken one: \S"):
        read_panoptic(tmp_path / "saved", data_format="rows")


def test_a_folder_with_a_broken_parquet_file_is_named(tmp_path):
    file = tmp_path / "set" / "data" / "train-00000-of-00001.parquet"
    file.parent.mkdir(parents=True)
    rows().to_parquet(file)
    contents = bytearray(file.read_bytes())
    contents[4:4] = bytes(9)  # the schema, at the end, stays
    file.write_bytes(contents)
    write_json(tmp_path / "set" / "categories.json", CATEGORIES.to_coco())
    with pytest.raises(ValueError, match=r"'\S+set' cannot be read completely: (?!An error occurred)"):
        read_panoptic(tmp_path / "set")


def test_rows_of_others_become_records(tmp_path):
    records, categories = read_panoptic(save_with_categories(rows(), tmp_path / "saved"))
    assert categories == CATEGORIES
    assert [record["image_id"] for record in records] == [0, 1, 2]
    assert [record["image"].getpixel((0, 0))[0] for record in records] == [0, 1, 2]
    expected = [
        {"id": 5, "label_id": 1, "iscrowd": 0, **MEASURES[0]},
        {"id": 9, "label_id": 0, "iscrowd": 0, **MEASURES[1]},
    ]
    for record in records:
        assert np.array_equal(segmentation_ids(record["segmentation"]), IDS)
        assert record["segments_info"] == expected


def test_a_segment_without_pixels_is_not_dropped(tmp_path):
    dataset = rows(segments=[*SEGMENTS, {"id": 77, "category_id": 7}])
    records, _ = read_panoptic(save_with_categories(dataset, tmp_path / "saved"))
    assert records[0]["segments_info"][2] == {"id": 77, "label_id": 1, "iscrowd": 0, "area": 0, "bbox": [0, 0, 0, 0]}


@pytest.mark.parametrize("streaming", [False, True])
def test_saved_parquet_and_splits_hold_the_same(streaming, tmp_path):
    dataset = rows(image_id=["00017", "b", "c"], file_name=["17.png", "far/b.png", "c.png"])
    expected, _ = read_panoptic(save_with_categories(dataset, tmp_path / "saved"))
    assert expected[0]["image_id"] == 17
    assert [record["file_name"] for record in expected] == list(dataset["file_name"])
    DatasetDict(night=dataset, day=dataset.select([0])).save_to_disk(tmp_path / "splits")
    write_json(tmp_path / "splits" / "categories.json", CATEGORIES.to_coco())
    (tmp_path / "parquet" / "data").mkdir(parents=True)
    for split, part in (("night", dataset), ("day", dataset.select([0]))):
        part.to_parquet(tmp_path / "parquet" / "data" / f"{split}-00000-of-00001.parquet")
    write_json(tmp_path / "parquet" / "categories.json", CATEGORIES.to_coco())
    for name in ("splits", "parquet"):
        night, categories = read_panoptic(tmp_path / name, split="night", streaming=streaming)
        assert categories == CATEGORIES
        assert same_records(expected, night)
        assert same_records(expected, read_panoptic(tmp_path / name, split="night", limit=9).records)
        some, _ = read_panoptic(tmp_path / name, split="night", limit=2, streaming=streaming)
        assert same_records(list(expected)[:2], some)
        assert len(list(read_panoptic(tmp_path / name, split="day", streaming=streaming).records)) == 1
        with pytest.raises(ValueError, match=r"`split` of .* must be one of night, day|day, night.*, got None"):
            read_panoptic(tmp_path / name, streaming=streaming)
    file = tmp_path / "rows.parquet"
    dataset.to_parquet(file)
    write_json(tmp_path / "categories.json", CATEGORIES.to_coco())
    assert same_records(expected, read_panoptic(file, streaming=streaming).records)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
def test_rows_of_a_stream_without_ids_have_unique_ones_whatever_the_workers(tmp_path):
    """A count by each worker gave sixteen ids to twenty-four images."""
    for part in range(3):
        path = tmp_path / "data" / f"train-0000{part}-of-00003.parquet"
        path.parent.mkdir(exist_ok=True)
        images = [file_of(PILImage.new("RGB", (3, 2), (index, part, 0))) for index in range(8)]
        rows(count=8).remove_columns("image").add_column("image", images, feature=Image()).to_parquet(path)
    write_json(tmp_path / "categories.json", CATEGORIES.to_coco())
    stream, _ = read_panoptic(tmp_path, streaming=True)
    ids = [record["image_id"] for record in stream]
    assert len(set(ids)) == 24
    for workers in (1, 2):
        loader = DataLoader(stream, batch_size=None, num_workers=workers, collate_fn=_image_id)
        assert sorted(loader) == sorted(ids)


def _image_id(record):
    return record["image_id"]


@pytest.mark.parametrize("map_column", ["segmentation", "annotation", "mask"])
def test_the_map_may_have_several_names(map_column, tmp_path):
    dataset = rows(map_column=map_column)
    records, _ = read_panoptic(save_with_categories(dataset, tmp_path / "saved"))
    assert np.array_equal(segmentation_ids(records[0]["segmentation"]), IDS)


# ------ categories


def test_names_of_coco_are_known_but_not_guessed_from_anybodys_ids(tmp_path, caplog):
    rows().save_to_disk(tmp_path / "coco")  # a boat's id is that of a train
    records, categories = read_panoptic(tmp_path / "coco")
    assert categories == COCO_PANOPTIC
    assert categories.names[records[0]["segments_info"][0]["label_id"]] == "train"
    assert "does not name its categories; the ids are those of COCO panoptic" in caplog.text
    small = [{"id": 5, "category_id": 1}, {"id": 9, "category_id": 2}]
    rows(segments=small).save_to_disk(tmp_path / "small")
    with pytest.raises(ValueError, match=r"does not say what its categories are: add a categories\.json"):
        read_panoptic(tmp_path / "small")


def test_categories_that_are_given_name_those_of_the_source(tmp_path):
    small = [{"id": 5, "category_id": 1}, {"id": 9, "category_id": 2}]
    rows(segments=small).save_to_disk(tmp_path / "small")
    given = Categories(("a", "b"), (True, False), (2, 1))
    records, categories = read_panoptic(tmp_path / "small", categories=given)
    assert categories == given
    assert [segment["label_id"] for segment in records[0]["segments_info"]] == [1, 0]


def test_label_ids_are_indices(tmp_path):
    dataset = rows(segments=[{"id": 5, "label_id": 1}, {"id": 9, "label_id": 0}])
    records, _ = read_panoptic(save_with_categories(dataset, tmp_path / "saved"))
    assert [segment["label_id"] for segment in records[0]["segments_info"]] == [1, 0]
    dataset = rows(segments=[{"id": 5, "label_id": 2}])
    records, _ = read_panoptic(save_with_categories(dataset, tmp_path / "wrong"))
    with pytest.raises(ValueError, match=r"Image 0: segment 5: `label_id` 2"):
        records[0]


def test_names_alone_do_not_tell_things_from_stuff(tmp_path):
    label = ClassLabel(names=["sea", "boat"])
    features = Features(
        {"image": Image(), "label": Image(), "segments_info": List({"id": Value("int64"), "label_id": label})}
    )
    dataset = rows(segments=[{"id": 5, "label_id": 1}, {"id": 9, "label_id": 0}]).cast(features)
    dataset.save_to_disk(tmp_path / "named")
    with pytest.raises(ValueError, match=r"add a categories\.json, a list of \{id, name, isthing\}"):
        read_panoptic(tmp_path / "named")


def test_unknown_categories_and_columns_are_named(tmp_path):
    dataset = rows(segments=[{"id": 5, "category_id": 8}])
    records, _ = read_panoptic(save_with_categories(dataset, tmp_path / "saved"))
    with pytest.raises(ValueError, match=r"Image 0: segment 5: `category_id` 8"):
        records[0]
    save_with_categories(rows(segments=None), tmp_path / "maps")
    with pytest.raises(ValueError, match=r"must have the columns .*got \['image', 'label'\]; without"):
        read_panoptic(tmp_path / "maps")


# ------ maps


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "I;16", "I"])
def test_maps_of_every_mode_hold_the_same_ids(mode, tmp_path):
    if mode in ("RGB", "RGBA"):
        picture = PILImage.fromarray(ids_to_rgb(IDS)).convert(mode)
    else:
        picture = PILImage.fromarray(IDS.astype({"L": np.uint8, "I;16": np.uint16, "I": np.int32}[mode]))
    assert picture.mode == mode
    records, _ = read_panoptic(save_with_categories(rows(ids=picture), tmp_path / "saved"))
    assert np.array_equal(segmentation_ids(records[0]["segmentation"]), IDS)


def test_of_a_palette_map_what_agrees_with_the_segments_is_taken():
    indices = np.array([[0, 1, 1], [2, 2, 1]], np.uint8)
    picture = PILImage.fromarray(indices)
    picture.putpalette([0, 0, 0, 5, 0, 0, 9, 0, 0])
    assert np.array_equal(map_ids(picture, {5, 9}, {}), IDS)
    assert np.array_equal(map_ids(picture, {1, 2}, {}), indices)


def test_ids_beyond_three_bytes_are_refused(tmp_path):
    picture = PILImage.fromarray(np.where(IDS == 5, MAX_ID + 1, IDS).astype(np.int32))
    segments = [{**SEGMENTS[0], "id": MAX_ID + 1}, SEGMENTS[1]]
    folder = save_with_categories(rows(ids=picture, segments=segments), tmp_path / "saved")
    records, _ = read_panoptic(folder)
    with pytest.raises(ValueError, match=rf"Image 0: segment {MAX_ID + 1}: `id` must be from 1 to {MAX_ID}"):
        records[0]


@pytest.mark.parametrize("data_format", ["semantic", "two-channel"])
@pytest.mark.parametrize("streaming", [False, True])
def test_rows_with_maps_of_classes(data_format, streaming, tmp_path):
    values = np.array([[200, 7, 7], [200, 7, 0]], np.uint8)
    instances = np.array([[0, 1, 2], [0, 1, 0]], np.uint8)
    picture = PILImage.fromarray(values)
    if data_format == "two-channel":
        picture = PILImage.fromarray(np.stack([values, instances, 0 * values], -1))
    folder = save_with_categories(rows(ids=picture, segments=None), tmp_path / "saved")
    records, _ = read_panoptic(folder, data_format=data_format, streaming=streaming)
    record = next(iter(records))
    expected = [[3, 1, 2], [3, 1, 0]] if data_format == "two-channel" else [[2, 1, 1], [2, 1, 0]]
    assert segmentation_ids(record["segmentation"]).tolist() == expected
    assert [segment["label_id"] for segment in record["segments_info"]] == [1] * (max(map(max, expected)) - 1) + [0]
