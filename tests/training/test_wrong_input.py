"""Wrong data, checkpoints and settings end `train` before the first update, with an error that names them."""

import json
from typing import Any

import pytest
import torch

from detr_panoptic import DetrPanopticImageProcessor
from detr_panoptic.training import loop
from detr_panoptic.training.data import read_data
from detr_panoptic.training.settings import DataSettings
from tests.conftest import build_tiny
from tests.training.runs import SIDE, metrics_of, run, write_data


def refused(output, message, kind=ValueError, **settings):
    with pytest.raises(kind, match=message):
        run(output, **settings)
    assert not output.exists()


def test_data_without_annotations_are_refused(tmp_path):
    data = write_data(tmp_path / "data", with_segments=False)
    refused(tmp_path / "run", "no annotated segment in the 2 images examined", data=data)
    refused(tmp_path / "run", "no annotated image", data=write_data(tmp_path / "empty", count=0))


def test_validation_data_of_other_classes_are_refused(tmp_path):
    data, other = write_data(tmp_path / "data"), write_data(tmp_path / "other", names={"sheep": "goat"})
    refused(tmp_path / "run", "`validation_data` .* does not fit .*'goat'", data=data, validation_data=other)
    refused(tmp_path / "run", "`validation_data` 'scenes' does not fit", data=other, validation_data="scenes")


def test_validation_scenes_are_not_training_scenes():
    for named in ("scenes", None):
        read = read_data(
            DataSettings(data="scenes", validation_data=named, limit=5, short_side=SIDE, long_side=SIDE), 0
        )
        assert not set(read.train["image_id"]) & set(read.validation["image_id"])


def test_validation_data_are_read_with_the_labels_of_the_training_data(tmp_path):
    """The same classes in another order in the file."""
    data, other = write_data(tmp_path / "data"), write_data(tmp_path / "other")
    path = other / "panoptic.json"
    contents = json.loads(path.read_text())
    contents["categories"].reverse()
    path.write_text(json.dumps(contents))
    settings = {"data": data, "max_steps": 1, "ema_decay": None}
    run(tmp_path / "a", **settings)
    run(tmp_path / "b", validation_data=other, **settings)
    assert metrics_of(tmp_path / "a") == metrics_of(tmp_path / "b")


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=32)
    ViTModel(config).save_pretrained(tmp_path / "vit")
    DetrPanopticImageProcessor().save_pretrained(tmp_path / "vit")
    refused(tmp_path / "run", "'vit'", model=tmp_path / "vit")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": None}, "`data` is needed"),
        ({"output": None}, "`output` is needed"),
        ({"stage": "masks"}, "`stage` masks does not train the class head.*a new model"),
        ({"tracker": "tensorbored"}, "`tracker` must be .*tensorboard, got 'tensorbored'"),
        ({"data": "/no/such/folder"}, "/no/such/folder"),
        ({"hidden_size": 30}, "`hidden_size` must be"),
        ({"learning_rte": 1}, "did you mean `learning_rate`"),
        ({"recipe": "finetun"}, "did you mean `finetune`"),
    ],
)
def test_a_wrong_setting_ends_before_the_first_update(settings, message, tmp_path):
    output = settings.pop("output", tmp_path / "run")
    with pytest.raises(Exception, match=message):  # of transformers' configuration, for the architecture
        run(output, **settings)
    assert not (tmp_path / "run").exists()


def test_stage_masks_refuses_a_class_that_the_checkpoint_does_not_know(tmp_path):
    labels: Any = {"id2label": {0: "sky", 1: "sea", 2: "boat"}, "label2id": {"sky": 0, "sea": 1, "boat": 2}}
    build_tiny(**labels).save_pretrained(tmp_path / "model")
    DetrPanopticImageProcessor().save_pretrained(tmp_path / "model")
    message = "does not know the classes house, tree, sheep, car, ball …"
    refused(tmp_path / "run", message, model=tmp_path / "model", stage="masks")


def test_out_of_memory_names_the_settings_that_help(tmp_path, monkeypatch):
    def exhausted(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(loop, "train_step", exhausted)
    with pytest.raises(ValueError, match="Out of memory with `batch_size` 2: use auto"):
        run(tmp_path, batch_size=2)
