"""Evaluation and prediction under faults: no finished image is lost, and the files are those of one left in peace."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from functools import partial

import pytest
import torch

from detr_panoptic import DetrPanopticForSegmentation, DetrPanopticImageProcessor
from detr_panoptic.commands.demo import SHIPPED_MODEL
from detr_panoptic.data.writing import write_coco_panoptic_dataset
from detr_panoptic.scenes import SCENE_CATEGORIES, scenes_dataset
from tests.fault_injection import (
    Fault,
    JumpingClock,
    Program,
    Torn,
    ask_to_end,
    die,
    fill,
    kill_worker,
    program,
    scatter_times,
    small_disk,
)
from tests.process_team import team_environments

__all__ = ["program"]  # pytest finds it by its name here

COUNT = 6
SOON = 120  # seconds, in which the others of a run have to end, on a machine where much else runs
COMMANDS = ("evaluate", "predict files", "predict coco-panoptic", "predict parquet")
BEFORE_IMAGES = 8  # operations on the output folder
PER_IMAGE = {"evaluate": 3, "predict files": 9, "predict coco-panoptic": 3, "predict parquet": 3}


def slow(command):
    return pytest.param(command, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model that finds segments, at a size that costs little."""
    folder = tmp_path_factory.mktemp("model")
    DetrPanopticForSegmentation.from_pretrained(SHIPPED_MODEL).save_pretrained(folder)
    size = {"shortest_edge": 64, "longest_edge": 96}
    DetrPanopticImageProcessor.from_pretrained(SHIPPED_MODEL, size=size).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_coco_panoptic_dataset(folder, scenes_dataset(COUNT, height=64, width=96), SCENE_CATEGORIES)
    return folder


@pytest.fixture(scope="module")
def words(model, data):
    """The command line of one of `COMMANDS`."""

    def words_of(command, output, *more):
        name, _, to = command.partition(" ")
        options = ["--to", to] if to else []
        return [name, "--model", model, "--data", data, "--output", output, "--device", "cpu", *options, *more]

    return words_of


@pytest.fixture(scope="module")
def expected(tmp_path_factory, words):
    """Names and contents of the results of each command, by a run that nothing has disturbed."""
    program, results = Program(tmp_path_factory.mktemp("logs")), {}

    def results_of(command):
        if command not in results:
            output = tmp_path_factory.mktemp("whole") / "out"
            assert program(words(command, output)).code == 0
            results[command] = contents_of(output)
        return results[command]

    return results_of


def contents_of(folder):
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and ".journal" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def done_in(output):
    """Numbers of the images that the journal says are done."""
    path = output / ".journal" / "00000.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return {json.loads(line)["index"] for line in lines if line.endswith(b"\n")}


@pytest.mark.parametrize("command", ["evaluate", *map(slow, COMMANDS[1:3]), "predict parquet"])
def test_a_run_that_dies_again_and_again_writes_the_same_files(program, words, expected, tmp_path, command):
    """Whatever its clock and the times of its files say."""
    output = tmp_path / "out"
    third = BEFORE_IMAGES + 2 * PER_IMAGE[command] + 2
    faults = [(Fault(output, third, die),), (Torn(300),), (Fault(output, third, ask_to_end), JumpingClock(0))]
    before = set()
    for seed, some in enumerate(faults):
        assert program(words(command, output), *some).code in (-9, -15, -25)
        assert done_in(output) >= before, "no image is lost"
        before = done_in(output)
        scatter_times(output, seed)
    assert program(words(command, output), JumpingClock(1)).code == 0
    assert contents_of(output) == expected(command)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_that_dies_at_any_operation_of_its_last_step_can_be_finished(
    program, words, expected, tmp_path, command
):
    """The images are done; files for all of them are written, and what was needed until then is removed."""
    done, output = tmp_path / "done", tmp_path / "out"
    at = BEFORE_IMAGES + COUNT * PER_IMAGE[command]
    while len(done_in(done)) < COUNT:  # dies at the first operation after the last image
        shutil.rmtree(done, ignore_errors=True)
        at += 1
        assert program(words(command, done), Fault(done, at, die)).code == -9
    for at in itertools.count(1):
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(done, output)
        code = program(words(command, output), Fault(output, at, die)).code
        if code == -9:
            assert program(words(command, output)).code == 0, at
        assert contents_of(output) == expected(command), at
        if code == 0:
            break
    assert at > 5


@pytest.mark.parametrize("command", ["evaluate", slow("predict files")])
def test_a_full_disk_loses_no_image_and_with_more_room_the_run_goes_on(program, words, expected, tmp_path, command):
    with small_disk(tmp_path / "disk", "8m") as disk:
        output, before = disk / "out", set()
        for pages in (1, 6, 9):
            filler = fill(disk, leave=4096 * pages)
            outcome = program(words(command, output))
            filler.unlink()
            assert outcome.code == 2
            assert "No space left on device" in outcome.error, outcome.text
            assert f"{output} was changed, or can no longer be written to" in outcome.error or pages == 1
            assert done_in(output) >= before, "no image is lost"
            before = done_in(output)
        assert before
        assert program(words(command, output)).code == 0
        assert contents_of(output) == expected(command)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up the rights of root")
