"""Records in the hands of `datasets`: streams, workers, formats, `map` and transforms."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from torch.utils.data import DataLoader

from detr_panoptic import DetrPanopticImageProcessor, read_panoptic
from detr_panoptic.data import PanopticCollator, save_dataset
from detr_panoptic.scenes import SCENE_CATEGORIES, make_scene
from tests.conftest import build_tiny

SIDE, COUNT, FILES = 64, 12, 3
SEGMENT = {name: Value("int32") for name in ("id", "category_id", "area", "iscrowd")}
COLUMNS = Features({"image": Image(), "label": Image(), "segments_info": [SEGMENT]})

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores


@pytest.fixture(scope="module")
def scenes():
    return [make_scene(seed, height=SIDE, width=SIDE) for seed in range(COUNT)]


@pytest.fixture(scope="module")
def folder(scenes, tmp_path_factory):
    """Rows as on the Hub: a map called `label`, categories of the dataset's own, no ids of images, three files."""
    folder = tmp_path_factory.mktemp("rows")
    ids = SCENE_CATEGORIES.category_ids
    for start in range(0, COUNT, COUNT // FILES):
        rows = []
        for scene in scenes[start : start + COUNT // FILES]:
            segments = [
                {"id": s["id"], "category_id": ids[s["label_id"]], "area": s["area"], "iscrowd": s["iscrowd"]}
                for s in scene["segments_info"]
            ]
            rows.append({"image": scene["image"], "label": scene["segmentation"], "segments_info": segments})
        Dataset.from_list(rows, features=COLUMNS).to_parquet(folder / f"train-{start}.parquet")
    (folder / "categories.json").write_text(json.dumps(SCENE_CATEGORIES.to_coco()))
    return folder


@pytest.fixture(scope="module")
def records(folder):
    return read_panoptic(folder).records


@pytest.fixture(scope="module")
def stream(folder):
    return read_panoptic(folder, streaming=True).records


@pytest.fixture(scope="module")
def canonical(folder, tmp_path_factory):
    """The same records as a dataset saved by this package, which needs no decoding."""
    target = tmp_path_factory.mktemp("canonical") / "saved"
    data = read_panoptic(folder)
    save_dataset(target, data.records, data.categories)
    return read_panoptic(target).records


@pytest.fixture(scope="module")
def processor():
    labels = {"stuff_label_ids": SCENE_CATEGORIES.stuff_label_ids}
    return DetrPanopticImageProcessor(size={"shortest_edge": SIDE, "longest_edge": SIDE}, **labels)


@pytest.fixture(scope="module")
def prepare(processor):
    """A function for `map` and `set_transform`, as notebooks have it."""

    def prepare(batch):
        keys = ("image_id", "segmentation", "segments_info")
        annotations = [dict(zip(keys, row, strict=True)) for row in zip(*(batch[key] for key in keys), strict=True)]
        return dict(processor(batch["image"], annotations=annotations, return_tensors="pt"))

    return prepare


def labels_of(batch):
    return [target["class_labels"].tolist() for target in batch["labels"]]


def loss_of(batch):
    model = build_tiny(num_labels=len(SCENE_CATEGORIES), stuff_label_ids=[]).eval()
    with torch.no_grad():
        return model(batch["pixel_values"], batch["pixel_mask"], labels=batch["labels"]).loss


def test_a_shuffled_stream_without_ids_is_a_dataset_for_training(stream, processor, scenes):
    """Rows that got their ids from us had their image as bytes: the collator refused it."""
    expected = sorted(len(scene["segments_info"]) for scene in scenes)
    loader = DataLoader(
        stream.shuffle(seed=1, buffer_size=4), batch_size=5, num_workers=2, collate_fn=PanopticCollator(processor)
    )
    targets = [target for batch in loader for target in batch["labels"]]
    ids = [int(target["image_id"]) for target in targets]
    assert len(set(ids)) == COUNT
    assert ids != [record["image_id"] for record in stream]
    assert sorted(len(target["class_labels"]) for target in targets) == expected


def test_a_mapped_stream(stream, records, prepare):
    columns = list(stream.features)
    mapped = stream.map(prepare, batched=True, batch_size=4, remove_columns=columns)
    assert [t["class_labels"].tolist() for t in (row["labels"] for row in mapped)] == labels_of(prepare(records[:]))


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_formats_of_records_are_what_the_collator_takes(canonical, stream, processor, kind):
    collate = PanopticCollator(processor)
    expected = collate([canonical[i] for i in range(3)])
    rows = list(stream.with_format(kind).take(3))
    for found in (collate([canonical.with_format(kind)[i] for i in range(3)]), collate(rows)):
        assert torch.equal(found["pixel_values"], expected["pixel_values"])
        for ours, theirs in zip(found["labels"], expected["labels"], strict=True):
            assert torch.equal(ours["masks"], theirs["masks"])
            assert torch.equal(ours["class_labels"], theirs["class_labels"])


def test_map_writes_what_a_model_takes(records, prepare):
    """`map` failed when the mapped rows were read, because the reader decoded them once more."""
    columns = records.column_names
    mapped = records.select(range(3)).map(prepare, batched=True, batch_size=2, remove_columns=columns)
    assert len(mapped[0]["labels"]["masks"]) == len(records[0]["segments_info"])
    mapped = mapped.with_format("torch")
    expected = prepare(records[:3])
    assert torch.equal(mapped["pixel_values"][:], expected["pixel_values"])
    rows = [mapped[i] for i in range(3)]
    batch = {key: torch.stack([row[key] for row in rows]) for key in ("pixel_values", "pixel_mask")}
    torch.testing.assert_close(loss_of(batch | {"labels": [row["labels"] for row in rows]}), loss_of(expected))


def test_map_may_add_a_column_or_change_the_images(records):
    """A new column was lost without a word."""
    counted = records.select(range(2)).map(lambda record: {"count": len(record["segments_info"])})
    assert [record["count"] for record in counted] == [len(record["segments_info"]) for record in counted]
    assert counted[0]["segmentation"].size == (SIDE, SIDE)
    gray = records.select(range(2)).map(lambda record: {"image": record["image"].convert("L").convert("RGB")})
    pixels = np.asarray(gray[0]["image"])
    assert (pixels[..., 0] == pixels[..., 2]).all()
    assert [s["id"] for s in gray[0]["segments_info"]] == [s["id"] for s in records[0]["segments_info"]]


def test_a_transform_of_the_users_own(canonical, prepare):
    canonical = canonical.with_format(None)
    expected = prepare(canonical[:3])
    canonical.set_transform(prepare)
    assert torch.equal(canonical[:3]["pixel_values"], expected["pixel_values"])
    loader = DataLoader(canonical, batch_size=3, collate_fn=lambda rows: rows)
    assert [row["labels"]["class_labels"].tolist() for row in next(iter(loader))] == labels_of(expected)


def test_selections_keep_the_records(records):
    chosen = records.filter(lambda record: len(record["segments_info"]) > 3).shuffle(seed=0).select(range(2))
    assert all(len(record["segments_info"]) > 3 for record in chosen)
    assert chosen.train_test_split(0.5)["test"][0]["segmentation"].size == (SIDE, SIDE)
