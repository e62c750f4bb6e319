"""`evaluate` and `predict` in several processes, and killed: the files are those of one process left in peace."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from detr_panoptic.cli import main
from detr_panoptic.commands.demo import SHIPPED_MODEL
from tests.process_team import team_environments

SCENES = 8
CODE = "import sys; from detr_panoptic.cli import main; sys.exit(main(sys.argv[1:]))"
PATIENCE = 300  # seconds; the processes take 20 on a free core, most of it imports


def words(command: str, output: Path) -> list[str]:
    options = ["--model", str(SHIPPED_MODEL), "--data", "scenes", "--limit", str(SCENES), "--output", str(output)]
    return [command, *options, "--device", "cpu", *(["--to", "coco-panoptic"] if command == "predict" else [])]


def start(arguments: list[str], **environment: str) -> subprocess.Popen:
    """A process of the program, with one thread."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", CODE, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As the started processes have: another number of threads adds up in another order, and rounds otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> Callable[[str], Path]:
    """The results of a command in this process, made when they are asked for."""

    @cache
    def results(command: str) -> Path:
        folder = tmp_path_factory.mktemp(command) / "alone"
        assert main(words(command, folder)) == 0
        return folder

    return results


def assert_same_files(folder: Path, expected: Path) -> None:
    for path in sorted(expected.rglob("*")):
        if path.is_file() and ".journal" not in path.parts:
            assert (folder / path.relative_to(expected)).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("command", ["evaluate", pytest.param("predict", marks=pytest.mark.slow)])
def test_two_processes_write_what_one_writes(tmp_path, expected, command):
    team = [start(words(command, tmp_path / "out"), **environment) for environment in team_environments()]
    for process in team:
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors.decode()
    shares = sorted((tmp_path / "out" / ".journal").glob("*.jsonl"))
    assert [len(share.read_text().splitlines()) for share in shares] == [SCENES // 2] * 2
    assert_same_files(tmp_path / "out", expected(command))


def test_a_killed_run_goes_on_and_ends_the_same(tmp_path, expected):
    process = start(words("evaluate", tmp_path / "out"))
    journal = tmp_path / "out" / ".journal" / "00000.jsonl"
    deadline = time.monotonic() + PATIENCE
    while not journal.exists() or journal.read_bytes().count(b"\n") < 2:
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = journal.read_bytes().count(b"\n")
    assert 2 <= done < SCENES
    assert not (tmp_path / "out" / "metrics.json").exists()
    assert main(words("evaluate", tmp_path / "out")) == 0
    assert len(journal.read_text().splitlines()) == SCENES  # nothing was done twice
    assert_same_files(tmp_path / "out", expected("evaluate"))
