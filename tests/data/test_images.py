"""Pictures of datasets without annotations, as `predict` reads them, and with whatever others have put beside them."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PILImage

from detr_panoptic.data import read_images, read_panoptic
from detr_panoptic.data.folders import IMAGE_SUFFIXES
from detr_panoptic.data.lazy_records import image_id_of
from tests.conftest import photo
from tests.data.test_rows import CATEGORIES, file_of, rows
from tests.data_folders import coco_panoptic, save

SIZES = [(71, 53), (53, 71), (67, 61)]


def pictures(names=(None, None, None)):
    return [file_of(photo(size, seed=i), name) for i, (size, name) in enumerate(zip(SIZES, names, strict=True))]


def images(column="image", names=(None, None, None), **columns):
    features = Features({column: Image()})
    for name, values in columns.items():
        features[name] = Value("string" if isinstance(values[0], str) else "int64")
    return Dataset.from_dict({column: pictures(names), **columns}, features=features)


def folder_of(folder, names):
    for i, (size, name) in enumerate(zip(SIZES, names, strict=True)):
        save(folder / name, photo(size, seed=i))
    return folder


def assert_photos(records, order=(0, 1, 2)):
    assert [record["image"].size for record in records] == [SIZES[i] for i in order]
    for record, i in zip(records, order, strict=True):
        assert np.array_equal(np.asarray(record["image"]), np.asarray(photo(SIZES[i], seed=i)))


def test_a_column_of_pictures_is_enough(tmp_path):
    images().save_to_disk(tmp_path / "saved")
    images("picture", title=["a", "b", "c"]).to_parquet(tmp_path / "pictures.parquet")
    for source in (tmp_path / "saved", tmp_path / "pictures.parquet"):
        records = read_images(source)
        assert_photos(records)
        assert [(record["image_id"], record["file_name"]) for record in records] == [(0, None), (1, None), (2, None)]
        assert_photos(read_images(source, limit=2), (0, 1))


def test_ids_and_names_are_those_that_are_there(tmp_path):
    images(names=("x/1.png", "C:\\2.png", None), image_id=["7", "b", "c"]).save_to_disk(tmp_path / "paths")
    records = read_images(tmp_path / "paths")
    assert [record["image_id"] for record in records] == [7, image_id_of("b"), image_id_of("c")]
    assert [record["file_name"] for record in records] == ["1.png", "2.png", None]
    images(names=("1.png",) * 3, file_name=["a", "b", "c"]).save_to_disk(tmp_path / "columns")
    assert list(read_images(tmp_path / "columns")["file_name"]) == ["a", "b", "c"]


def test_parquet_of_other_programs_holds_pictures_too(tmp_path):
    pq.write_table(pa.table({"image": pictures()}), tmp_path / "plain.parquet")
    assert_photos(read_images(tmp_path / "plain.parquet"))


def test_annotated_parquet_of_other_programs_is_read(tmp_path):
    table = pa.table({name: rows().cast_column("image", Image(decode=False)).cast_column(
        "label", Image(decode=False)).to_dict()[name] for name in ("image", "label", "segments_info")})  # fmt: skip
    pq.write_table(table, tmp_path / "plain.parquet")
    (tmp_path / "categories.json").write_text(json.dumps(CATEGORIES.to_coco()))
    records = read_panoptic(tmp_path / "plain.parquet").records
    assert [record["image"].getpixel((0, 0))[0] for record in records] == [0, 1, 2]


def test_a_folder_of_folders_is_read_whole(tmp_path):
    folder = folder_of(tmp_path / "photos", ["12.png", "cats/1.png", "dogs/1.png"])
    (folder / "cats" / "notes.txt").write_text("")
    (folder / "cats" / "._1.png").write_bytes(b"")
    folder_of(folder / ".ipynb_checkpoints", ["1.png", "2.png", "3.png"])
    records = read_images(folder)
    assert_photos(records)
    assert list(records["file_name"]) == ["12.png", "cats/1.png", "dogs/1.png"]
    assert list(records["image_id"]) == [12, image_id_of("cats/1"), image_id_of("dogs/1")]
    assert_photos(read_images(folder, split="cats"), (1,))
    assert_photos(read_images(folder, limit=1), (0,))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # `datasets` leaves GIF files open
def test_images_of_every_suffix_are_found_and_read(tmp_path):
    known = PILImage.registered_extensions()
    names = [f"{i}{suffix.upper() if i % 2 else suffix}" for i, suffix in enumerate(IMAGE_SUFFIXES)]
    for name in names:
        save(tmp_path / name, photo((31, 29), seed=0), format=known[Path(name).suffix.lower()])
    (tmp_path / "notes.txt").write_text("")
    records = read_images(tmp_path)
    assert {".avif", ".jp2", ".ppm"} < set(IMAGE_SUFFIXES)
    assert set(records["file_name"]) == set(names)
    assert {record["image"].size for record in records} == {(31, 29)}


def test_a_split_without_annotations_lies_beside_one_that_has_them(tmp_path):
    folder = coco_panoptic(tmp_path / "coco")
    folder_of(folder / "unlabeled2017", ["1.png", "2.png", "3.png"])
    assert_photos(read_images(folder, split="unlabeled2017"))


def test_of_annotated_data_the_pictures_are_read_and_nothing_else(tmp_path):
    folder = coco_panoptic(tmp_path / "coco")
    expected = read_panoptic(folder).records
    found = read_images(folder)
    for name in ("image_id", "file_name"):
        assert list(found[name]) == list(expected[name])
    rows().save_to_disk(tmp_path / "unknown")  # nobody says what its categories are, and here nobody asks
    assert [record["image"].getpixel((0, 0))[0] for record in read_images(tmp_path / "unknown")] == [0, 1, 2]


def test_what_holds_no_pictures_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is in no known format"):
        read_images(tmp_path / "empty")
    Dataset.from_dict({"image": ["a.jpg"]}).save_to_disk(tmp_path / "texts")
    with pytest.raises(ValueError, match=r"must have a column `image` .*got image: Value"):
        read_images(tmp_path / "texts")
    images("left").add_column("right", pictures(), feature=Image()).save_to_disk(tmp_path / "stereo")
    with pytest.raises(ValueError, match=r"got left: Image.*, right: Image"):
        read_images(tmp_path / "stereo")
    DatasetDict(day=images(), night=images()).save_to_disk(tmp_path / "splits")
    with pytest.raises(ValueError, match=r"`split` of .* must be one of day, night, got None"):
        read_images(tmp_path / "splits")
    with pytest.raises(ValueError, match="folder or a Parquet file, or OWNER/NAME"):
        read_images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="`limit`"):
        read_images(tmp_path / "texts", limit=0)


def test_paths_to_pictures_elsewhere_are_refused(tmp_path):
    """A dataset from a stranger does not name files of whoever reads it."""
    photo(SIZES[0], seed=0).save(tmp_path / "private.png")
    names = {"image": [{"path": str(tmp_path / "private.png"), "bytes": None}]}
    Dataset.from_dict(names, features=Features({"image": Image()})).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=r"in `image` the path .*private\.png"):
        read_images(tmp_path / "rows.parquet")
