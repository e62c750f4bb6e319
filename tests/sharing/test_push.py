"""Models go to a stand-in of the Hub and come back from there with the same bits; failures say how to go on."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from detr_panoptic import DetrPanopticForSegmentation, DetrPanopticImageProcessor
from detr_panoptic.cli import main
from tests.conftest import photo
from tests.hub_stand_in import READ_TOKEN, TOKEN, USER, Hub

REPOSITORY = f"{USER}/some-model"
LARGE_FILE = "PUT /large/"
# huggingface_hub 2.4 hands a file to httpx in a way that httpx finds old; November 2026.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw:DeprecationWarning")

# What a reader does who has no package, and gets everything from the Hub.
STRANGER = """
import sys

sys.modules["detr_panoptic"] = None  # installed or not, it cannot be imported
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

repository, picture, results = sys.argv[1:]
model = AutoModelForUniversalSegmentation.from_pretrained(repository, trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained(repository, trust_remote_code=True)
with torch.no_grad():
    outputs = model(**processor(Image.open(picture), return_tensors="pt"))
save_file({name: outputs[name].contiguous() for name in ("logits", "pred_boxes", "pred_masks")}, results)
"""


def push(folder: Path, *words: str, repository: str = REPOSITORY) -> int:
    return main(["push", str(folder), repository, *words])


def error_of(capsys) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("detr-panoptic push: error:")]
    (line,) = lines
    return line


def check_same_weights(hub: Hub, folder: Path, tmp_path: Path, branch: str = "main") -> None:
    arrived = tmp_path / "arrived.safetensors"
    arrived.write_bytes(hub.files(REPOSITORY, branch)["model.safetensors"])
    sent, there = load_file(arrived), load_file(folder / "model.safetensors")
    assert sent.keys() == there.keys()
    assert all(torch.equal(sent[name], there[name]) for name in there)


def test_what_was_pushed_is_loaded_by_its_name_without_the_package(hub, model_folder, tmp_path, capsys):
    assert push(model_folder, "--message", "The first") == 0
    assert f"It is at {hub.endpoint}/{REPOSITORY}" in capsys.readouterr().out
    assert hub.repositories[REPOSITORY].messages == ["The first"]
    assert not hub.repositories[REPOSITORY].private

    script, picture, results = (tmp_path / name for name in ("stranger.py", "photo.png", "results.safetensors"))
    script.write_text(STRANGER, encoding="utf-8")
    image = photo((71, 53), seed=0)
    image.save(picture)
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONWARNINGS")}
    own = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, script, REPOSITORY, picture, results],
        env=inherited | own | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = load_file(results)
    model = DetrPanopticForSegmentation.from_pretrained(model_folder)
    processor = DetrPanopticImageProcessor.from_pretrained(model_folder)
    with torch.no_grad():
        ours = model.eval()(**processor(image, return_tensors="pt"))
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_a_model_in_memory_is_pushed_by_transformers(hub, model_folder, tmp_path):
    model = DetrPanopticForSegmentation.from_pretrained(model_folder)
    model.push_to_hub("some-model", private=True)
    DetrPanopticImageProcessor.from_pretrained(model_folder).push_to_hub("some-model")
    files = hub.files(REPOSITORY)
    assert hub.repositories[REPOSITORY].private
    assert {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "modeling_detr_panoptic.py",
    } <= files.keys()
    check_same_weights(hub, model_folder, tmp_path)


def test_a_second_push_sends_what_changed(hub, model_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    assert push(folder) == 0
    first = dict(hub.files(REPOSITORY))
    hub.received.clear()
    assert push(folder) == 0
    assert hub.files(REPOSITORY) == first
    assert not any(line.startswith(LARGE_FILE) for line in hub.received)
    weights = load_file(folder / "model.safetensors")
    weights["class_head.bias"] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert push(folder) == 0
    changed = {name for name, content in hub.files(REPOSITORY).items() if content != first[name]}
    assert changed == {"model.safetensors"}


def test_a_branch_is_made_and_the_main_one_stays(hub, model_folder, tmp_path, capsys):
    assert push(model_folder, "--private", "--revision", "half") == 0
    assert hub.files(REPOSITORY) == {}
    assert hub.repositories[REPOSITORY].private
    assert f"{REPOSITORY}/tree/half" in capsys.readouterr().out
    check_same_weights(hub, model_folder, tmp_path, "half")
    assert push(model_folder, "--private", "--revision", "half") == 0


def test_private_is_a_promise(hub, model_folder, capsys):
    """The Hub would ignore the wish where the repository exists."""
    assert push(model_folder) == 0
    before = len(hub.repositories[REPOSITORY].messages)
    assert push(model_folder, "--private") == 2
    assert "exists and is public: nothing was sent" in error_of(capsys)
    assert len(hub.repositories[REPOSITORY].messages) == before


def test_the_way_that_hf_xet_takes_ends_the_same(hub, model_folder, tmp_path, monkeypatch):
    """As far as it goes without a store for its chunks: the stand-in takes every file as a small one."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    hub.large_file_transfer = False
    assert push(model_folder) == 0
    check_same_weights(hub, model_folder, tmp_path)
    assert len(hub.repositories[REPOSITORY].messages) == 1


@pytest.mark.parametrize(
    ("token", "repository", "part"),
    [
        (None, REPOSITORY, "Nobody is logged in to the Hub: log in with `hf auth login`, or set HF_TOKEN"),
        ("hf_unknown", REPOSITORY, "does not accept this token: log in"),
        (READ_TOKEN, REPOSITORY, f"This token may not write to {REPOSITORY}: take one that may"),
        (TOKEN, "another/some-model", "This token may not write to another/some-model"),
    ],
)
def test_without_the_right_nothing_is_sent(hub, model_folder, monkeypatch, tmp_path, capsys, token, repository, part):
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    assert push(model_folder, repository=repository) == 2
    assert part in error_of(capsys)
    assert hub.repositories == {}


def test_offline_is_said(hub, model_folder, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert push(model_folder) == 2
    assert "HF_HUB_OFFLINE is set" in error_of(capsys)
    assert hub.requests == []


@pytest.mark.parametrize("request_line", [LARGE_FILE, "POST /api/models/", "POST /api/repos/create"])
def test_a_connection_that_is_cut_leaves_nothing_and_the_second_try_finishes(
    hub, model_folder, tmp_path, capsys, request_line
):
    hub.cut[request_line] = 100  # more than the library tries
    assert push(model_folder) == 2
    line = error_of(capsys)
    assert "The upload broke off" in line
    assert "Start the same command again" in line
    assert REPOSITORY not in hub.repositories or hub.files(REPOSITORY) == {}
    hub.cut.clear()
    assert push(model_folder) == 0
    check_same_weights(hub, model_folder, tmp_path)


def test_one_cut_is_mended_on_the_way(hub, model_folder, tmp_path):
    hub.cut[LARGE_FILE] = 1
    assert push(model_folder) == 0
    check_same_weights(hub, model_folder, tmp_path)


@pytest.mark.parametrize("request_line", [LARGE_FILE, f"POST /api/models/{REPOSITORY}/commit", "GET /api/whoami"])
def test_a_hub_that_is_down_is_waited_for(hub, model_folder, tmp_path, capsys, request_line):
    hub.broken[request_line] = 503
    assert push(model_folder) == 2
    line = error_of(capsys)
    assert "busy or down (it answered 503)" in line
    assert "Start the same command again" in line
    hub.broken.clear()
    hub.received.clear()
    assert push(model_folder) == 0
    check_same_weights(hub, model_folder, tmp_path)
    if "commit" in request_line:  # the weights had arrived
        assert not any(line.startswith(LARGE_FILE) for line in hub.received)


def test_a_refusal_is_shown(hub, model_folder, capsys):
    hub.broken["POST /api/validate-yaml"] = 400
    assert push(model_folder) == 2
    assert json.dumps("as the test wants it").strip('"') in error_of(capsys)
