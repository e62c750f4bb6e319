"""Saved with its code, a model works without the package installed, and comes back from there bit for bit."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation, pipeline

from detr_panoptic import DetrPanopticForSegmentation, DetrPanopticImageProcessor
from tests.conftest import build_tiny
from tests.contract.test_imports import MODEL_FILES

# What a reader without the package does. Arguments: the folder to load, the image, and where to put the
# results and the fine-tuned model.
READER = """
import sys

sys.modules["detr_panoptic"] = None  # installed or not, it cannot be imported
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageSegmentation,
    AutoModelForUniversalSegmentation,
    pipeline,
)

folder, picture, results, tuned = sys.argv[1:]
image = Image.open(picture)
trusted = {"trust_remote_code": True}
config = AutoConfig.from_pretrained(folder, **trusted)
processor = AutoImageProcessor.from_pretrained(folder, **trusted)
inputs = processor(image, return_tensors="pt")
tensors = {}
for auto_class in (AutoModelForImageSegmentation, AutoModelForUniversalSegmentation):
    model = auto_class.from_pretrained(folder, **trusted)
    with torch.no_grad():
        outputs = model(**inputs)
    for name in ("logits", "pred_boxes", "pred_masks"):
        tensors[f"{auto_class.__name__}.{name}"] = outputs[name]
assert type(model.config) is type(config)
assert torch.equal(
    AutoModel.from_pretrained(folder, **trusted)(**inputs).last_hidden_state, outputs.last_hidden_state
)

segment = pipeline("image-segmentation", model=folder, **trusted)
assert type(segment).__name__ == "DetrPanopticImageSegmentationPipeline", type(segment)
alone, _ = segment([image, image.resize((31, 45))], batch_size=2), segment(image, subtask="semantic")
for i, found in enumerate(segment(image)):
    tensors[f"mask.{i}.{found['label']}"] = torch.from_numpy(np.array(found["mask"]))
    tensors[f"score.{i}"] = torch.tensor(found["score"])

ids = np.ones((image.height, image.width), np.int64)
ids[5:20, 7:30] = 2
annotation = {
    "image_id": 3,
    "segmentation": ids,
    "segments_info": [{"id": 1, "label_id": 1}, {"id": 2, "label_id": 0}],
}
batch = processor(image, annotations=annotation, return_tensors="pt")
model.train()
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
model(**batch).loss.backward()
optimizer.step()
model.eval()
model.save_pretrained(tuned)
processor.save_pretrained(tuned)
with torch.no_grad():
    tensors["tuned.logits"] = model(**inputs).logits
    tensors["tuned.pred_masks"] = model(**inputs).pred_masks
    again = AutoModelForUniversalSegmentation.from_pretrained(tuned, **trusted)  # its code now comes from there
    assert type(again) is not type(model)
    tensors["again.pred_masks"] = again(**inputs).pred_masks
save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, results)
"""


def run_reader(tmp_path: Path, folder: Path, name: str) -> tuple[dict[str, torch.Tensor], Path]:
    """Results of the script on a folder, and the folder of the model that it fine-tuned."""
    script, results, tuned = (tmp_path / f"{name}{ending}" for ending in (".py", ".safetensors", ""))
    script.write_text(READER, encoding="utf-8")
    home = {key: str(tmp_path / f"{name}_{key}") for key in ("HF_HOME", "HF_MODULES_CACHE")}
    settings = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    inherited = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONWARNINGS")}
    done = subprocess.run(
        [sys.executable, script, folder, tmp_path / "image.png", results, tuned],
        cwd=tmp_path,
        env=inherited | home | settings,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "not supported" not in done.stderr
    assert "fall" not in done.stderr.lower(), done.stderr  # back to another processor
    return load_file(results), tuned


def build(seed: int) -> DetrPanopticForSegmentation:
    labels = {"id2label": {0: "cat", 1: "sky", 2: "dog"}, "stuff_label_ids": [1], "threshold": 0.3}
    model = build_tiny(seed=seed, encoder_layers=1, ffn_dim=32, dropout=0.1, **labels).eval()
    with torch.no_grad():
        model.class_head.weight *= 9  # confident, so that there are segments to compare
        model.class_head.bias[-1] = -9
    return model


@pytest.fixture
def image(tmp_path):
    colors = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    picture = Image.fromarray(colors).resize((70, 50))
    picture.save(tmp_path / "image.png")
    return picture


def test_round_trip_without_the_package(tmp_path, image):
    model, folder = build(0), tmp_path / "first"
    processor = DetrPanopticImageProcessor.for_model(model.config, size={"shortest_edge": 64, "longest_edge": 99})
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    inputs = processor(image, return_tensors="pt")

    theirs, tuned = run_reader(tmp_path, folder, "reader")
    with torch.no_grad():
        outputs = model(**inputs)
    for name in ("logits", "pred_boxes", "pred_masks"):
        for auto_class in ("AutoModelForImageSegmentation", "AutoModelForUniversalSegmentation"):
            assert torch.equal(theirs[f"{auto_class}.{name}"], outputs[name]), name
    ours = pipeline("image-segmentation", model=model, image_processor=processor)(image)
    assert ours != []
    assert len(ours) == sum(key.startswith("score.") for key in theirs)
    for i, found in enumerate(ours):
        assert np.array_equal(theirs[f"mask.{i}.{found['label']}"].numpy(), np.array(found["mask"]))
        assert theirs[f"score.{i}"].item() == pytest.approx(found["score"], abs=1e-7)

    # What it fine-tuned and saved loads again, there and with the package, with the same bits.
    back = AutoModelForUniversalSegmentation.from_pretrained(tuned)
    assert type(back) is DetrPanopticForSegmentation
    assert AutoImageProcessor.from_pretrained(tuned).to_dict().keys() == processor.to_dict().keys()
    with torch.no_grad():
        outputs = back(**inputs)
    assert not torch.equal(theirs["tuned.logits"], theirs["AutoModelForUniversalSegmentation.logits"])
    for name in ("logits", "pred_masks"):
        assert torch.equal(outputs[name], theirs[f"tuned.{name}"])
    assert torch.equal(theirs["again.pred_masks"], theirs["tuned.pred_masks"])


def test_the_folder_holds_nothing_but_what_ships(tmp_path):
    model = build(0)
    model.save_pretrained(tmp_path)
    DetrPanopticImageProcessor.for_model(model.config).save_pretrained(tmp_path)
    code = {path.name for path in tmp_path.glob("*.py")}
    assert code <= {f"{name}.py" for name in MODEL_FILES}
    assert {
        "configuration_detr_panoptic.py",
        "modeling_detr_panoptic.py",
        "image_processing_detr_panoptic.py",
        "pipeline_detr_panoptic.py",
    } <= code
