"""`accelerate launch` with two processes: the script of this package, and a loop of the user's own."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from detr_panoptic import DetrPanopticForSegmentation, DetrPanopticImageProcessor
from detr_panoptic.evaluation.trainer_metrics import TrainerPanopticQuality
from detr_panoptic.scenes import SCENE_CATEGORIES
from tests.training.runs import metrics_of, words

ROOT = Path(__file__).parents[2]


def launch(script, *arguments):
    """What two processes on this machine print; the variable makes Accelerate take CPUs for GPUs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = ["--multi_gpu", "--num_processes", "2", "--main_process_port", port, "--mixed_precision", "no"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, str(script), *arguments]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    paths = [str(ROOT), str(ROOT / "src"), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow  # starts three interpreters
@pytest.mark.promise
def test_a_loop_of_the_users_own(tmp_path):
    printed = launch(ROOT / "tests" / "clients" / "plain_loop.py", str(tmp_path))
    losses, weights = (re.findall(r"[\d.]+", re.search(f"{name} (.*)", printed)[1]) for name in ("losses", "weights"))
    assert len(set(losses)) == 2  # of different images
    assert len(weights) == 2
    assert len(set(weights)) == 1
    assert DetrPanopticForSegmentation.from_pretrained(tmp_path).config.id2label == SCENE_CATEGORIES.id2label


@pytest.mark.slow  # starts three interpreters
@pytest.mark.promise
def test_the_script(tmp_path):
    _, *options = words(tmp_path, ema_decay=0.5)
    printed = launch(ROOT / "scripts" / "train.py", *options)
    assert "finished" in printed
    assert DetrPanopticForSegmentation.from_pretrained(tmp_path).config.num_labels == len(SCENE_CATEGORIES)
    assert any("pq" in line for line in metrics_of(tmp_path))


def test_the_metrics_of_a_trainer_are_refused_in_several_processes(monkeypatch):
    """They waited for ever, or ended the processes: Accelerate gathers targets of different sizes."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="`compute_metrics` must be None in 2 processes"):
        TrainerPanopticQuality(DetrPanopticImageProcessor(), SCENE_CATEGORIES)
