"""Settings: their layers, and wrong values that are refused by name."""

import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from detr_panoptic.training.settings import (
    ARCHITECTURE,
    SUBJECTS,
    ModelSettings,
    TrainingSettings,
    read_settings,
    recipe_names,
    resolve_settings,
    setting_names,
)
from tests.fuzz import examples, message_of

COCO_CHECKPOINT = "facebook/detr-resnet-50-panoptic"
ANYTHING: Any = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5)
ANYTHING |= st.lists(st.integers(-3, 9) | st.text(max_size=2) | st.none(), max_size=3)


def test_overrides_win_over_the_file_the_file_over_the_recipe_and_it_over_the_defaults(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("recipe: masks\nbatch_size: 5\nepochs: 7\nlearning_rate: 1e-3\n")
    settings = resolve_settings(file=path, overrides={"epochs": 9})
    assert (settings.recipe, settings.model.stage) == ("masks", "masks")
    optimization = settings.optimization
    assert (optimization.epochs, optimization.batch_size, optimization.learning_rate) == (9, 5, 1e-3)
    assert (optimization.drop_at, optimization.schedule) == (15 / 25, "step")
    assert resolve_settings("boxes", path).model.stage == "boxes"
    assert resolve_settings().recipe == "finetune"


@pytest.mark.parametrize("name", [*recipe_names(), "none"])
def test_settings_that_are_written_are_read_back_the_same(name, tmp_path):
    settings = resolve_settings(name, overrides={"learning_rate": "3e-4"})
    path = tmp_path / "training.yaml"
    path.write_text(yaml.safe_dump(settings.to_dict(), sort_keys=False))
    assert TrainingSettings.from_dict(read_settings(path)) == settings
    assert settings.differences(settings) == []
    assert settings.optimization.learning_rate == 3e-4


def test_a_recipe_starts_from_its_checkpoint_or_from_what_the_user_names():
    def model_of(recipe, **overrides):
        return resolve_settings(recipe, overrides=overrides).model

    assert model_of("finetune").model == COCO_CHECKPOINT
    small = model_of("finetune-small", backbone="resnet18")
    assert (small.model, small.backbone_weights, small.freeze_backbone) == (None, "timm", True)
    assert model_of("finetune", backbone_weights="mine.pth").backbone_weights == "mine.pth"
    assert model_of("masks", backbone="resnet18").backbone_weights is None
    named = model_of("from-scratch", model="mine")
    assert all(getattr(named, name) == getattr(ModelSettings(), name) for name in ARCHITECTURE)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"learning_rte": 1}, "`learning_rte` .* did you mean `learning_rate`"),
        ({"epochs": "many"}, "`epochs` must be an integer, got 'many'"),
        ({"epochs": True}, "`epochs` must be an integer, got True"),
        ({"learning_rate": "fast"}, "`learning_rate` must be a number, got 'fast'"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be finite"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"batch_size": "big"}, "`batch_size` must be one of an integer, auto"),
        ({"schedule": "linear"}, "`schedule` must be one of constant, step, cosine, got 'linear'"),
        ({"short_side": 800, "long_side": 600}, "`long_side` must be at least `short_side`, 800, got 600"),
        ({"first_short_side": 900}, "`first_short_side` must be at most 800, got 900"),
        (
            {"first_short_side": 64, "augmentation": "none"},
            "`first_short_side` needs the `augmentation` flip or paper",
        ),
        ({"ema_decay": 1}, "`ema_decay` must be at most 0.99999, got 1"),
        ({"model": "mine", "hidden_size": 64}, "`hidden_size` 64 cannot be combined with `model` 'mine'"),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_expected(overrides, message):
    with pytest.raises(ValueError, match=message):
        resolve_settings("none", overrides=overrides)


def test_an_unknown_recipe_is_named_with_the_one_that_was_meant():
    with pytest.raises(ValueError, match=r"`finetun` .* did you mean `finetune`"):
        resolve_settings("finetun")


@pytest.mark.parametrize("content", ["- a list", "model: {", "optimization: {epochs: 3}", "learning_rte: 1"])
def test_a_file_that_holds_no_settings_is_refused(tmp_path, content):
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"run\.yaml|is not a setting"):
        read_settings(path)


def test_names_are_unique_and_every_option_has_a_help_text():
    assert len(set(setting_names())) == len(setting_names())
    for kind in SUBJECTS.values():
        assert all(f.metadata["help"] for f in fields(kind))


def test_settings_are_read_without_heavy_imports():
    """The command line shows its help in less than a second."""
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; import importlib.util as u;"
        "spec = u.spec_from_file_location('settings', sys.argv[1]); m = u.module_from_spec(spec);"
        "sys.modules['settings'] = m; spec.loader.exec_module(m);"
        "assert not {'torch', 'transformers', 'yaml', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, sys.modules[ModelSettings.__module__].__file__], check=True)


@pytest.mark.fuzz
@examples(80)
@given(st.sampled_from(setting_names()), ANYTHING)
def test_any_value_is_taken_or_refused_by_name(name, value):
    message = message_of(lambda: TrainingSettings.from_dict({name: value}), ValueError)
    assert message is None or f"`{name}`" in message
