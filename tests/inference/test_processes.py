"""Prediction in two processes, and after a kill: the files are those of one process."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from detr_panoptic.checkpoints import BUNDLED
from detr_panoptic.inference import Predictor
from detr_panoptic.scenes import scenes_dataset
from tests.process_team import team_environments

COUNT = 5
PATIENCE = 240  # seconds; most of it is imports on a busy machine
CODE = """
import sys
import accelerate
from detr_panoptic.inference import Predictor
from detr_panoptic.scenes import scenes_dataset

predictor = Predictor.from_pretrained(sys.argv[1], device="cpu")
scenes = scenes_dataset(int(sys.argv[3]), height=64, width=96)
folder = predictor.predict(scenes, sys.argv[2], to="coco", progress=False)
accelerate.PartialState().destroy_process_group()
print(len(folder))
"""


def start(output, **environment):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", CODE, str(BUNDLED), str(output), str(COUNT)],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.fixture(autouse=True)
def _one_thread():
    """As in the other processes: another number of threads adds up in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.promise
def test_two_processes_and_a_killed_one_write_what_one_writes(tmp_path):
    predictor = Predictor.from_pretrained(BUNDLED, device="cpu")
    predictor.predict(scenes_dataset(COUNT, height=64, width=96), tmp_path / "one", to="coco", progress=False)
    expected = files_of(tmp_path / "one")

    team = [start(tmp_path / "two", **environment) for environment in team_environments()]
    for process in team:
        output, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors.decode()
        assert output.decode().strip() == str(COUNT)
    assert files_of(tmp_path / "two") == expected

    process = start(tmp_path / "killed")
    deadline = time.monotonic() + PATIENCE
    while len(list((tmp_path / "killed" / "segments").glob("[!.]*.json"))) < 2:
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    folder = predictor.predict(
        scenes_dataset(COUNT, height=64, width=96), tmp_path / "killed", to="coco", progress=False
    )
    assert folder.num_earlier >= 2
    found = files_of(tmp_path / "killed")
    assert {name: found[name] for name in expected} == expected
