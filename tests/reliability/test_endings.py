"""How a command ends: its exit code, its one line, and silence where nobody wants to hear anything."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from detr_panoptic import cli
from detr_panoptic.cli import CLOSED_PIPE, INTERRUPTED, main
from detr_panoptic.commands import demo
from detr_panoptic.commands.data_check import WRONG
from detr_panoptic.commands.frame import EXIT_CODES, USER_ERROR, explain
from detr_panoptic.commands.train import STOPPED
from tests.data_folders import coco_panoptic
from tests.reliability.test_bad_input import DOCUMENT

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
ENVIRONMENT.pop("PYTHONUNBUFFERED", None)  # argparse hears of the closed pipe then, and keeps it to itself


def failing(error):
    def run(*_):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyError("name"), "KeyError: 'name' (--debug shows where it happened)"),
        (RuntimeError("first\nsecond"), "RuntimeError: first (--debug shows where it happened)"),
        (RecursionError(), "RecursionError (--debug shows where it happened)"),
        (ValueError("`name` must be short."), "`name` must be short."),
        (ValueError("a\x1b[2Jb\u202egpj.exe"), r"a\x1b[2Jb\u202egpj.exe"),
    ],
)
def test_an_error_is_one_line_without_a_traceback(error, line, monkeypatch, capsys):
    monkeypatch.setattr(demo, "run", failing(error))
    assert main(["demo"]) == USER_ERROR
    assert capsys.readouterr().err == f"detr-panoptic demo: error: {line}\n"
    assert main(["demo", "--debug"]) == USER_ERROR
    shown = capsys.readouterr().err.splitlines()
    assert shown[0].startswith("Traceback")
    assert shown[-1] == f"detr-panoptic demo: error: {line.removesuffix(' (--debug shows where it happened)')}"


class Broken:
    """A dataset whose records cannot be read."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise ValueError("Cannot read the image 'a.jpg': it is a folder.")


def test_what_a_worker_says_is_not_hidden_by_its_traceback():
    with pytest.raises(ValueError, match="Traceback") as caught:
        next(iter(DataLoader(Broken(), num_workers=1)))
    assert explain(caught.value) == "Cannot read the image 'a.jpg': it is a folder."


def test_an_interrupted_command_says_nothing(monkeypatch, capsys):
    monkeypatch.setattr(demo, "run", failing(KeyboardInterrupt()))
    assert main(["demo"]) == INTERRUPTED
    assert capsys.readouterr() == ("", "")


def test_a_signal_ends_a_process_quietly(tmp_path):
    program = (
        "import signal, sys, torch, datasets;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"  # what a shell starts in the background ignores it
        "from detr_panoptic.cli import main; from detr_panoptic.commands import demo;"
        "load = demo.load_shipped_model; demo.load_shipped_model = lambda: (print('ready', flush=True), load())[1];"
        f"sys.exit(main(['demo', '--scenes', '100000', '--output', {str(tmp_path / 'demo.png')!r}]))"
    )
    command = [sys.executable, "-W", "ignore", "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
        while process.stdout.readline().strip() != b"ready":
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        try:
            _, complaints = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == INTERRUPTED
    assert complaints == b""


def test_a_closed_pipe_ends_a_process_quietly():
    command = [sys.executable, "-m", "detr_panoptic.cli", "train", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
        process.stdout.close()
        complaints = process.stderr.read()
    assert process.returncode == CLOSED_PIPE
    assert complaints == b""


def test_a_closed_pipe_ends_a_table_quietly(tmp_path, monkeypatch, capsys):
    coco_panoptic(tmp_path / "my_data")
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(["data", "check", str(tmp_path / "my_data")]) == CLOSED_PIPE
    assert capsys.readouterr().err == ""


def test_the_help_page_and_the_document_have_all_exit_codes(capsys):
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    assert EXIT_CODES in page
    codes = {0, WRONG, USER_ERROR, INTERRUPTED, CLOSED_PIPE, STOPPED}
    assert {int(code) for code in re.findall(r"^  (\d+) ", EXIT_CODES, re.MULTILINE)} == codes
    section = DOCUMENT.read_text().partition("## How a command ends")[2].partition("\n## ")[0]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)} == codes


def test_commands_end_with_the_codes_that_are_written_down(tmp_path, capsys):
    folder = coco_panoptic(tmp_path / "my_data")
    assert main(["data", "check", str(folder)]) in (0, WRONG)
    (folder / "images" / "31.jpg").unlink()
    assert main(["data", "check", str(folder)]) == WRONG
    assert main(["data", "check", str(folder / "gone")]) == USER_ERROR
    assert main(["data"]) == USER_ERROR
    assert main([]) == USER_ERROR
    assert main(["demo", "--scenes", "none"]) == USER_ERROR
    assert "Traceback" not in capsys.readouterr().err


def test_every_file_of_the_package_leaves_through_one_door():
    """`sys.exit` anywhere else would be a code that nobody wrote down."""
    leaving = re.compile(r"\b(sys\.exit|os\.abort|raise SystemExit)\b")
    files = [path for path in Path(cli.__file__).parent.rglob("*.py") if leaving.search(path.read_text())]
    assert [path.name for path in files] == ["cli.py"]
