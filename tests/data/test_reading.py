"""What all formats share: recognition, labels in a wanted order, streams, shards, records that are made when asked."""

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from datasets.distributed import split_dataset_by_node
from PIL import Image
from torch.utils.data import DataLoader

from detr_panoptic.data import categories_of, read_panoptic, segmentation_ids
from detr_panoptic.data.categories import Categories
from detr_panoptic.data.lazy_records import file_image_id, image_id_of
from tests import data_folders
from tests.data_folders import CATEGORIES, PHOTOS, id_map, same_record, same_records, save, segments, write_json

SEMANTIC_CATEGORIES = [{"id": 3, "name": "sea"}, {"id": 8, "name": "boat"}]


@pytest.fixture
def coco(tmp_path):
    return data_folders.coco_panoptic(tmp_path / "coco")


@pytest.fixture
def semantic(tmp_path):
    """Five pictures with a map of two classes and void."""
    folder = tmp_path / "semantic"
    for index in range(5):
        values = np.random.default_rng(index).choice([0, 3, 8], (5, 7 + index)).astype(np.uint8)
        save(folder / "images" / f"{index:02d}.jpg", Image.new("RGB", values.shape[::-1]))
        save(folder / "maps" / f"{index:02d}.png", Image.fromarray(values))
    write_json(folder / "categories.json", SEMANTIC_CATEGORIES)
    return folder


def test_a_record_is_what_lies_there(coco):
    records, categories = read_panoptic(coco)
    assert categories == categories_of(records.features) == CATEGORIES
    assert list(records["image_id"]) == list(PHOTOS)
    for record in records:
        assert record["file_name"] == PHOTOS[record["image_id"]][0]
        assert record["image"].mode == "RGB"
        assert record["image"].size == record["segmentation"].size  # upright, both
        assert np.array_equal(segmentation_ids(record["segmentation"]), id_map(record["image_id"]))
        assert record["segments_info"] == segments(record["image_id"])


@pytest.mark.parametrize("name", ["coco", "semantic"])
def test_a_stream_has_the_same_records_in_the_same_order(name, request):
    folder = request.getfixturevalue(name)
    records, _ = read_panoptic(folder)
    stream, _ = read_panoptic(folder, streaming=True)
    assert isinstance(records, Dataset)
    assert isinstance(stream, IterableDataset)
    assert same_records(records, stream)
    assert same_records(read_panoptic(folder, limit=2).records, list(records)[:2])
    assert same_records(read_panoptic(folder, limit=2, streaming=True).records, list(records)[:2])
    assert same_records(read_panoptic(folder, limit=99).records, records)


def test_a_stream_knows_its_columns(semantic):
    stream, categories = read_panoptic(semantic, streaming=True)
    assert categories_of(stream.features) == categories
    assert set(stream.features) == set(next(iter(stream)))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
def test_processes_and_workers_share_the_records(semantic):
    records, _ = read_panoptic(semantic)
    ids = sorted(records["image_id"])
    stream, _ = read_panoptic(semantic, streaming=True)
    assert stream.num_shards == 5
    parts = [[row["image_id"] for row in split_dataset_by_node(stream, rank, 2)] for rank in range(2)]
    assert sorted(parts[0] + parts[1]) == ids
    assert all(parts)
    assert [row["image_id"] for i in range(2) for row in records.shard(2, i)] == list(records["image_id"])
    loader = DataLoader(stream, batch_size=None, num_workers=2, collate_fn=_image_id)
    assert sorted(loader) == ids


def _image_id(row):
    return row["image_id"]


def test_pictures_are_opened_when_a_row_is_asked_for(semantic):
    records, _ = read_panoptic(semantic)
    (semantic / "images" / "01.jpg").write_bytes(b"broken")
    (semantic / "maps" / "02.png").write_bytes(b"broken")
    stream = iter(read_panoptic(semantic, streaming=True).records)
    assert records[0]["image"].size == next(stream)["image"].size == (7, 5)
    for index in (1, 2):
        with pytest.raises(Image.UnidentifiedImageError):
            records[index]


