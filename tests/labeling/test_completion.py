"""Stuff that a model adds: nothing annotated changes, and what is added is what the model is sure of."""

import shutil
from argparse import Namespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from detr_panoptic import DetrPanopticForSegmentation
from detr_panoptic.cli import main
from detr_panoptic.commands.data_convert import Counts
from detr_panoptic.commands.demo import SHIPPED_MODEL, load_shipped_model
from detr_panoptic.data import measure_segments, read_panoptic, segmentation_ids
from detr_panoptic.data.categories import Categories
from detr_panoptic.data.writing import write_coco_panoptic_dataset
from detr_panoptic.labeling.completion import MIN_VISIBLE_SHARE, fill_void, match_labels
from detr_panoptic.labeling.seen_records import RecordFiles, seen_records
from detr_panoptic.scenes import SCENE_CATEGORIES, scenes_dataset
from detr_panoptic.scenes.dataset import make_scene

SIDE, COUNT = 128, 3
DATA = Categories(names=("boat", "grass", "sea"), is_thing=(True, True, False), category_ids=(3, 5, 7))
MODEL = Categories(
    names=("boat", "sea", "sky", "grass", "house", "sand"),
    is_thing=(True, False, False, False, True, False),
    category_ids=(1, 2, 3, 4, 5, 60),
)


def test_classes_are_matched_by_name():
    match = match_labels(DATA, MODEL, with_things=False)
    assert match.categories.names == ("boat", "grass", "sea", "sky", "sand")
    assert match.categories.is_thing == (True, True, False, False, False)
    assert match.categories.category_ids == (3, 5, 7, 61, 60)  # 3 is the data's boat
    # Neither the boat, whose every instance is annotated, nor the grass, which the data has as things.
    assert match.labels == {1: 2, 2: 3, 5: 4}


def test_things_are_added_of_other_classes_only():
    match = match_labels(DATA, MODEL, with_things=True)
    assert match.categories.names == ("boat", "grass", "sea", "sky", "house", "sand")
    assert match.categories.category_ids == (3, 5, 7, 61, 62, 60)
    assert match.labels == {1: 2, 2: 3, 4: 4, 5: 5}


def blocks(rng, num_ids, size):
    return rng.integers(0, num_ids + 1, size).repeat(3, 0).repeat(4, 1)


@given(st.integers(0, 2**31 - 1), st.booleans())
def test_nothing_annotated_changes(seed, with_things):
    rng = np.random.default_rng(seed)
    ids, seen = 700 * blocks(rng, 3, (3, 5)), blocks(rng, 6, (3, 5))
    match = match_labels(DATA, MODEL, with_things=with_things)
    # The data's sea has at most one segment.
    segments = measure_segments(ids, [{"id": 700 * i, "label_id": 3 - i, "iscrowd": 0} for i in (1, 2, 3)])
    seen_segments = [{"id": i, "label_id": int(label)} for i, label in enumerate(rng.integers(0, 6, 6), start=1)]
    result = fill_void(ids, segments, seen, seen_segments, match)

    assert np.array_equal(result.ids[ids != 0], ids[ids != 0])
    assert sum(result.added.values()) == (ids == 0).sum() - (result.ids == 0).sum()
    assert not result.ids[seen == 0][ids[seen == 0] == 0].any()
    assert {s["id"] for s in result.segments_info} == set(np.unique(result.ids)) - {0}
    assert result.segments_info == measure_segments(result.ids, result.segments_info)
    labels = [s["label_id"] for s in result.segments_info]
    stuff = [label for label in labels if not match.categories.is_thing[label]]
    assert len(stuff) == len(set(stuff))
    label_of = {s["id"]: s["label_id"] for s in result.segments_info}
    label_seen = {s["id"]: match.labels.get(s["label_id"]) for s in seen_segments}
    for before, after, model in zip(ids.ravel(), result.ids.ravel(), seen.ravel(), strict=True):
        if before == 0 and after != 0:
            assert label_of[after] == label_seen[model]


def test_entries_of_annotated_things_stay_as_they_are():
    ids = np.zeros((7, 11), dtype=int)
    ids[:3, :5] = 9
    odd = {"id": 9, "label_id": 0, "iscrowd": 1, "area": 4711, "bbox": [0, 0, 1, 1]}  # not ours to repair
    seen = np.ones((7, 11), dtype=int)
    match = match_labels(DATA, MODEL, with_things=False)
    result = fill_void(ids, [odd], seen, [{"id": 1, "label_id": 1}], match)
    assert result.segments_info == [odd, {"id": 1, "label_id": 2, "iscrowd": 0, "area": 62, "bbox": [0, 0, 11, 7]}]


