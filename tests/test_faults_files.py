"""Whatever moment a process is killed at while it writes, what was there before or after is whole."""

import itertools
import json
import os
import shutil
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from detr_panoptic.data.files import whole_files, written_whole
from detr_panoptic.evaluation.journal import Journal
from detr_panoptic.training.checkpoints import (
    Progress,
    load_checkpoint,
    save_checkpoint,
)
from tests.fault_injection import Fault, Torn, die, ends_of, in_own_process

LENGTHS = (0, 1, 100, 1000, 4000)  # bytes; of files that are torn
EVERY = 5  # bytes of a journal, from one death to the next
ENTRIES = ({"value": "first"}, {"value": "an image with a longer entry than others"}, {"value": ""}, {"value": "last"})


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


# ------ the journal of evaluation and prediction


def journal_in(folder):
    return Journal(folder / "journal", {"threshold": 0.5}, length=len(ENTRIES))


def write_entries(folder):
    """Says of each entry that it is written, as soon as it is."""
    with journal_in(folder) as journal:
        for index, entry in enumerate(ENTRIES):
            if not journal.is_done(index):
                journal.write(index, entry)
                with (folder / "said").open("a") as file:
                    file.write(f"{index}\n")


def survey_journal(folder):
    """Dies in every part of it."""
    with journal_in(folder / "whole") as journal:
        for index, entry in enumerate(ENTRIES):
            journal.write(index, entry)
    (folder / "run").mkdir()
    length = (folder / "whole" / "journal" / "00000.jsonl").stat().st_size
    settings = len(json.dumps({"threshold": 0.5}, indent=1)) + 1
    lengths = [*range(settings, length, EVERY), length]
    for _ in ends_of(partial(write_entries, folder / "run"), map(Torn, lengths)):
        said = (folder / "run" / "said").read_text().split() if (folder / "run" / "said").exists() else []
        found = [entry["index"] for entry in journal_in(folder / "run").entries()]
        assert found == list(range(len(found)))
        assert len(said) <= len(found) <= len(said) + 1, "no line is lost"
        write_entries(folder / "run")
        entries = list(journal_in(folder / "run").entries())
        assert entries == [{"index": index, **entry} for index, entry in enumerate(ENTRIES)]
        shutil.rmtree(folder / "run")
        (folder / "run").mkdir()


def test_a_journal_loses_no_line_wherever_in_it_the_process_dies(tmp_path):
    in_own_process(survey_journal, tmp_path)


def survey_removal(folder):
    removed_in_part = 0
    for fault in ends_of(lambda: journal_in(folder).remove(), kills(folder)):
        journal = journal_in(folder)
        assert len(journal) in (0, len(ENTRIES))
        assert (journal.folder / "settings.json").exists() == (len(journal) > 0), "no line without its settings"
        removed_in_part += fault is not None and len(journal) == 0
        write_entries(folder)
    assert removed_in_part > 1
    assert not (folder / "journal.removed").exists()


def test_a_journal_that_is_removed_is_there_or_not(tmp_path):
    """Else lines without their settings would be taken for those of the next run."""
    write_entries(tmp_path)
    in_own_process(survey_removal, tmp_path)


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
