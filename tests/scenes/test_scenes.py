"""Generated scenes: the annotation is exact, and a seed says all."""

import hashlib
import json
from collections import Counter

import numpy as np
import pytest
from datasets import load_from_disk

from detr_panoptic.data.records import panoptic_features
from detr_panoptic.scenes.dataset import SCENE_CATEGORIES, Layer, compose_scene, make_scene, scenes_dataset
from detr_panoptic.scenes.painting import Patch
from detr_panoptic.segment_ids import rgb_to_ids

HEIGHT, WIDTH = 67, 101
SEEDS = range(40)
MEAN_COLORS = (157.19, 125.879, 147.823, 156.931, 84.226, 147.01, 159.501, 133.953, 165.543, 79.419, 165.674, 137.128)
MAPS_DIGEST = "d3049f9ec7696d41"
RED, GREEN, BLUE = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


@pytest.fixture(scope="module")
def scenes():
    return [make_scene(seed, height=HEIGHT, width=WIDTH) for seed in SEEDS]


def id_map(record):
    return rgb_to_ids(np.asarray(record["segmentation"]))


def same(first, second):
    pictures = all(np.array_equal(np.asarray(first[k]), np.asarray(second[k])) for k in ("image", "segmentation"))
    return pictures and first["segments_info"] == second["segments_info"] and first["image_id"] == second["image_id"]


def rectangle(name, color, rows, columns, share=1.0, effect=None):
    coverage = np.full((rows[1] - rows[0], columns[1] - columns[0]), share, dtype=np.float32)
    return Layer(name, Patch(coverage[..., None] * np.float32(color), coverage, rows[0], columns[0]), effect)


def compose(*layers):
    return compose_scene(layers, np.random.default_rng(7), image_id=7)


def shows(record, row, column, color):
    return np.allclose(np.asarray(record["image"])[row, column] / 255, color, atol=0.08)


def name_at(record, row, column):
    labels = {segment["id"]: segment["label_id"] for segment in record["segments_info"]}
    return SCENE_CATEGORIES.names[labels[int(id_map(record)[row, column])]]


def test_a_seed_says_all(scenes):
    np.random.seed(3)  # noqa: NPY002  the global state must not matter
    assert same(make_scene(5, height=HEIGHT, width=WIDTH), scenes[5])
    assert len({record["image"].tobytes() for record in scenes}) == len(scenes)


def test_scenes_do_not_change():
    """The bundled checkpoint was trained on these; colors are left out, as processors may round them differently."""
    digest = hashlib.sha256()
    for seed in range(12):
        record = make_scene(seed, height=64 + 3 * seed, width=97 + 2 * seed)
        digest.update(id_map(record).astype("<i4").tobytes())
        digest.update(json.dumps(record["segments_info"], sort_keys=True).encode())
        assert np.asarray(record["image"]).mean() == pytest.approx(MEAN_COLORS[seed], abs=0.01)
    assert digest.hexdigest()[:16] == MAPS_DIGEST


def test_map_and_segments_agree_both_ways(scenes):
    for record in scenes:
        ids = id_map(record)
        assert ids.shape == (HEIGHT, WIDTH)
        assert record["image"].size == (WIDTH, HEIGHT)
        found, areas = np.unique(ids, return_counts=True)
        assert dict(zip(found.tolist(), areas.tolist(), strict=True)) == {
            segment["id"]: segment["area"] for segment in record["segments_info"]
        }
        assert 0 not in found
        for segment in record["segments_info"]:
            x, y, width, height = segment["bbox"]
            inside = ids[y : y + height, x : x + width] == segment["id"]
            assert inside.sum() == segment["area"]
            assert inside[[0, -1]].any(1).all()
            assert inside[:, [0, -1]].any(0).all()


def test_no_segment_is_a_speck(scenes):
    assert min(segment["area"] for record in scenes for segment in record["segments_info"]) >= 12


def test_a_stuff_class_is_one_segment_and_things_are_many(scenes):
    most_things = 0
    for record in scenes:
        counts = Counter(segment["label_id"] for segment in record["segments_info"])
        assert all(counts[label] <= 1 for label in SCENE_CATEGORIES.stuff_label_ids)
        things = [n for label, n in counts.items() if label not in SCENE_CATEGORIES.stuff_label_ids]
        most_things = max([most_things, *things])
    assert most_things >= 3


def test_every_class_occurs_and_ids_need_three_bytes(scenes):
    segments = [segment for record in scenes for segment in record["segments_info"]]
    assert {segment["label_id"] for segment in segments} == set(range(len(SCENE_CATEGORIES)))
    assert max(segment["id"] for segment in segments) >= 2**16


