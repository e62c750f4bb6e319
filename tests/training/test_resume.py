"""A run in its own process that is killed, or asked to end, goes on to the same bits when it is started again."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

PATIENCE = 120  # seconds; a run takes ten on a free core, most of it imports
OPTIONS = {
    "recipe": "none",
    "data": "scenes",
    "limit": 4,
    "first-short-side": 64,
    "short-side": 96,
    "long-side": 96,
    "augmentation": "flip",
    "backbone": "test_resnet",
    "hidden-size": 32,
    "num-heads": 4,
    "encoder-layers": 1,
    "decoder-layers": 2,
    "ffn-dim": 32,
    "num-queries": 12,
    "batch-size": 1,
    "epochs": 10,
    "evaluate-every": 5,
    "log-every": 1,
    "checkpoint-every": 3,
    "ema-decay": 0.9,
    "place-cost": 10.0,
    "workers": 1,
}
STEPS = 40
STOPPED = 143  # exit code after SIGTERM


@pytest.fixture
def start():
    """Starts the program in a process group of its own, which does not outlive the test."""
    processes = []

    def start_one(output):
        words = itertools.chain.from_iterable((f"--{name}", str(value)) for name, value in OPTIONS.items())
        command = [sys.executable, "-m", "detr_panoptic.commands", "train", "--output", str(output), *words]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}  # sums in one order
        processes.append(subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL))
        return processes[-1]

    yield start_one
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def steps_of(output):
    path = output / "metrics.jsonl"
    written = path.read_text().splitlines(keepends=True) if path.exists() else []
    lines = [json.loads(line) for line in written if line.endswith("\n")]
    return [line["step"] for line in lines if "loss" in line]


def signal_at(process, output, step, number):
    """Signals the whole group, data workers included, when the update is done; returns the exit code."""
    deadline = time.monotonic() + PATIENCE
    while step not in steps_of(output):
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"The run did not come to update {step}: exit code {process.poll()}.")
        time.sleep(0.002)
    os.killpg(process.pid, number)
    return process.wait(timeout=PATIENCE)


@pytest.mark.slow
@pytest.mark.promise
def test_killed_and_stopped_runs_go_on_to_the_same_bits(start, tmp_path):
    whole = tmp_path / "whole"
    undisturbed = start(whole)
    broken = tmp_path / "broken"
    assert signal_at(start(broken), broken, 6, signal.SIGKILL) == -signal.SIGKILL
    assert signal_at(start(broken), broken, 9, signal.SIGTERM) == STOPPED
    stopped_after = steps_of(broken)[-1]
    assert 9 <= stopped_after < STEPS
    assert (broken / "checkpoints" / f"step_{stopped_after:08d}").is_dir()
    assert start(broken).wait(timeout=PATIENCE) == 0
    assert undisturbed.wait(timeout=PATIENCE) == 0

    assert steps_of(broken) == list(range(1, STEPS + 1))
    for name in ("model.safetensors", f"checkpoints/step_{STEPS:08d}_epoch_10/model.safetensors"):
        ours, theirs = load_file(broken / name), load_file(whole / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name
