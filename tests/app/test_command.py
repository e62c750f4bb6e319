"""`detr-panoptic app` and the folder that is a Space: what they take, say, and leave behind."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml
from packaging.requirements import Requirement

from detr_panoptic.cli import main

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "space"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-upload-mb", "0"], "`--max-upload-mb` must be positive, got 0."),
        (["--max-pixels", "-1"], "`--max-pixels` must be positive, got -1."),
        (["--max-seconds", "nan"], "`--max-seconds` must be positive, got nan."),
        (["--concurrency", "0"], "`--concurrency` must be positive, got 0."),
        (["--queue", "0"], "`--queue` must be positive, got 0."),
        (["--port", "70000"], "`--port` must be from 0 to 65535, got 70000."),
        (["--host", "no.such.host.invalid"], "`--host no.such.host.invalid --port 7860` cannot be served"),
        (["--model", "nowhere", "--port", "0"], "`--model nowhere` is no folder here"),
    ],
)
def test_what_makes_no_sense_is_refused(words, message, capsys):
    assert main(["app", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_port_that_is_taken_is_named(capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["app", "--port", str(port)]) == 2
    assert f"--port {port}` cannot be served: Address already in use" in capsys.readouterr().err


def test_without_gradio_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert main(["app"]) == 2
    assert "pip install 'detr-panoptic[demo]'" in capsys.readouterr().err


def test_the_space_is_described_and_needs_what_the_package_needs():
    _, front, _ = (SPACE / "README.md").read_text().split("---\n", 2)
    description = yaml.safe_load(front)
    assert description["sdk"] == "gradio"
    assert (SPACE / description["app_file"]).is_file()
    assert len(description["short_description"]) <= 60  # the Hub refuses more
    (needed,) = map(Requirement, (SPACE / "requirements.txt").read_text().splitlines())
    assert (needed.name, needed.extras) == ("detr-panoptic", {"demo"})
    extra = re.search(r'^demo = \["(gradio[^"]*)"', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert Requirement(extra[1]).specifier.contains(description["sdk_version"])


@pytest.mark.slow  # starts an interpreter and imports everything
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_space_runs_as_it_is_and_leaves_nothing(number, tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path), "GRADIO_SERVER_PORT": "0"}
    process = subprocess.Popen(
        [sys.executable, SPACE / "app.py"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        port = re.search(r":(\d+) ", process.stdout.readline())[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            assert "gradio" in client.get("/").text
            path = Path(client.post("/gradio_api/upload", files={"files": ("x.png", b"x")}).json()[0])
        assert path.is_relative_to(tmp_path)
        assert path.read_bytes() == b"x"
        process.send_signal(number)
        _, error = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert "Traceback" not in error
    assert not list(tmp_path.glob("detr_panoptic_*"))
