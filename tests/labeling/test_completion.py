"""Completion of stuff: annotated pixels do not change, and only confident predictions are added."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from detr_panoptic.checkpoints import BUNDLED
from detr_panoptic.data import measure_segments, read_panoptic, segmentation_ids
from detr_panoptic.data.categories import Categories
from detr_panoptic.data.writing import write_coco_panoptic_dataset
from detr_panoptic.inference import Predictor
from detr_panoptic.labeling import complete_stuff
from detr_panoptic.labeling.classes import LabelMatch, match_stuff
from detr_panoptic.labeling.filling import MIN_VISIBLE_SHARE, fill_void
from detr_panoptic.labeling.teachers import sure_pixels
from detr_panoptic.panoptic_merging import ImageSizes
from detr_panoptic.scenes import SCENE_CATEGORIES, make_scene, scenes_dataset

SIDE, COUNT = 128, 3
DATA = Categories(names=("boat", "grass", "sea"), is_thing=(True, True, False), category_ids=(3, 5, 7))
MODEL = Categories(
    names=("boat", "sea", "sky", "grass", "house", "sand"),
    is_thing=(True, False, False, False, True, False),
    category_ids=(1, 2, 3, 4, 5, 60),
)


def test_classes_are_matched_by_name():
    match = match_stuff(DATA, MODEL, with_things=False)
    assert match.categories.names == ("boat", "grass", "sea", "sky", "sand")
    assert match.categories.is_thing == (True, True, False, False, False)
    assert match.categories.category_ids == (3, 5, 7, 61, 60)  # 3 is the data's boat
    # Neither the boat, whose every instance is annotated, nor the grass, which the data has as things.
    assert match.labels == {1: 2, 2: 3, 5: 4}


def test_names_match_whatever_their_case():
    model = Categories(("SEA", "Sky"), (False, False), (1, 2))
    match = match_stuff(DATA, model, with_things=False)
    assert match.categories.names == ("boat", "grass", "sea", "Sky")
    assert match.labels == {0: 2, 1: 3}


def test_things_are_added_of_other_classes_only():
    match = match_stuff(DATA, MODEL, with_things=True)
    assert match.categories.names == ("boat", "grass", "sea", "sky", "house", "sand")
    assert match.categories.category_ids == (3, 5, 7, 61, 62, 60)
    assert match.labels == {1: 2, 2: 3, 4: 4, 5: 5}


def blocks(rng, num_ids, size):
    return rng.integers(0, num_ids + 1, size).repeat(3, 0).repeat(4, 1)


@given(st.integers(0, 2**31 - 1), st.booleans())
def test_nothing_annotated_changes(seed, with_things):
    rng = np.random.default_rng(seed)
    ids, seen = 700 * blocks(rng, 3, (3, 5)), blocks(rng, 6, (3, 5))
    match = match_stuff(DATA, MODEL, with_things=with_things)
    # The data's sea has at most one segment.
    segments = measure_segments(ids, [{"id": 700 * i, "label_id": 3 - i, "iscrowd": 0} for i in (1, 2, 3)])
    seen_segments: list[dict] = [
        {"id": i, "label_id": int(label), "score": rng.random()}
        for i, label in enumerate(rng.integers(0, 6, 6), start=1)
    ]
    result = fill_void(ids, segments, seen, seen_segments, match)

    assert np.array_equal(result.ids[ids != 0], ids[ids != 0])
    assert sum(result.added.values()) == (ids == 0).sum() - (result.ids == 0).sum()
    assert not result.ids[seen == 0][ids[seen == 0] == 0].any()
    assert {s["id"] for s in result.segments_info} == set(np.unique(result.ids)) - {0}
    assert result.segments_info == measure_segments(result.ids, result.segments_info)
    scores = [s["score"] * s["area"] for s in result.segments_info if "score" in s]
    assert sum(scores) <= result.score_sum + 1e-3
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
    match = match_stuff(DATA, MODEL, with_things=False)
    result = fill_void(ids, [odd], seen, [{"id": 1, "label_id": 1, "score": 0.75}], match)
    sea = {"id": 1, "label_id": 2, "iscrowd": 0, "area": 62, "bbox": [0, 0, 11, 7], "score": 0.75}
    assert result.segments_info == [odd, sea]


@pytest.mark.parametrize(("visible", "expected"), [(5, 0), (6, 6)])
def test_a_thing_that_is_mostly_annotated_is_another_name_for_it(visible, expected):
    ids = np.full((1, 40), 9)
    ids[:, :visible] = 0
    seen = np.zeros((1, 40), dtype=int)
    seen[:, : round(6 / MIN_VISIBLE_SHARE)] = 1
    match = match_stuff(DATA, MODEL, with_things=True)
    boat = measure_segments(ids, [{"id": 9, "label_id": 0, "iscrowd": 0}])
    added = fill_void(ids, boat, seen, [{"id": 1, "label_id": 4}], match).added
    assert sum(added.values()) == expected
    # Stuff lies behind things, so its visible part counts.
    assert sum(fill_void(ids, boat, seen, [{"id": 1, "label_id": 2}], match).added.values()) == visible


def test_specks_stay_void():
    ids = np.full((3, 7), 9)
    ids[0, :5] = 0
    match = match_stuff(DATA, MODEL, with_things=False)
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


@pytest.fixture(scope="module")
def predictor():
    return Predictor.from_pretrained(BUNDLED, device="cpu")


def labels_of(record, categories):
    """Name of each pixel's class."""
    names = {segment["id"]: categories.names[segment["label_id"]] for segment in record["segments_info"]}
    return np.vectorize(lambda i: names.get(i, ""))(segmentation_ids(record["segmentation"]))


