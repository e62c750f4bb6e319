"""Without a name, a recipe is chosen by what there is; the length of its run and of its warm-up fit the images."""

import json
import logging

import pytest

from detr_panoptic import train
from detr_panoptic.checkpoints import BUNDLED
from detr_panoptic.scenes.source import read_source
from detr_panoptic.training import data as training_data
from detr_panoptic.training.run import choose_recipe
from detr_panoptic.training.settings import resolve_settings
from tests.training.runs import run

SMALL = {"recipe": None, "limit": 2, "short_side": 64, "long_side": 64, "epochs": 1}


@pytest.mark.parametrize(
    ("images", "given", "expected"),
    [
        (999, {}, "finetune-small"),
        (1000, {}, "finetune"),
        (999, {"model": "mine", "epochs": 3}, "finetune-small"),
        (10, {"backbone": "resnet18"}, "from-scratch"),
        (10, {"model": "mine", "dilation": False}, "finetune-small"),
    ],
)
def test_images_and_starting_point_choose_the_recipe(images, given, expected, monkeypatch):
    monkeypatch.setattr("detr_panoptic.training.run.can_be_read", lambda _: True)
    assert choose_recipe(images, given)[0] == expected


def test_without_coco_weights_few_images_start_from_the_bundled_checkpoint(tmp_path, caplog):
    """The Hub is off in tests. A run that is resumed keeps its recipe, whatever can be fetched by then."""
    settings = SMALL | dict.fromkeys(("backbone", "hidden_size", "num_heads", "encoder_layers"))
    settings |= dict.fromkeys(("decoder_layers", "ffn_dim", "num_queries"))
    with caplog.at_level(logging.INFO, logger="detr_panoptic"):
        result = run(tmp_path, **settings)
    assert (result.settings.recipe, result.settings.model.model) == ("few-photographs", "bundled")
    (reason,) = [text for text in caplog.messages if text.startswith("recipe: few-photographs, chosen for")]
    assert "fewer than 1000 images, and facebook/detr-resnet-50-panoptic is neither here" in reason
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["hidden_size"] == json.loads((BUNDLED / "config.json").read_text())["hidden_size"]

    processor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert processor["threshold"] == 0.53  # 0.85 if "no object" weighs 0.1, not 0.5

    caplog.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("detr_panoptic.training.run.can_be_read", lambda _: True)
        assert run(tmp_path, **settings).is_finished
    assert not any("chosen for" in text for text in caplog.messages)


def test_the_threshold_of_a_new_model_follows_the_weight_of_no_object(tmp_path):
    run(tmp_path, limit=2, epochs=1, eos_coefficient=0.5)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["threshold"] == 0.53
    assert json.loads((tmp_path / "config.json").read_text())["eos_coefficient"] == 0.5


def test_generated_scenes_have_the_size_of_the_chosen_recipe(monkeypatch):
    sides = []
    monkeypatch.setattr(
        training_data, "read_source", lambda *a, **k: sides.append(k["scene_side"]) or read_source(*a, **k)
    )
    result = train("scenes", output="unused", limit=2, dry_run=True)
    assert result.settings.data.short_side == sides[-1] == 256


def test_a_recipe_in_a_file_is_not_chosen_again(tmp_path, caplog):
    path = tmp_path / "mine.yaml"
    path.write_text("recipe: none\n")
    with caplog.at_level(logging.INFO, logger="detr_panoptic"):
        result = run(tmp_path / "run", **SMALL, config=path)
    assert result.settings.recipe == "none"
    assert not any("chosen for" in text for text in caplog.messages)


def test_epochs_that_are_named_drop_the_updates_of_the_recipe():
    assert resolve_settings("few-photographs").optimization.max_steps is not None
    named = resolve_settings("few-photographs", overrides={"epochs": 3}).optimization
    assert (named.epochs, named.max_steps) == (3, None)
    both = resolve_settings("few-photographs", overrides={"epochs": 3, "max_steps": 5}).optimization
    assert (both.epochs, both.max_steps) == (3, 5)
    with pytest.raises(ValueError, match="`epochs` or `max_steps` is needed"):
        resolve_settings("none", overrides={"epochs": None})


def test_a_run_without_epochs_does_its_updates_with_one_evaluation_for_fifty(tmp_path):
    result = run(tmp_path, epochs=None, max_steps=60, limit=2, batch_size=2, evaluate_every="auto", log_every=100)
    assert result.total_steps == result.steps == 60
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "pq" in line] == [50, 60]
