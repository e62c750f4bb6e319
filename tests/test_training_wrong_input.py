"""What is wrong with data, checkpoints and settings ends `detr-panoptic train` before the first step, in one line."""

import json
import re

import pytest
import torch
from PIL import Image

from detr_panoptic import DetrPanopticImageProcessor
from detr_panoptic.cli import main
from detr_panoptic.scenes import SCENE_CATEGORIES, make_scene
from detr_panoptic.training import loop
from detr_panoptic.training.arguments import DataArguments
from detr_panoptic.training.setup import read_data
from tests.conftest import build_tiny
from tests.test_training_runs import SIDE, fresh_accelerator, metrics_of, only_line, train

__all__ = ["fresh_accelerator"]  # pytest finds it by its name here


def write_data(folder, *, names=None, with_segments=True, count=2):
    """Scenes in COCO's panoptic layout; `names` renames classes."""
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


def test_an_empty_dataset_is_refused(tmp_path, capsys):
    assert train(tmp_path / "run", data=write_data(tmp_path / "data", count=0)) == 2
    assert "holds no annotated image" in only_line(capsys)
    assert not (tmp_path / "run").exists()


def test_images_without_annotations_are_refused(tmp_path, capsys):
    assert train(tmp_path / "run", data=write_data(tmp_path / "data", with_segments=False)) == 2
    assert "no annotated segment in any of the 2 images looked at" in only_line(capsys)


def test_a_split_that_does_not_exist_is_refused(tmp_path, capsys):
    assert train(tmp_path / "run", data=write_data(tmp_path / "data"), split="trian2017") == 2
    assert "has no split 'trian2017' in a known format" in only_line(capsys)


def test_a_split_that_does_not_exist_is_refused_with_those_that_do(tmp_path, capsys):
    for split in ("learned", "measured"):
        write_data(tmp_path / "data" / split)
    assert train(tmp_path / "run", data=tmp_path / "data", split="learnt") == 2
    assert only_line(capsys).endswith("name one with `split`: learned, measured.")


def test_classes_that_differ_between_splits_are_refused(tmp_path, capsys):
    learned = write_data(tmp_path / "learned")
    measured = write_data(tmp_path / "measured", names={"sheep": "goat"})
    assert train(tmp_path / "run", data=learned, validation_data=measured) == 2
    line = only_line(capsys)
    assert "`validation_data`" in line
    assert "'goat'" in line


def test_scenes_do_not_measure_a_model_of_other_classes(tmp_path, capsys):
    learned = write_data(tmp_path / "learned", names={"sheep": "goat"})
    assert train(tmp_path / "run", data=learned, validation_data="scenes") == 2
    assert "`validation_data` 'scenes' does not fit the training data" in only_line(capsys)


def test_scenes_that_are_measured_are_not_those_that_are_learned():
    for named in ("scenes", None):
        data = DataArguments(data="scenes", validation_data=named, limit=5, short_side=SIDE, long_side=SIDE)
        read = read_data(data, 0)
        assert not set(read.train["image_id"]) & set(read.validation["image_id"])


def test_validation_data_is_read_with_the_labels_of_the_training_data(tmp_path):
    """The same classes in another order in the file."""
    learned, measured = write_data(tmp_path / "learned"), write_data(tmp_path / "measured")
    path = measured / "panoptic.json"
    contents = json.loads(path.read_text())
    contents["categories"].reverse()
    path.write_text(json.dumps(contents))
    settings = {"data": learned, "max_steps": 1, "ema_decay": None}
    assert train(tmp_path / "a", **settings) == train(tmp_path / "b", validation_data=measured, **settings) == 0
    a, b = metrics_of(tmp_path / "a"), metrics_of(tmp_path / "b")
    assert a == b


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path, capsys):
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=32)
    ViTModel(config).save_pretrained(tmp_path / "vit")
    capsys.readouterr()
    assert train(tmp_path / "run", model=tmp_path / "vit") == 2
    assert only_line(capsys).endswith("is of type 'vit', not detr_panoptic or detr.")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": None}, "`--data` is needed"),
        ({"stage": "masks"}, "`stage` masks leaves the class head as it is.*from scratch"),
        ({"tracker": "tensorbored"}, "`tracker` must be of .*tensorboard.*'tensorbored'"),
        ({"data": "/no/such/folder"}, "/no/such/folder"),
        ({"hidden_size": 30}, "error: `hidden_size` must be"),
        ({"ema_decay": 1}, "`ema_decay` must be below 1, got 1.0"),
    ],
)
def test_a_wrong_setting_ends_before_the_first_step(settings, message, tmp_path, capsys):
    assert train(tmp_path / "run", **settings) == 2
    assert re.search(message, only_line(capsys))
    assert not (tmp_path / "run").exists()


def test_stage_masks_refuses_a_class_that_the_checkpoint_does_not_know(tmp_path, capsys):
    labels = {"id2label": {0: "sky", 1: "sea", 2: "boat"}, "label2id": {"sky": 0, "sea": 1, "boat": 2}}
    build_tiny(**labels).save_pretrained(tmp_path / "model")
    DetrPanopticImageProcessor().save_pretrained(tmp_path / "model")
    capsys.readouterr()
    assert train(tmp_path / "run", model=tmp_path / "model", stage="masks") == 2
    assert "lacks house, tree, sheep, car, ball …" in only_line(capsys)


def test_a_flag_with_a_typo_is_refused_with_the_one_that_was_meant(tmp_path, capsys):
    assert train(tmp_path / "run", recepie="finetune") == 2
    line = only_line(capsys)
    assert line.startswith("detr-panoptic train: error: unrecognized arguments: --recepie finetune")
    assert "did you mean --recipe?" in line


def test_a_configuration_with_a_typo_is_refused(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text("optimization: {learning_rte: 1}\n")
    assert main(["train", "--config", str(path)]) == 2
    assert "did you mean `learning_rate`?" in only_line(capsys)


def test_out_of_memory_says_which_knobs_help(tmp_path, capsys, monkeypatch):
    """The error is a real one of the processor's allocator."""
    monkeypatch.setattr(loop, "train_step", lambda *_, **__: torch.empty(1 << 52))
    assert train(tmp_path, batch_size=2) == 2
    line = only_line(capsys)
    for part in ("Out of memory", "--batch-size 1 --gradient-accumulation-steps 4", "--short-side 45", "GiB"):
        assert part in line
