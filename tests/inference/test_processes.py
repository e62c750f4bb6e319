"""Prediction in two processes, and after a kill: the files are those of one process."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from detr_panoptic.checkpoints import BUNDLED
from detr_panoptic.inference import Predictor
from detr_panoptic.inference import predictor as module
from detr_panoptic.inference.folder import PredictionFolder
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


def run_in_turn(work, *, first: int) -> list[BaseException]:
    """Calls `work` as two processes in threads, of which one runs at a time: each until it waits for the other.

    So a process gets as far ahead of the other as the places where they wait allow.
    """
    turns, errors = [threading.Semaphore(0), threading.Semaphore(0)], []

    def hand_over(rank):
        turns[1 - rank].release()
        turns[rank].acquire()

    def run(rank):
        turns[rank].acquire()
        try:
            work(
                SimpleNamespace(
                    process_index=rank,
                    num_processes=2,
                    is_main_process=rank == 0,
                    wait_for_everyone=lambda: hand_over(rank),
                )
            )
        except BaseException as error:
            errors.append(error)
        turns[1 - rank].release()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(2)]
    for thread in threads:
        thread.start()
    turns[first].release()
    for thread in threads:
        thread.join(PATIENCE)
    return errors


@pytest.mark.parametrize("first", [0, 1])
def test_each_process_plans_before_another_writes(tmp_path, monkeypatch, first):
    """The plan leaves out what exists: of two plans that were made at different times, no image may fall between."""
    place = threading.local()
    written: Counter[str] = Counter()
    write = PredictionFolder.write

    def counted(self, record, *arguments, **options):
        written[record["index"]] += 1
        write(self, record, *arguments, **options)

    monkeypatch.setattr(PredictionFolder, "write", counted)
    monkeypatch.setattr(module, "processes", lambda: place.state)
    monkeypatch.setattr(module, "gather_object", lambda failures: failures)
    predictor = Predictor.from_pretrained(BUNDLED, device="cpu", runtime="torch")
    scenes = scenes_dataset(COUNT, height=64, width=96)

    def work(state):
        place.state = state
        predictor.predict(scenes, tmp_path, progress=False)

    assert run_in_turn(work, first=first) == []
    assert written == dict.fromkeys(range(COUNT), 1)


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
