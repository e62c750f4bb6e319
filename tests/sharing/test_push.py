"""Models are pushed to a stand-in for the Hub and loaded from it with the same bits; errors say what to do."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from detr_panoptic import DetrPanopticForSegmentation, DetrPanopticImageProcessor
from detr_panoptic.sharing import push
from tests.conftest import photo
from tests.hub_stand_in import READ_TOKEN, TOKEN, USER, Hub

REPOSITORY = f"{USER}/some-model"
LARGE_FILE = "PUT /large/"
# huggingface_hub 2.4 hands a file to httpx in a way that httpx finds old; November 2026.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw:DeprecationWarning")

# A reader without the package, who gets everything from the Hub.
READER = """
import sys

sys.modules["detr_panoptic"] = None  # installed or not, it cannot be imported
import torch
from huggingface_hub import ModelCard
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


def check_same_weights(hub: Hub, folder: Path, tmp_path: Path, branch: str = "main") -> None:
    arrived = tmp_path / "arrived.safetensors"
    arrived.write_bytes(hub.files(REPOSITORY, branch)["model.safetensors"])
    sent, there = load_file(arrived), load_file(folder / "model.safetensors")
    assert sent.keys() == there.keys()
    assert all(torch.equal(sent[name], there[name]) for name in there)


def test_what_was_pushed_is_loaded_by_its_name_without_the_package(hub, model_folder, tmp_path):
    pushed = push(model_folder, REPOSITORY, message="The first")
    assert pushed.url == f"{hub.endpoint}/{REPOSITORY}"
    assert hub.repositories[REPOSITORY].messages == ["The first"]
    assert not hub.repositories[REPOSITORY].private
    assert hub.files(REPOSITORY).keys() >= {"README.md", "modeling_detr_panoptic.py", "preprocessor_config.json"}
    assert "Things (2): boat, person." in ModelCard(hub.files(REPOSITORY)["README.md"].decode()).text

    script, picture, results = (tmp_path / name for name in ("reader.py", "photo.png", "results.safetensors"))
    script.write_text(READER, encoding="utf-8")
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


def test_a_second_push_sends_what_changed(hub, model_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    push(folder, REPOSITORY)
    first = dict(hub.files(REPOSITORY))
    hub.received.clear()
    push(folder, REPOSITORY)
    assert hub.files(REPOSITORY) == first
    assert not any(line.startswith(LARGE_FILE) for line in hub.received)
    weights = load_file(folder / "model.safetensors")
    weights["class_head.bias"] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    push(folder, REPOSITORY)
    changed = {name for name, content in hub.files(REPOSITORY).items() if content != first[name]}
    assert changed == {"model.safetensors"}


def test_a_branch_is_made_and_the_main_one_stays(hub, model_folder, tmp_path):
    pushed = push(model_folder, REPOSITORY, private=True, revision="half")
    assert pushed.url.endswith(f"{REPOSITORY}/tree/half")
    assert hub.files(REPOSITORY) == {}
    assert hub.repositories[REPOSITORY].private
    check_same_weights(hub, model_folder, tmp_path, "half")


def test_private_is_not_ignored_for_a_repository_that_is_public(hub, model_folder):
    push(model_folder, REPOSITORY)
    before = len(hub.repositories[REPOSITORY].messages)
    with pytest.raises(ValueError, match="exists and is public"):
        push(model_folder, REPOSITORY, private=True)
    assert len(hub.repositories[REPOSITORY].messages) == before


@pytest.mark.parametrize(
    ("token", "repository", "part"),
    [
        (None, REPOSITORY, "Nobody is logged in"),
        ("hf_unknown", REPOSITORY, "does not accept this token"),
        (READ_TOKEN, REPOSITORY, f"may not write to {REPOSITORY}"),
        (TOKEN, "another/some-model", "may not write to another/some-model"),
    ],
)
def test_without_the_right_nothing_is_sent(hub, model_folder, monkeypatch, tmp_path, token, repository, part):
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(OSError, match=part):
        push(model_folder, repository)
    assert hub.repositories == {}


def test_offline_is_said(hub, model_folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="HF_HUB_OFFLINE"):
        push(model_folder, REPOSITORY)
    assert hub.requests == []


def test_an_interrupted_push_can_be_repeated(hub, model_folder, tmp_path):
    hub.cut[LARGE_FILE] = 100  # more than the library tries
    with pytest.raises(OSError, match="interrupted"):
        push(model_folder, REPOSITORY)
    assert hub.files(REPOSITORY) == {}
    hub.cut.clear()
    hub.broken[f"POST /api/models/{REPOSITORY}/commit"] = 503
    with pytest.raises(OSError, match="status 503"):
        push(model_folder, REPOSITORY)
    hub.broken.clear()
    push(model_folder, REPOSITORY)
    check_same_weights(hub, model_folder, tmp_path)


def test_a_refusal_is_shown(hub, model_folder):
    hub.broken["POST /api/validate-yaml"] = 400
    with pytest.raises((OSError, ValueError), match="Invalid metadata"):
        push(model_folder, REPOSITORY)