@pytest.mark.parametrize(("visible", "expected"), [(5, 0), (6, 6)])
def test_a_thing_that_is_mostly_annotated_is_another_name_for_it(visible, expected):
    ids = np.full((1, 40), 9)
    ids[:, :visible] = 0
    seen = np.zeros((1, 40), dtype=int)
    seen[:, : round(6 / MIN_VISIBLE_SHARE)] = 1
    match = match_labels(DATA, MODEL, with_things=True)
    boat = measure_segments(ids, [{"id": 9, "label_id": 0, "iscrowd": 0}])
    added = fill_void(ids, boat, seen, [{"id": 1, "label_id": 4}], match).added
    assert sum(added.values()) == expected
    # Stuff, however, lies behind things: what is seen of it counts.
    assert sum(fill_void(ids, boat, seen, [{"id": 1, "label_id": 2}], match).added.values()) == visible


def test_specks_stay_void():
    ids = np.full((3, 7), 9)
    ids[0, :5] = 0
    match = match_labels(DATA, MODEL, with_things=False)
    for size, expected in ((4, 0), (5, 5)):
        seen = np.zeros((3, 7), dtype=int)
        seen[0, :size] = 1
        assert sum(fill_void(ids, [], seen, [{"id": 1, "label_id": 2}], match).added.values()) == expected


@pytest.fixture(scope="module")
def scenes():
    return list(scenes_dataset(COUNT, seed=91, height=SIDE, width=SIDE))


@pytest.fixture(scope="module")
def things(scenes, tmp_path_factory):
    """Scenes of which only things are annotated, and these without the last class, under other category ids."""
    count = sum(SCENE_CATEGORIES.is_thing) - 1
    categories = Categories(SCENE_CATEGORIES.names[:count], (True,) * count, tuple(range(100, 100 + count)))
    records = []
    for scene in scenes:
        ids = segmentation_ids(scene["segmentation"]).copy()
        segments = [segment for segment in scene["segments_info"] if segment["label_id"] < count]
        ids[~np.isin(ids, [segment["id"] for segment in segments])] = 0
        records.append({**scene, "segmentation": ids, "segments_info": segments})
    folder = tmp_path_factory.mktemp("things") / "data"
    write_coco_panoptic_dataset(folder, records, categories)
    return folder


def complete(things, out, *options):
    return main(["data", "complete-stuff", str(things), str(out), "--model", str(SHIPPED_MODEL), *map(str, options)])


def labels_of(record, categories):
    """Name of each pixel's class."""
    names = {segment["id"]: categories.names[segment["label_id"]] for segment in record["segments_info"]}
    return np.vectorize(lambda i: names.get(i, ""))(segmentation_ids(record["segmentation"]))


def test_a_model_gives_scenes_their_stuff_back(things, scenes, tmp_path, capsys):
    assert complete(things, tmp_path / "full", "--report", tmp_path / "report", "--threshold", 0.7) == 0
    before, full = read_panoptic(things), read_panoptic(tmp_path / "full")
    stuff = set(SCENE_CATEGORIES.names[8:])
    assert full.categories.names == (*before.categories.names, *SCENE_CATEGORIES.names[8:])
    added = 0
    for old, new, scene in zip(before.records, full.records, scenes, strict=True):
        old_labels, new_labels = labels_of(old, before.categories), labels_of(new, full.categories)
        truth = labels_of(scene, SCENE_CATEGORIES)
        annotated = old_labels != ""
        ids = [segmentation_ids(record["segmentation"]) for record in (old, new)]
        assert np.array_equal(ids[0][annotated], ids[1][annotated])
        assert new["segments_info"][: len(old["segments_info"])] == old["segments_info"]
        filled = (new_labels != "") & ~annotated
        assert set(new_labels[filled]) <= stuff
        assert (new_labels == truth)[filled].mean() > 0.8
        added += filled.sum()
    assert added > 0.7 * COUNT * SIDE**2
    for path in sorted((things / "images").iterdir()):
        assert path.read_bytes() == (tmp_path / "full" / "images" / path.name).read_bytes()
    assert main(["data", "check", str(tmp_path / "full")]) == 0
    # The table, the page and the files tell the same.
    pixels = dict.fromkeys(stuff, 0)
    for new in full.records:
        for segment in new["segments_info"]:
            name = full.categories.names[segment["label_id"]]
            pixels |= {name: pixels[name] + segment["area"]} if name in stuff else {}
    page = (tmp_path / "report" / "index.html").read_text()
    table = capsys.readouterr().out
    for name, count in pixels.items():
        assert not count or (str(count) in table and f">{count}<" in page and name in table)
    assert page.count("<figure>") == 2 * COUNT
    assert "repeat(2, max-content)" in page  # before and after side by side


