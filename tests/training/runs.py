"""Small training runs on scenes, and the datasets that the tests of training share."""

import json
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file

from detr_panoptic import train
from detr_panoptic.scenes import SCENE_CATEGORIES, make_scene

SIDE = 64
SETTINGS = {
    "data": "scenes",
    "limit": 5,
    "short_side": SIDE,
    "long_side": SIDE,
    "augmentation": "flip",
    "workers": 0,
    "batch_size": 1,
    "gradient_accumulation_steps": 2,
    "epochs": 2,
    "evaluate_every": 1,
    "log_every": 1,
    "checkpoint_every": 2,
    "ema_decay": 0.9,
}
ARCHITECTURE = {
    "backbone": "test_resnet",
    "hidden_size": 32,
    "num_heads": 4,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "ffn_dim": 32,
    "num_queries": 12,
}
STEPS = 6  # 5 images, 2 per update: 3 updates in each of 2 epochs
LAST = f"step_{STEPS:08d}_epoch_2"


def run(output, **settings):
    """The result of `train` with small settings; None leaves one out."""
    options: Any = {"recipe": "none", "progress": False} | SETTINGS | ({} if "model" in settings else ARCHITECTURE)
    options |= settings
    return train(output=output, **{name: value for name, value in options.items() if value is not None})


def words(output, **settings):
    """The command line of such a run."""
    options: Any = {"recipe": "none"} | SETTINGS | ARCHITECTURE | settings
    flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return ["train", "--output", str(output), *flags]


def metrics_of(output):
    """The metrics of a run without those that depend on its speed."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("images_per_second", "memory_gib")} for line in lines]


def assert_same_run(output, expected, last=LAST):
    for name in ("model.safetensors", f"checkpoints/{last}/model.safetensors"):
        ours, theirs = load_file(output / name), load_file(expected / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name
    assert metrics_of(output) == metrics_of(expected)


def write_data(folder, *, names=None, with_segments=True, count=2):
    """Scenes in COCO panoptic layout; `names` renames classes."""
    (folder / "images").mkdir(parents=True)
    scenes = [make_scene(seed, height=SIDE, width=SIDE) for seed in range(count)]
    categories = [c | {"name": (names or {}).get(c["name"], c["name"])} for c in SCENE_CATEGORIES.to_coco()]
    annotations, images = [], []
    (folder / "panoptic").mkdir()
    for scene in scenes:
        name = f"{scene['image_id']}.png"
        scene["image"].save(folder / "images" / name)
        picture = scene["segmentation"] if with_segments else Image.new("RGB", (SIDE, SIDE))
        picture.save(folder / "panoptic" / name)
        segments = [
            {k: s[k] for k in ("id", "area", "bbox", "iscrowd")}
            | {"category_id": SCENE_CATEGORIES.category_ids[s["label_id"]]}
            for s in scene["segments_info"]
        ]
        images.append({"id": scene["image_id"], "file_name": name, "width": SIDE, "height": SIDE})
        annotations.append(
            {"image_id": scene["image_id"], "file_name": name, "segments_info": segments if with_segments else []}
        )
    contents = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "panoptic.json").write_text(json.dumps(contents))
    return folder