def test_a_model_gives_scenes_their_stuff_back(things, scenes, predictor, tmp_path):
    report = tmp_path / "report"
    completion = complete_stuff(
        things, tmp_path / "full", model=predictor, threshold=0.7, report=report, progress=False
    )
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
        kept = [{**segment, "score": None} for segment in old["segments_info"]]  # nobody scores an annotation
        assert new["segments_info"][: len(kept)] == kept
        filled = (new_labels != "") & ~annotated
        assert set(new_labels[filled]) <= stuff
        assert (new_labels == truth)[filled].mean() > 0.8
        added += filled.sum()
    assert added > 0.7 * COUNT * SIDE**2
    for path in sorted((things / "images").iterdir()):
        assert path.read_bytes() == (tmp_path / "full" / "images" / path.name).read_bytes()
    # The table, the report and the files say the same.
    pixels = dict.fromkeys(stuff, 0)
    for new in full.records:
        for segment in new["segments_info"]:
            name = full.categories.names[segment["label_id"]]
            pixels |= {name: pixels[name] + segment["area"]} if name in stuff else {}
    assert {row.name: row.pixels for row in completion.added} == {
        name: count for name, count in pixels.items() if count
    }
    assert sum(row.pixels for row in completion.added) == added
    assert (completion.images, completion.failures) == (COUNT, [])
    assert completion.void_before - completion.void_after == pytest.approx(added / (COUNT * SIDE**2))
    content, text = json.loads((report / "labels.json").read_text()), (report / "labels.md").read_text()
    for row, saved in zip(completion.added, content["added"], strict=True):
        assert row._asdict() == saved
        for shown in (text, str(completion)):
            (line,) = [line for line in shown.splitlines() if line.startswith(f"| {row.name} ")]
            assert line.split()[3::2] == ["stuff", str(row.images), str(row.pixels)]
    assert "(sheet_1.png)" in text
    with Image.open(report / "sheet_1.png") as sheet:
        assert sheet.width >= 2 * SIDE
        assert sheet.height >= COUNT * SIDE


def test_things_are_added_if_asked_for(things, predictor, tmp_path):
    completion = complete_stuff(
        things, tmp_path / "full", model=predictor, with_things=True, threshold=0.3, progress=False
    )
    categories = read_panoptic(tmp_path / "full").categories
    assert categories.names[7] == SCENE_CATEGORIES.names[7]
    assert categories.is_thing[7]
    assert completion.folder == tmp_path / "full"


def test_nothing_sure_adds_nothing(things, predictor, tmp_path):
    completion = complete_stuff(things, tmp_path / "full", model=predictor, threshold=1, progress=False)
    assert completion.added == []
    assert completion.void_before == completion.void_after
    for old, new in zip(read_panoptic(things).records, read_panoptic(tmp_path / "full").records, strict=True):
        assert old["segments_info"] == new["segments_info"]
        assert np.array_equal(old["segmentation"], new["segmentation"])


