"""Many clients at once: every answer is the one that a client alone gets, and nothing piles up."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "app_load.py"


def load(url: str, files: list[Path], **options: float) -> dict:
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    words += ["--files", *map(str, files)]
    command = [sys.executable, str(SCRIPT), "--url", url, "--pid", str(os.getpid()), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def check(report: dict, *, least: int) -> None:
    assert report["answers"] >= least
    assert report["different_from_sequential"] == 0
    assert set(report["errors"]) <= {"busy"}


def test_a_few_clients_get_what_one_gets(page, scene, tiny_picture):
    check(load(page, [scene, tiny_picture], clients=5, seconds=2), least=5)


@pytest.mark.slow
def test_twenty_clients_get_what_one_gets_and_memory_stays(page, scene, tiny_picture):
    report = load(page, [scene, tiny_picture], clients=20, seconds=60)
    check(report, least=20)
    # In a process that has run other tests: the benchmark on a server of its own is sharper (docs/app.md).
    assert report["memory_mb"]["slope per minute, second half"] < 60


def test_only_loopback_is_burdened():
    command = [sys.executable, str(SCRIPT), "--url", "http://example.com/"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "loopback" in done.stderr
