"""Whatever moment a process is killed at while it writes, what was there before or after is whole."""

import itertools
import os
import shutil
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from detr_panoptic.data.files import whole_files, written_whole
from detr_panoptic.training.state import (
    Progress,
    load_checkpoint,
    save_checkpoint,
)
from tests.fault_injection import Fault, Torn, die, ends_of, in_own_process

LENGTHS = (0, 1, 100, 1000, 4000)  # bytes; of files that are torn


def kills(folder):
    return (Fault(folder, at, die) for at in itertools.count(1))


def tears():
    return map(Torn, (*LENGTHS, 1 << 40))


# ------ checkpoints


def run_at(folder, step):
    """A run of one weight tensor, which holds the number of the update."""
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(torch.nn.Linear(40, 30))
    progress = Progress(step=step, windows=1)
    accelerator.register_for_checkpointing(progress)
    with torch.no_grad():
        model.weight.fill_(step)
    return partial(save_checkpoint, accelerator, folder, progress, keep=2), accelerator, model, progress


def check_checkpoints(folder, least):
    """Every checkpoint is what its name says, and none that was saved is missing; returns the steps."""
    steps = []
    for path in sorted((folder / "checkpoints").glob("step_*")):
        step = int(path.name.removeprefix("step_"))
        assert (load_file(path / "model.safetensors")["weight"] == step).all()
        assert torch.load(path / "custom_checkpoint_0.pkl", weights_only=True)["step"] == step
        assert {"random_states_0.pkl"} <= {file.name for file in path.iterdir()}
        steps.append(step)
    assert max(steps) >= least
    assert len(steps) >= 2, "two are kept"
    return steps


def survey_checkpoints(folder, faults):
    before, run = folder / "before", folder / "run"
    for step in (1, 2):
        run_at(before, step)[0]()
    count = 0
    shutil.copytree(before, run)
    save, *_ = run_at(run, 3)
    for fault in ends_of(save, faults()):
        steps = check_checkpoints(run, least=2 if fault else 3)
        _, accelerator, model, progress = run_at(run, 9)
        load_checkpoint(accelerator, run, progress)
        assert progress.step == steps[-1]
        assert (model.weight == steps[-1]).all()
        shutil.rmtree(run)
        shutil.copytree(before, run)
        count += fault is not None
    assert count >= 5, "the process was killed at several moments"


def test_a_checkpoint_is_whole_or_not_there_after_a_kill_at_any_operation(tmp_path):
    in_own_process(survey_checkpoints, tmp_path, partial(kills, tmp_path / "run"))


def test_a_checkpoint_is_whole_or_not_there_after_a_kill_in_the_middle_of_a_write(tmp_path):
    in_own_process(survey_checkpoints, tmp_path, tears)


# ------ files of a training run


def write_files(folder):
    with whole_files(folder, "It") as partial_folder:
        for name in ("a", "b", "c"):
            (partial_folder / name).write_text(30_000 * "2")


def write_settings(folder):
    with written_whole(folder / "a", durable=True) as part:
        part.write_text(30_000 * "2")


def survey_files(folder, write, faults):
    folder = folder / "run"
    count = 0
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / name).write_text(30_000 * "1")
    for fault in ends_of(partial(write, folder), faults()):
        contents = {(folder / name).read_text() for name in ("a", "b", "c")}
        assert contents <= {30_000 * "1", 30_000 * "2"}
        count += fault is not None
    write(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b", "c"], "nothing is left over"
    assert count >= 2, "the process was killed at several moments"


@pytest.mark.parametrize("write", [write_files, write_settings])
@pytest.mark.parametrize("kind", ["kill", "tear"])
def test_files_are_whole_after_a_kill(tmp_path, write, kind):
    faults = tears if kind == "tear" else partial(kills, tmp_path / "run")
    in_own_process(survey_files, tmp_path, write, faults)


def test_a_process_that_is_killed_has_no_time_to_clean_up(tmp_path):
    """The faults of this file are what they say."""
    in_own_process(survey_faults, tmp_path)


def survey_faults(folder):
    def write():
        (folder / "file").write_text(10 * "x")
        os.replace(folder / "file", folder / "renamed")  # noqa: PTH105  what is counted

    left = []
    for _ in ends_of(write, itertools.chain([Torn(4)], kills(folder))):
        left.append({path.name: path.read_text() for path in folder.iterdir()})
        for path in folder.iterdir():
            path.unlink()
    assert left == [{"file": "xxxx"}, {}, {"file": 10 * "x"}, {"renamed": 10 * "x"}]
