"""Large images: tiles are stitched into the segments of the whole image."""

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from detr_panoptic.checkpoints import BUNDLED
from detr_panoptic.data.records import ids_to_rgb
from detr_panoptic.inference import Prediction, Predictor, Segment
from detr_panoptic.inference.tiling import Tiling, predict_tiles
from detr_panoptic.scenes import make_scene
from detr_panoptic.segment_ids import rgb_to_ids

PERSON, SKY, GRASS = 0, 1, 2


def truth(height, width, *, seed=0, count=12):
    """Returns ids (H, W): stuff 1 and 2 above and below each other, things from 3, disks that do not touch."""
    generator = np.random.default_rng(seed)
    ids = np.full((height, width), 1, dtype=np.int32)
    ids[height // 2 :] = 2
    rows, columns = np.ogrid[:height, :width]
    number = 3
    while number < count + 3:
        radius = generator.integers(6, 40)
        y, x = generator.integers(0, height), generator.integers(0, width)
        near = (rows - y) ** 2 + (columns - x) ** 2 <= (radius + 2) ** 2
        if (ids[near] <= 2).all():
            ids[(rows - y) ** 2 + (columns - x) ** 2 <= radius**2] = number
            number += 1
    return ids


def read_off(tile):
    """Predicts a tile perfectly: its colors are the ids; each connected part of a thing is a segment."""
    ids = rgb_to_ids(tile)
    segmentation = np.zeros_like(ids)
    segments: list[Segment] = []
    for value in np.unique(ids):
        parts, count = ndimage.label(ids == value)
        for part in range(1, count + 1) if value > 2 else (slice(1, None),):
            mask = parts == part if value > 2 else ids == value
            number = len(segments) + 1
            segmentation[mask] = number
            label_id = {1: SKY, 2: GRASS}.get(int(value), PERSON)
            segments.append(Segment(number, label_id, "", 0.9, value > 2, int(mask.sum()), (0, 0, 1, 1), label_id))
    return Prediction(tile, segmentation, segments, {})


@pytest.mark.parametrize("length", [1, 99, 100, 101, 180, 181, 1000, 20_000])
def test_tiles_cover_an_axis_and_overlap(length):
    spans = Tiling(100, 20).spans(length)
    assert spans[0][0] == 0
    assert spans[-1][1] == length
    assert all(end - start == min(length, 100) for start, end in spans)
    assert all(before[1] - after[0] >= 20 for before, after in pairwise(spans))
    assert len(spans) == 1 or (len(spans) - 1) * 80 < length  # no more tiles than needed


@pytest.mark.parametrize("shape", [(300, 300), (128, 500), (517, 203), (64, 64)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_perfect_tiles_give_the_whole_image(shape, seed):
    ids = truth(*shape, seed=seed, count=max(1, shape[0] * shape[1] // 8000))
    found, info = predict_tiles(Image.fromarray(ids_to_rgb(ids)), Tiling(128, 48), read_off)
    values = np.unique(ids)
    pairs = np.unique(np.stack([ids.ravel(), found.ravel()]), axis=1)
    assert pairs.shape[1] == len(values) == len(info)  # each segment has exactly one id, and each id one segment
    assert [entry["id"] for entry in info] == list(range(1, len(values) + 1))
    assert all(entry["area"] == (found == entry["id"]).sum() for entry in info)
    assert sorted(entry["label_id"] for entry in info) == sorted([PERSON] * (len(values) - 2) + [SKY, GRASS])


def test_neighboring_things_stay_apart():
    ids = np.full((60, 300), 1, dtype=np.int32)
    ids[10:50, 20:150], ids[10:50, 150:290] = 3, 4  # two long things that touch, each over several tiles
    _, info = predict_tiles(Image.fromarray(ids_to_rgb(ids)), Tiling(60, 20), read_off)
    assert sorted(entry["area"] for entry in info if entry["label_id"] == PERSON) == [40 * 130, 40 * 140]


def test_the_pixels_at_a_tile_border_come_from_its_neighbor():
    ids = truth(300, 300, count=8)

    def blind_at_its_border(tile):
        prediction = read_off(tile)
        prediction.segmentation[:, -23:] = 0  # less than half of the overlap
        prediction.segmentation[-23:] = 0
        return prediction

    picture = np.pad(ids, ((0, 23), (0, 23)), mode="edge")
    found, _ = predict_tiles(Image.fromarray(ids_to_rgb(picture)), Tiling(128, 48), blind_at_its_border)
    assert (found[:300, :300] > 0).all()


def test_things_that_hardly_overlap_are_not_joined():
    ids = np.full((60, 100), 1, dtype=np.int32)
    ids[10:50, 30:48], ids[10:50, 48:70] = 3, 4

    def too_wide(tile):
        prediction = read_off(tile)
        left = prediction.segmentation[30, 35]
        if tile.getpixel((0, 0))[0] == 1 and tile.getpixel((35, 30))[0] == 3:
            prediction.segmentation[10:50, 48:52] = left  # the first tile gives 4 columns to the wrong thing
        return prediction

    _, info = predict_tiles(Image.fromarray(ids_to_rgb(ids)), Tiling(60, 20), too_wide)
    assert sum(entry["label_id"] == PERSON for entry in info) == 2


@pytest.fixture(scope="module")
def predictor():
    return Predictor.from_pretrained(BUNDLED, device="cpu")


def test_an_image_smaller_than_a_tile_is_predicted_as_without_tiles(predictor):
    image = make_scene(3)["image"]
    whole, tiled = predictor(image), predictor(image, tile=256)
    order = sorted(tiled.segments, key=lambda segment: segment.id)
    assert (whole.segmentation == tiled.segmentation).all()
    assert [(s.label, s.score, s.bbox) for s in order] == [(s.label, s.score, s.bbox) for s in whole.segments]


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_every_task_works_with_tiles(predictor, task):
    image = make_scene(4, height=200, width=300)["image"]
    prediction = predictor(image, task=task, tile=160, overlap=64)
    assert prediction.segmentation.shape == (200, 300)
    stuff = [segment.label for segment in prediction.segments if not segment.is_thing or task == "semantic"]
    assert len(stuff) == len(set(stuff))
    assert all(s.is_thing for s in prediction.segments) == (task == "instance")
    assert (prediction.segmentation > 0).all() or task != "semantic"


def test_a_folder_is_predicted_in_tiles_without_resizing_whole_images(predictor, tmp_path, monkeypatch):
    make_scene(5, height=200, width=300)["image"].save(tmp_path / "scene.png")
    seen: list = []
    process = type(predictor.processor).preprocess

    def counted(self, images, *args, **kwargs):
        seen.extend(image.size for image in images)
        return process(self, images, *args, **kwargs)

    monkeypatch.setattr(type(predictor.processor), "preprocess", counted)
    folder = predictor.predict(tmp_path / "scene.png", tmp_path / "out", tile=160, overlap=40, progress=False)
    assert seen == [(160, 160)] * 2 * 3
    (_, prediction), *_ = folder
    assert prediction.segmentation.shape == (200, 300)
    with pytest.raises(ValueError, match="tile"):
        predictor.predict(tmp_path / "scene.png", tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    ("options", "name"),
    [({"tile": 128}, "overlap"), ({"tile": 64, "overlap": 100}, "overlap"), ({"tile": 64, "overlap": 0}, "overlap")],
)
def test_tiles_must_be_larger_than_their_overlap(predictor, options, name):
    with pytest.raises(ValueError, match=name):
        predictor(make_scene(1)["image"], **options)


def test_detections_are_not_joined(predictor, tmp_path):
    with pytest.raises(ValueError, match="detections"):
        predictor.predict("scenes", tmp_path, limit=1, tile=200, detections="box")
