"""Training under faults: what was saved is whole, and a resumed run ends with the bits of an undisturbed one."""

import os
import shutil
import time
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from tests.fault_injection import (
    Fault,
    JumpingClock,
    Program,
    Torn,
    ask_to_end,
    die,
    kill_worker,
    program,
    scatter_times,
)
from tests.process_team import team_environments
from tests.training.runs import assert_same_run, words, write_data

__all__ = ["program"]  # pytest finds it by its name here

pytestmark = [pytest.mark.slow, pytest.mark.promise]
STOPPED = 143  # exit code after SIGTERM
CHECKPOINT_OPERATIONS = 30  # at least so many on the folder from one checkpoint to the next
SOON = 120  # seconds, in which the others of a run have to end, on a machine where much else runs


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """The folder of a run that nothing has disturbed, in a process with one thread."""
    output = tmp_path_factory.mktemp("whole") / "run"
    assert Program(tmp_path_factory.mktemp("logs"))(words(output)).code == 0
    return output


def saved_steps(output):
    return sorted(path.name for path in (output / "checkpoints").glob("step_*"))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_that_dies_again_and_again_ends_with_the_same_bits(program, whole_run, tmp_path, workers):
    """Whatever its clock and the times of its files say."""
    output = tmp_path / "run"
    faults = [
        (Fault(output, 3, die),),
        (Torn(100_000),),
        (Fault(output, 2 * CHECKPOINT_OPERATIONS, die), JumpingClock(0)),
        (Fault(output, CHECKPOINT_OPERATIONS, ask_to_end), JumpingClock(1)),
        (Fault(output, 40, die),),
    ]
    ends = []
    before: list[int] = []
    for seed, some in enumerate(faults):
        ends.append(program(words(output, workers=workers), *some).code)
        now = saved_steps(output)
        assert not before or now[-1] >= before[-1], "no checkpoint is lost"
        before = now
        scatter_times(output, seed)
    assert ends == [-9, -25, -9, STOPPED, -9]
    assert program(words(output, workers=workers)).code == 0
    assert_same_run(output, whole_run)
    left = [path for path in output.rglob(".*") if path.name != ".lock"]
    assert not left, "nothing is left over"


def test_a_folder_that_is_removed_ends_the_run(program, tmp_path):
    output = tmp_path / "run"
    outcome = program(words(output), Fault(output, CHECKPOINT_OPERATIONS, partial(shutil.rmtree, output)))
    assert outcome.code == 2
    assert str(output) in outcome.error


def test_a_worker_that_dies_ends_the_run_and_it_is_resumed(program, whole_run, tmp_path):
    output = tmp_path / "run"
    outcome = program(words(output, workers=1), Fault(output, 2 * CHECKPOINT_OPERATIONS, kill_worker))
    assert outcome.code == 2
    assert "DataLoader worker" in outcome.error
    assert program(words(output, workers=1)).code == 0
    assert_same_run(output, whole_run)


def test_an_image_that_breaks_meanwhile_is_named_and_once_repaired_the_run_is_resumed(program, tmp_path):
    data = write_data(tmp_path / "data", count=5)
    assert program(words(tmp_path / "whole", data=data)).code == 0
    image, output = data / "images" / "3.png", tmp_path / "run"
    contents = image.read_bytes()
    fault = Fault(output, CHECKPOINT_OPERATIONS, partial(os.truncate, image, 100))
    outcome = program(words(output, data=data, workers=1), fault)
    assert outcome.code == 2
    assert "3.png" in outcome.error
    image.write_bytes(contents)
    assert program(words(output, data=data)).code == 0
    assert_same_run(output, tmp_path / "whole")


def test_numbers_that_are_not_finite_never_reach_a_checkpoint(program, tmp_path):
    output = tmp_path / "run"
    outcome = program(words(output, learning_rate=1e30, max_grad_norm=1e30, checkpoint_every=1))
    assert outcome.code == 2
    assert "nan" in outcome.error or "not finite" in outcome.error
    assert " images " in outcome.error
    for name in saved_steps(output):
        weights = load_file(output / "checkpoints" / name / "model.safetensors").values()
        assert all(weight.isfinite().all() for weight in weights)


def test_a_damaged_checkpoint_is_named_with_the_way_on(program, whole_run, tmp_path):
    output = tmp_path / "run"
    assert program(words(output), Fault(output, 4 * CHECKPOINT_OPERATIONS, die)).code == -9
    *earlier, last = saved_steps(output)
    file = output / "checkpoints" / last / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    outcome = program(words(output))
    assert outcome.code == 2
    assert f"{last} is damaged" in outcome.error
    assert outcome.error.endswith(f"resume from {earlier[-1]}.")
    shutil.rmtree(file.parent)
    assert program(words(output)).code == 0
    assert_same_run(output, whole_run)


# ------ two processes


def start_team(program, output, **settings):
    return [program.start(words(output, **settings), environment=environment) for environment in team_environments()]


def wait_for_step(output, step):
    deadline, path = time.monotonic() + SOON, output / "metrics.jsonl"
    while not path.exists() or f'"step": {step}, ' not in path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("dying", [0, 1])
def test_when_a_process_dies_the_other_ends_and_both_resume_to_the_same_bits(program, tmp_path, dying):
    settings = {"limit": 8, "epochs": 6, "checkpoint_every": 3, "evaluate_every": 3}
    for started in start_team(program, tmp_path / "whole", **settings):
        assert started.wait().code == 0
    output = tmp_path / "run"
    team = start_team(program, output, **settings)
    wait_for_step(output, 5)
    team[dying].process.kill()
    assert team[1 - dying].wait(SOON).code == 2
    for started in start_team(program, output, **settings):
        assert started.wait().code == 0
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (output, tmp_path / "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