def test_a_folder_that_becomes_read_only_is_named(program, words, tmp_path):
    output = tmp_path / "out"
    options = words("evaluate", output, "--data", "scenes", "--limit", 3)
    outcome = program(options, Fault(output, BEFORE_IMAGES + 2, partial(os.seteuid, 65534)))
    assert outcome.code == 2
    assert f"{output} was changed, or can no longer be written to" in outcome.error
    assert "Permission denied" in outcome.error
    assert program(options).code == 0


@pytest.mark.parametrize("command", ["evaluate", slow("predict coco-panoptic")])
@pytest.mark.parametrize("part", ["", "panoptic", ".journal"])
def test_a_folder_that_is_removed_ends_the_run_without_a_result(program, words, tmp_path, command, part):
    output = tmp_path / "out"
    outcome = program(words(command, output), Fault(output, BEFORE_IMAGES + 4, partial(shutil.rmtree, output / part)))
    assert outcome.code == 2
    assert str(output) in outcome.error
    assert "start the same command again" in outcome.error.lower()
    assert not (output / "metrics.json").exists()
    assert not (output / "panoptic.json").exists()


def test_a_worker_that_dies_ends_the_run_and_it_goes_on(program, words, expected, tmp_path):
    output = tmp_path / "out"
    outcome = program(words("evaluate", output, "--workers", "1"), Fault(output, BEFORE_IMAGES + 1, kill_worker))
    assert outcome.code == 2
    assert "A process that reads images has died" in outcome.error
    assert program(words("evaluate", output)).code == 0
    assert contents_of(output) == expected("evaluate")


def test_a_process_that_dies_ends_the_other_and_the_run_goes_on(program, words, expected, tmp_path):
    output = tmp_path / "out"
    faults = ((), (Fault(output, BEFORE_IMAGES - 2, die),))
    first, second = (
        program.start(words("evaluate", output), *own, environment=environment)
        for own, environment in zip(faults, team_environments(), strict=True)
    )
    assert second.wait().code == -9
    outcome = first.wait(SOON)
    assert outcome.code == 2, outcome.text
    assert "Another process of this run has ended" in outcome.error
    assert program(words("evaluate", output)).code == 0
    assert contents_of(output) == expected("evaluate")


def test_an_image_that_breaks_meanwhile_is_skipped_and_named(program, words, expected, data, tmp_path):
    output = tmp_path / "out"
    image = sorted((data / "images").iterdir())[-1]
    contents = image.read_bytes()
    try:
        fault = Fault(output, BEFORE_IMAGES, partial(os.truncate, image, 100))
        outcome = program(words("evaluate", output, "--on-error", "skip"), fault)
    finally:
        image.write_bytes(contents)
    assert outcome.code == 2
    assert image.name in outcome.text
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["images"] == COUNT - 1
    assert image.name in metrics["skipped"][0]
    assert program(words("evaluate", output)).code == 0
    assert contents_of(output) == expected("evaluate")


@pytest.mark.parametrize("command", ["evaluate", "predict files"])
def test_weights_that_are_not_finite_are_named(program, words, model, tmp_path, command):
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    weights = DetrPanopticForSegmentation.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        weights.box_head.layers[0].weight[0, 0] = float("nan")
    weights.save_pretrained(broken)
    outcome = program([broken if word == model else word for word in words(command, tmp_path / "out")])
    assert outcome.code == 2
    assert "weights that are not finite in torch.float32: box_head.layers.0.weight" in outcome.error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["evaluate", "predict files"])
def test_outputs_that_are_not_finite_are_no_result(program, words, model, tmp_path, command):
    broken, output = tmp_path / "broken", tmp_path / "out"
    shutil.copytree(model, broken)
    weights = DetrPanopticForSegmentation.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        weights.class_head.weight.fill_(3e38)
    weights.save_pretrained(broken)
    outcome = program([broken if word == model else word for word in words(command, output)])
    assert outcome.code == 2
    assert "outputs are not finite with the images" in outcome.error
    assert not (output / "metrics.json").exists()
    assert not list(output.rglob("*.png"))


HOLDER = """
import sys
from pathlib import Path
from detr_panoptic.training.faults import claim_output
with claim_output(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("command", ["evaluate", "predict parquet"])
def test_two_runs_in_one_folder_are_refused_and_a_dead_one_is_in_nobodys_way(
    program, words, expected, tmp_path, command
):
    output = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, output], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        try:
            assert holder.stdout.readline() == b"held\n"
            outcome = program(words(command, output))
            assert outcome.code == 2
            assert "belongs to another run that is still going on" in outcome.error
        finally:
            holder.kill()
    assert (output / ".lock").exists(), "it had no time to remove it"
    assert program(words(command, output)).code == 0
    assert contents_of(output) == expected(command)


def test_a_foreign_folder_of_data_is_not_replaced(program, words, tmp_path):
    output = tmp_path / "out"
    (output / "data").mkdir(parents=True)
    (output / "data" / "mine.txt").write_text("mine")
    outcome = program(words("predict parquet", output))
    assert outcome.code == 2
    assert "has a folder `data` that is no result of an earlier run" in outcome.error
    assert (output / "data" / "mine.txt").read_text() == "mine"