def test_things_are_added_if_asked_for(things, tmp_path):
    assert complete(things, tmp_path / "full", "--things", "--threshold", 0.3) == 0
    categories = read_panoptic(tmp_path / "full").categories
    assert categories.names[7] == SCENE_CATEGORIES.names[7]
    assert categories.is_thing[7]


def test_nothing_sure_adds_nothing(things, tmp_path, capsys):
    assert complete(things, tmp_path / "full", "--threshold", 1) == 0
    for old, new in zip(read_panoptic(things).records, read_panoptic(tmp_path / "full").records, strict=True):
        assert old["segments_info"] == new["segments_info"]
        assert np.array_equal(old["segmentation"], new["segmentation"])
    assert "added class" not in capsys.readouterr().out


def test_pixels_that_no_mask_claims_stay_void(scenes):
    """Against all masks at once: only where one is more likely than not, and there the merged map."""
    model, processor = load_shipped_model()
    unsure = 0
    arguments = Namespace(threshold=0.3, batch_size=1, workers=None, on_error="stop")
    pictures = RecordFiles(scenes_dataset(COUNT, seed=91, height=SIDE, width=SIDE))
    found = list(seen_records(pictures, model, processor, arguments, Counts()))
    for scene, (record, seen, segments) in zip(scenes, found, strict=True):
        assert record["image_id"] == scene["image_id"]
        with torch.inference_mode():
            outputs = model(**processor(scene["image"], return_tensors="pt"))
        (merged,) = processor.post_process_panoptic_segmentation(outputs, 0.3, target_sizes=[(SIDE, SIDE)])
        scores, labels = outputs.logits[0].softmax(-1).max(-1)
        masks = outputs.pred_masks[:, (scores > 0.3) & (labels < len(SCENE_CATEGORIES))]
        probs = torch.nn.functional.interpolate(masks, (SIDE, SIDE), mode="bilinear")[0].sigmoid().amax(0)
        assert np.array_equal(seen, torch.where(probs >= 0.5, merged["segmentation"], 0))
        assert segments == merged["segments_info"]
        unsure += (seen == 0).sum()
    assert unsure > 0


def test_batches_of_alike_shape_keep_the_order(tmp_path, monkeypatch):
    """Five images of two shapes, two at once: three forwards, the records in the order of the data, the same stuff."""
    sizes = [(96, 128), (128, 96), (96, 128), (128, 96), (96, 128)]
    pictures = [make_scene(60 + i, height=height, width=width) for i, (height, width) in enumerate(sizes)]
    records = [{**scene, "image_id": 9 - i, "file_name": f"{i}.png"} for i, scene in enumerate(pictures)]
    empty = [{**record, "segmentation": np.zeros_like(segmentation_ids(record["segmentation"])), "segments_info": []}
             for record in records]  # fmt: skip
    write_coco_panoptic_dataset(tmp_path / "data", empty, Categories(("house",), (True,), (1,)))
    shapes = []
    forward = DetrPanopticForSegmentation.forward
    monkeypatch.setattr(
        DetrPanopticForSegmentation,
        "forward",
        lambda self, **inputs: (shapes.append(tuple(inputs["pixel_values"].shape)), forward(self, **inputs))[1],
    )
    maps = {}
    for batch_size in (1, 2):
        shapes.clear()
        assert complete(tmp_path / "data", tmp_path / str(batch_size), "--batch-size", batch_size) == 0
        assert len(shapes) == {1: 5, 2: 3}[batch_size]
        full = read_panoptic(tmp_path / str(batch_size)).records
        assert list(full["image_id"]) == [9, 8, 7, 6, 5]
        maps[batch_size] = [labels_of(record, read_panoptic(tmp_path / str(batch_size)).categories) for record in full]
    agreeing = [(one == two).mean() for one, two in zip(maps[1], maps[2], strict=True)]
    # The one batch that holds both shapes is padded, which changes its results a bit.
    assert min(agreeing) > 0.9
    assert sum(share == 1 for share in agreeing) >= 3


def test_broken_images_stop_it_or_are_left_out(things, tmp_path, capsys):
    shutil.copytree(things, tmp_path / "data")
    broken = sorted((tmp_path / "data" / "images").iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:1000])
    assert complete(tmp_path / "data", tmp_path / "full") == 2
    assert broken.name in capsys.readouterr().err
    assert not (tmp_path / "full").exists()
    assert complete(tmp_path / "data", tmp_path / "full", "--on-error", "skip") == 0
    assert broken.name in capsys.readouterr().err
    assert len(read_panoptic(tmp_path / "full").records) == COUNT - 1


def test_an_output_that_exists_is_not_touched(things, tmp_path, capsys):
    Image.new("RGB", (3, 2)).save(tmp_path / "mine.png")
    assert complete(things, tmp_path) == 2
    assert "OUT" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.png"]