def test_sure_pixels_are_those_where_a_kept_mask_has_one_half(scenes, predictor):
    model, processor = predictor.model, predictor.processor
    unsure = 0
    for scene in scenes:
        inputs = processor(scene["image"], return_tensors="pt")
        with torch.inference_mode():
            outputs = model(**inputs, mask_queries="all")
        scores, labels = outputs.logits[0].softmax(-1).max(-1)
        masks = outputs.pred_masks[:, (scores > 0.6) & (labels < len(SCENE_CATEGORIES))]
        size = inputs["pixel_values"].shape[-2:]
        sure = torch.nn.functional.interpolate(masks, size, mode="bilinear").amax(1, keepdim=True) >= 0
        expected = torch.nn.functional.interpolate(sure.float(), (SIDE, SIDE), mode="nearest")[0, 0].bool().numpy()
        sizes = ImageSizes(tuple(size), tuple(size), (SIDE, SIDE))
        claimed = sure_pixels(outputs.logits[0], outputs.pred_masks[0], sizes, 0.6).numpy()
        assert np.array_equal(claimed, expected)
        unsure += (~claimed).sum()
    assert unsure > 0


def test_batches_keep_the_order(predictor, tmp_path, monkeypatch):
    """Five images of two shapes, two at once: three forwards, the records in the order of the data, the same stuff."""
    sizes = [(96, 128), (128, 96), (96, 128), (128, 96), (96, 128)]
    pictures = [make_scene(60 + i, height=height, width=width) for i, (height, width) in enumerate(sizes)]
    empty = [
        {
            **scene,
            "image_id": 9 - i,
            "file_name": f"{i}.png",
            "segmentation": np.zeros(sizes[i], np.int64),
            "segments_info": [],
        }
        for i, scene in enumerate(pictures)
    ]
    write_coco_panoptic_dataset(tmp_path / "data", empty, Categories(("house",), (True,), (1,)))
    counts, forward = [], type(predictor.model).forward
    monkeypatch.setattr(
        type(predictor.model),
        "forward",
        lambda self, **inputs: (counts.append(len(inputs["pixel_values"])), forward(self, **inputs))[1],
    )
    maps = {}
    for batch_size in (1, 2):
        counts.clear()
        output = tmp_path / str(batch_size)
        complete_stuff(tmp_path / "data", output, model=predictor, batch_size=batch_size, progress=False)
        assert len(counts) == {1: 5, 2: 3}[batch_size]
        full = read_panoptic(output)
        assert list(full.records["image_id"]) == [9, 8, 7, 6, 5]
        maps[batch_size] = [labels_of(record, full.categories) for record in full.records]
    agreeing = [(one == two).mean() for one, two in zip(maps[1], maps[2], strict=True)]
    # The one batch that has both shapes is padded, which changes its results a bit.
    assert min(agreeing) > 0.9
    assert sum(share == 1 for share in agreeing) >= 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # `datasets` leaves the file open
def test_broken_images_stop_it_or_are_left_out(things, predictor, tmp_path):
    shutil.copytree(things, tmp_path / "data")
    broken = sorted((tmp_path / "data" / "images").iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:1000])
    with pytest.raises(ValueError, match=broken.name):
        complete_stuff(tmp_path / "data", tmp_path / "full", model=predictor, progress=False)
    assert not (tmp_path / "full" / "panoptic.json").exists()
    completion = complete_stuff(tmp_path / "data", tmp_path / "full", model=predictor, on_error="skip", progress=False)
    assert completion.earlier == 1
    (message,) = completion.failures
    assert broken.name in message
    assert len(read_panoptic(tmp_path / "full").records) == COUNT - 1


def test_wrong_arguments_are_refused(things, predictor, tmp_path):
    Image.new("RGB", (3, 2)).save(tmp_path / "mine.png")
    with pytest.raises(ValueError, match="`output`"):
        complete_stuff(things, tmp_path, model=predictor)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.png"]
    other = Predictor(predictor.model, predictor.processor)
    other.categories = Categories(("house",), (True,), (1,))
    with pytest.raises(ValueError, match="no class"):
        complete_stuff(things, tmp_path / "full", model=other)


def test_merged_stuff_has_the_mean_score_of_its_parts():
    ids, seen = np.zeros((2, 20), dtype=int), np.ones((2, 20), dtype=int)
    seen[:, 15:] = 2
    match = LabelMatch(DATA, {0: 2, 1: 2})
    segments = [{"id": 1, "label_id": 0, "score": 0.8}, {"id": 2, "label_id": 1, "score": 0.4}]
    filled = fill_void(ids, [], seen, segments, match)
    assert filled.segments_info == [
        {"id": 1, "label_id": 2, "iscrowd": 0, "area": 40, "bbox": [0, 0, 20, 2], "score": 0.7}
    ]
