"""How a command ends: its exit code, its one line, and silence where nobody reads."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from detr_panoptic.commands import main, program
from detr_panoptic.commands.program import CLOSED_PIPE, INTERRUPTED, USER_ERROR, error_line

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture
def failing_convert(monkeypatch):
    """Makes `convert a b` raise an error."""

    def make(error):
        def failing(*_, **__):
            raise error

        monkeypatch.setattr("detr_panoptic.convert_checkpoint", failing)

    return make


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyError("name"), "KeyError: 'name' (--debug shows where it happened)"),
        (RuntimeError("first\nsecond"), "RuntimeError: first (--debug shows where it happened)"),
        (RecursionError(), "RecursionError (--debug shows where it happened)"),
        (ValueError("`name` must be short."), "`name` must be short."),
        (FileNotFoundError(2, "No such file", "x.json"), "x.json: No such file"),
        (FloatingPointError("Loss is nan"), "Loss is nan"),
        (ValueError("a\x1b[2Jb\u202egpj.exe"), r"a\x1b[2Jb\u202egpj.exe"),
    ],
)
def test_an_error_is_one_line_and_debug_shows_the_traceback(error, line, failing_convert, capsys):
    failing_convert(error)
    assert main(["convert", "a", "b"]) == USER_ERROR
    assert capsys.readouterr().err == f"detr-panoptic: error: {line}\n"
    assert main(["convert", "a", "b", "--debug"]) == USER_ERROR
    shown = capsys.readouterr().err.splitlines()
    assert shown[0].startswith("Traceback")
    assert shown[-1] == f"detr-panoptic: error: {line.removesuffix(' (--debug shows where it happened)')}"


class Broken(Dataset):
    """A dataset whose records cannot be read."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise ValueError("Cannot read the image 'a.jpg': it is a folder.")


def test_an_error_of_a_loading_process_is_not_hidden_by_its_traceback():
    with pytest.raises(ValueError, match="Traceback") as caught:
        next(iter(DataLoader(Broken(), num_workers=1)))
    assert error_line(caught.value) == "Cannot read the image 'a.jpg': it is a folder."


def test_an_interrupted_command_says_nothing(failing_convert, capsys):
    failing_convert(KeyboardInterrupt())
    assert main(["convert", "a", "b"]) == INTERRUPTED
    assert capsys.readouterr() == ("", "")


def test_ctrl_c_ends_a_process_quietly(tmp_path):
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv[0] = 'detr-panoptic';"
        f"from detr_panoptic.commands import main; sys.exit(main(['predict', '--data', 'scenes', '--limit', '99', "
        f"'--model', {str(Path(program.__file__).parents[1] / 'checkpoints' / 'scenes')!r}, "
        f"'--output', {str(tmp_path / 'out')!r}]))"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
        said = next((line for line in process.stderr if b"loading" in line), b"")  # libraries may say something first
        process.send_signal(signal.SIGINT)
        try:
            _, said_later = process.communicate(timeout=60)
        finally:
            process.kill()
    assert b"loading" in said
    assert process.returncode == INTERRUPTED
    assert b"Traceback" not in said_later


def test_a_closed_pipe_ends_a_help_page_quietly():
    command = [sys.executable, "-m", "detr_panoptic.commands", "convert", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
        process.stdout.close()
        complaints = [line for line in process.stderr if b"torch/utils/_pytree.py" not in line]  # about torchao
    assert process.returncode == CLOSED_PIPE
    assert complaints == []


def test_a_closed_pipe_ends_a_result_quietly(monkeypatch, capsys):
    monkeypatch.setattr("detr_panoptic.convert_checkpoint", lambda *_, **__: "a result")
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(["convert", "a", "b"]) == CLOSED_PIPE
    assert capsys.readouterr().err == ""


def test_the_package_leaves_through_one_door():
    """`sys.exit` anywhere else would be an exit code that is not documented."""
    package = Path(program.__file__).parents[1]
    leaving = [path.name for path in package.rglob("*.py") if "sys.exit(" in path.read_text()]
    assert leaving == ["__main__.py"]