def test_labels_in_a_wanted_order_are_matched_by_name(coco, semantic):
    wanted = Categories(("lake", "boat", "crowned crane", "sea"), (False, True, True, False), (1, 2, 3, 4))
    for folder in (coco, semantic):
        records, own = read_panoptic(folder)
        for streaming in (False, True):
            changed, categories = read_panoptic(folder, categories=wanted, streaming=streaming)
            assert categories == wanted
            for before, after in zip(records, changed, strict=True):
                names = [own.names[segment["label_id"]] for segment in before["segments_info"]]
                assert [wanted.names[segment["label_id"]] for segment in after["segments_info"]] == names
                assert same_record({**before, "segments_info": 0}, {**after, "segments_info": 0})
    with pytest.raises(ValueError, match=r"`categories` must .* 'sea', 'crowned crane' not"):
        read_panoptic(coco, categories=Categories(("boat",), (True,), (1,)))


def test_what_is_no_dataset_says_what_was_looked_for(tmp_path, coco):
    with pytest.raises(ValueError, match=r"no known format: looked for panoptic\.json, .*gtFine/, images/ with maps/"):
        read_panoptic(tmp_path)
    for name in ("nowhere", "./nowhere", "../nowhere", "a/b/c"):  # only OWNER/NAME is asked for
        with pytest.raises(ValueError, match=rf"'{name}' must be a folder or a Parquet file, or OWNER/NAME"):
            read_panoptic(name)
    with pytest.raises(ValueError, match=r"`data_format` must be one of coco-panoptic, .*got 'voc'"):
        read_panoptic(coco, data_format="voc")
    with pytest.raises(ValueError, match="`limit` must be a whole number of at least 1, got 0"):
        read_panoptic(coco, limit=0)
    with pytest.raises(ValueError, match=r"gtFine to exist"):
        read_panoptic(coco, data_format="cityscapes")


def test_a_folder_of_splits_says_which(tmp_path, coco):
    for split in ("train", "night"):
        data_folders.coco_panoptic(tmp_path / "both" / split)
    with pytest.raises(ValueError, match=r"There are splits, name one with `split`: night, train\."):
        read_panoptic(tmp_path / "both")
    assert same_records(read_panoptic(tmp_path / "both", split="night").records, read_panoptic(coco).records)


def test_a_dataset_without_annotations_is_refused(coco):
    write_json(coco / "panoptic.json", {"images": [], "annotations": [], "categories": []})
    with pytest.raises(ValueError, match="holds no annotated image"):
        read_panoptic(coco)


def test_data_that_was_read_is_read_again(coco, semantic):
    wanted = Categories(("boat", "crowned crane", "SEA"), (True, True, False), (1, 2, 3))
    for folder in (coco, semantic):  # rows as they are stored, and rows with a decoder
        data = read_panoptic(folder)
        assert read_panoptic(data) == data
        assert f"{len(data.records)} records, {len(data.categories)} classes" in str(data)
        again, categories = read_panoptic(data, limit=2, categories=wanted)
        assert categories == wanted
        assert same_records(again, read_panoptic(folder, limit=2, categories=wanted).records)
        with pytest.raises(ValueError, match="`split`"):
            read_panoptic(data, split="val")


def test_names_of_images_become_numbers():
    assert [image_id_of(name) for name in (139, "000139", "0")] == [139, 139, 0]
    assert file_image_id("000000000139.jpg") == 139
    odd: list[int | str] = ["a", "b", "train/000139", "-1", -1, 2**63, "1_0", ""]
    numbers = [image_id_of(name) for name in odd]
    assert all(0 <= number < 2**52 for number in numbers)
    assert len(set(numbers)) == len(set(map(str, odd)))
    assert image_id_of("a") == 2_425_768_997_437_999  # the same on every machine, today and tomorrow


def test_records_cross_process_borders(semantic):
    """A loader's workers get a pickled copy of the dataset."""
    records, _ = read_panoptic(semantic)
    loader = DataLoader(records, batch_size=2, num_workers=1, collate_fn=_ids_of_maps)
    maps = [ids for batch in loader for ids in batch]
    expected = [segmentation_ids(record["segmentation"]) for record in records]
    assert len(maps) == 5
    assert all(torch.equal(ids, torch.from_numpy(other)) for ids, other in zip(maps, expected, strict=True))


def _ids_of_maps(rows):
    return [torch.from_numpy(segmentation_ids(row["segmentation"])) for row in rows]
