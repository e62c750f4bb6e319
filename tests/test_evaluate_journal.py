"""The journal of a long run: whatever moment a process is killed at, the next run goes on."""

import json

import numpy as np
import pytest

from detr_panoptic.evaluation.journal import Journal
from detr_panoptic.image_processing_detr_panoptic import DetrPanopticImageProcessor
from detr_panoptic.inference.batching import Failure, load_batches, plan_batches

from .conftest import photo

SETTINGS = {"threshold": 0.5, "model": "abc"}


def journal(folder, *, length=7, settings=SETTINGS, process=0):
    return Journal(folder / "journal", settings, length=length, process=process)


def test_entries_of_all_processes_come_in_the_order_of_the_images(tmp_path):
    for process, indices in enumerate([(4, 0), (3, 1)]):
        with journal(tmp_path, process=process) as written:
            for index in indices:
                written.write(index, {"value": 10 * index})
    again = journal(tmp_path, process=5)
    assert [(entry["index"], entry["value"]) for entry in again.entries()] == [(0, 0), (1, 10), (3, 30), (4, 40)]
    assert [again.is_done(index) for index in range(7)] == [True, True, False, True, True, False, False]
    assert len(again) == 4


def test_a_line_torn_by_a_kill_is_as_if_it_were_not_there(tmp_path):
    with journal(tmp_path) as written:
        for index in (2, 5):
            written.write(index, {"value": index})
    file = tmp_path / "journal" / "00000.jsonl"
    file.write_bytes(file.read_bytes()[:-7])
    assert len(journal(tmp_path)) == 1  # another process reads it as it is
    with journal(tmp_path) as written:
        assert not written.is_done(5)
        written.write(6, {"value": 6})
    assert [entry["value"] for entry in journal(tmp_path).entries()] == [2, 6]
    assert all(json.loads(line) for line in file.read_text().splitlines())


def test_a_failed_image_is_tried_again_and_listed_as_long_as_it_fails(tmp_path):
    with journal(tmp_path) as written:
        written.write_failure(3, "3 is broken")
        written.write_failure(1, "1 is broken")
    again = journal(tmp_path)
    assert list(again.failures.items()) == [(1, "1 is broken"), (3, "3 is broken")]
    assert not again.is_done(3)
    with again:
        again.write(3, {})
    assert journal(tmp_path).failures == {1: "1 is broken"}


def test_an_image_that_two_runs_did_counts_once(tmp_path):
    for process in (0, 1):
        with journal(tmp_path, process=process) as written:
            written.write(2, {"process": process})
    assert [entry["process"] for entry in journal(tmp_path).entries()] == [0]


@pytest.mark.parametrize("settings", [SETTINGS | {"threshold": 0.6}, SETTINGS | {"more": None, "threshold": 0.25}])
def test_other_settings_are_refused_by_name(tmp_path, settings):
    with journal(tmp_path):
        pass
    with pytest.raises(ValueError, match=r"holds results with `threshold` 0\.5, expected 0\.\d+: name another folder"):
        journal(tmp_path, settings=settings)


class Photos:
    """Photos of given sizes; those of width 1 cannot be read."""

    def __init__(self, sizes):
        self.sizes = sizes

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        if self.sizes[index][0] == 1:
            raise SyntaxError("broken")
        return {"image": photo(self.sizes[index], seed=index)}

    def size_of(self, index):
        if self.sizes[index][0] == 1:
            raise OSError("broken")
        return self.sizes[index]

    def name_of(self, index):
        return f"photo {index}"


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_plan_has_every_image_once(batch_size):
    rng = np.random.default_rng(0)
    photos = Photos([(int(w), int(h)) for w, h in rng.integers(2, 60, (211, 2))])
    plan = list(plan_batches(photos, batch_size))
    assert sorted(index for batch in plan for index in batch) == list(range(211))
    assert {len(batch) for batch in plan[:-1]} == {batch_size}


def test_a_batch_has_images_of_alike_shape():
    sizes = [(40, 20), (20, 40), (30, 30)] * 20
    for batch in plan_batches(Photos(sizes), 5):
        assert len({sizes[index] for index in batch}) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_costs_nobody_else_anything(workers):
    photos = Photos([(40, 24), (1, 1), (33, 24), (40, 24)])
    processor = DetrPanopticImageProcessor(size={"shortest_edge": 24, "longest_edge": 48})
    (loaded,) = load_batches(photos, iter([[0, 1, 2, 3]]), processor, workers=workers)
    assert loaded.failures == [Failure(1, "photo 1: broken")]
    assert [record["index"] for record in loaded.batch.records] == [0, 2, 3]
    assert loaded.batch.sizes == [(24, 40), (24, 33), (24, 40)]
    assert loaded.batch.inputs["pixel_mask"].sum((1, 2)).tolist() == [24 * 40, 24 * 33, 24 * 40]


def test_a_batch_of_broken_images_is_no_batch():
    processor = DetrPanopticImageProcessor()
    (loaded,) = load_batches(Photos([(1, 1)]), iter([[0]]), processor, workers=0)
    assert loaded.batch is None
    assert len(loaded.failures) == 1