def test_the_later_layer_hides_the_earlier_and_things_of_one_class_stay_apart():
    record = compose(
        rectangle("sky", BLUE, (0, 31), (0, 43)),
        rectangle("ball", RED, (5, 20), (5, 20)),
        rectangle("ball", GREEN, (10, 25), (12, 30)),
    )
    ids = id_map(record)
    areas = [segment["area"] for segment in record["segments_info"]]
    assert areas == [31 * 43 - 15 * 15 - 15 * 18 + 10 * 8, 15 * 15 - 10 * 8, 15 * 18]
    assert ids[12, 13] == ids[24, 29] != ids[12, 11]
    assert [name_at(record, row, 15) for row in (0, 6, 15)] == ["sky", "ball", "ball"]
    assert shows(record, 12, 13, GREEN)
    assert shows(record, 12, 11, RED)


def test_stuff_in_two_pieces_is_one_segment():
    record = compose(
        rectangle("sea", BLUE, (0, 31), (0, 43)),
        rectangle("grass", GREEN, (3, 9), (3, 9)),
        rectangle("sand", RED, (10, 15), (0, 43)),
        rectangle("grass", GREEN, (20, 29), (5, 40)),
    )
    ids = id_map(record)
    assert ids[5, 5] == ids[22, 22]
    assert [segment["area"] for segment in record["segments_info"]][1] == 6 * 6 + 9 * 35


def test_a_speck_is_neither_annotated_nor_painted():
    speck = rectangle("ball", RED, (4, 7), (4, 7))  # 9 pixels
    hidden = rectangle("bird", RED, (20, 30), (20, 30))
    record = compose(
        rectangle("sky", BLUE, (0, 31), (0, 43)), speck, hidden, rectangle("balloon", GREEN, (20, 31), (20, 30))
    )
    assert len(record["segments_info"]) == 2
    assert name_at(record, 5, 5) == "sky"
    assert shows(record, 5, 5, BLUE)


def test_what_a_dropped_speck_uncovers_may_stay():
    record = compose(
        rectangle("sky", BLUE, (0, 31), (0, 43)),
        rectangle("ball", RED, (4, 8), (4, 8)),  # 16 pixels, 10 of them seen
        rectangle("bird", GREEN, (6, 8), (5, 8)),  # 6 pixels
    )
    assert [segment["area"] for segment in record["segments_info"]][1:] == [16]


@pytest.mark.parametrize(("share", "owner"), [(0.45, "sky"), (0.55, "ball")])
def test_a_pixel_belongs_to_what_covers_half_of_it(share, owner):
    record = compose(
        rectangle("sky", BLUE, (0, 31), (0, 43)),
        rectangle("ball", RED, (5, 20), (5, 20)),
        rectangle("ball", RED, (5, 20), (20, 25), share),
    )
    assert name_at(record, 10, 22) == owner


def test_a_shadow_is_seen_and_owns_nothing():
    shade = rectangle("", (0.0, 0.0, 0.0), (15, 25), (0, 15)).patch
    record = compose(rectangle("sky", BLUE, (0, 31), (0, 43)), rectangle("ball", RED, (5, 20), (5, 20), effect=shade))
    assert shows(record, 22, 3, (0.0, 0.0, 0.0))
    assert name_at(record, 22, 3) == "sky"
    assert shows(record, 17, 10, RED)


def test_dataset_survives_the_disk_without_loss(tmp_path):
    dataset = scenes_dataset(3, seed=2, height=HEIGHT, width=WIDTH)
    assert dataset.cache_files == []
    dataset.save_to_disk(tmp_path / "scenes")
    loaded = load_from_disk(tmp_path / "scenes")
    assert loaded.features == panoptic_features()
    for row in loaded:
        assert same(row, make_scene(row["image_id"], height=HEIGHT, width=WIDTH))


@pytest.mark.slow  # each process imports the package; a seed says all is tested above
def test_processes_make_the_same_scenes():
    alone, shared = (scenes_dataset(3, seed=4, height=64, width=71, workers=workers) for workers in (0, 2))
    for row, other in zip(alone, shared, strict=True):
        assert same(row, other)


def test_seeds_have_no_scene_in_common():
    ids = [scenes_dataset(3, seed=seed, height=64, width=64)["image_id"] for seed in (0, 1)]
    assert len({image_id for column in ids for image_id in column}) == 6
    # A longer dataset begins with the shorter one.
    assert list(scenes_dataset(2, seed=1, height=64, width=64)["image_id"]) == list(ids[1])[:2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_scene(-1), "`seed`.*-1"),
        (lambda: make_scene(0, height=64, width=63), "at least 64, got 64 and 63"),
        (lambda: scenes_dataset(1, seed=2**31), r"`seed` .*2\*\*31"),
        (lambda: scenes_dataset(0), "`count`.*got 0"),
    ],
)
def test_out_of_range_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
