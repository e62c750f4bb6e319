"""Recipes, what they train, at which rates, and the class head of a checkpoint for other classes."""

import itertools
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from detr_panoptic import DetrPanopticImageProcessor
from detr_panoptic.backbone import Backbone
from detr_panoptic.cli import build_parser
from detr_panoptic.data.categories import Categories
from detr_panoptic.training.arguments import ARCHITECTURE, ModelArguments, OptimizationArguments
from detr_panoptic.training.class_head import fit_class_head
from detr_panoptic.training.optimization import (
    average_weights,
    backbone_stages,
    build_optimizer,
    freeze,
    rate_factor,
)
from detr_panoptic.training.options import read_training_arguments
from detr_panoptic.training.plan import describe_rates, estimate_memory
from detr_panoptic.training.recipes import COCO_CHECKPOINT, RECIPES
from detr_panoptic.training.setup import build_model, read_data
from tests.conftest import build_tiny

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def parse(*flags):
    return read_training_arguments(build_parser().parse_args(["train", *flags]))


# ------ precedence


def test_flags_win_over_the_file_the_file_over_the_recipe_and_it_over_the_defaults(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("recipe: masks\noptimization: {batch_size: 5, epochs: 7}\n")
    arguments = parse("--config", str(path), "--epochs", "9")
    assert (arguments.recipe, arguments.model.stage) == ("masks", "masks")
    assert (arguments.optimization.epochs, arguments.optimization.batch_size) == (9, 5)
    assert (arguments.optimization.drop_at, arguments.optimization.schedule) == (15 / 25, "step")
    assert parse("--config", str(path), "--recipe", "boxes").model.stage == "boxes"


@pytest.mark.parametrize("name", RECIPES)
def test_what_a_recipe_becomes_is_written_and_read_back_the_same(name, tmp_path):
    arguments = parse("--recipe", name, "--learning-rate", "3e-4")
    path = tmp_path / "training.yaml"
    path.write_text(yaml.safe_dump(arguments.to_dict()))
    assert parse("--config", str(path)) == arguments != parse("--learning-rate", "3e-4")


@pytest.mark.parametrize(
    ("name", "message"), [("finetun", "did you mean `finetune`"), ("42", "there are boxes, masks")]
)
def test_an_unknown_recipe_is_refused(name, message):
    with pytest.raises(ValueError, match=f"`{name}` is no recipe; {message}"):
        parse("--recipe", name)


def test_a_recipe_starts_from_its_checkpoint_or_from_what_the_user_names():
    assert parse("--recipe", "finetune").model.model == COCO_CHECKPOINT
    small = parse("--recipe", "finetune-small", "--backbone", "resnet18").model
    assert (small.model, small.backbone_weights, small.freeze_backbone) == (None, "timm", True)
    assert parse("--recipe", "finetune", "--backbone-weights", "mine.pth").model.backbone_weights == "mine.pth"
    assert parse("--recipe", "masks", "--backbone", "resnet18").model.backbone_weights is None
    arguments = parse("--recipe", "from-scratch", "--model", "mine").model
    assert arguments.model == "mine"
    assert all(getattr(arguments, name) == getattr(ModelArguments(), name) for name in ARCHITECTURE)


def test_a_model_that_is_trained_on_is_merged_as_its_checkpoint_was(model_folder, tmp_path):
    """Else it would be measured, and used, in another way than what it came from."""
    shutil.copytree(model_folder, tmp_path / "model")
    own = DetrPanopticImageProcessor.from_pretrained(
        model_folder, merging="score_weighted", overlap_mask_area_threshold=0.7
    )
    own.save_pretrained(tmp_path / "model")
    arguments = parse("--model", str(tmp_path / "model"), "--data", "scenes", "--limit", "1", "--short-side", "64")
    _, processor = build_model(arguments, read_data(arguments.data, seed=0))
    assert (processor.merging, processor.overlap_mask_area_threshold) == ("score_weighted", 0.7)
    assert processor.size["shortest_edge"] == 64


def test_an_architecture_for_a_checkpoint_is_refused():
    with pytest.raises(
        ValueError, match=r"`hidden_size` is the checkpoint's when there is a `model` \(mine\).*got 64"
    ):
        parse("--model", "mine", "--hidden-size", "64")


# ------ rates


@pytest.mark.parametrize(("scaling", "factor"), [("none", 1), ("sqrt", 0.5), ("linear", 0.25)])
def test_rates_scale_with_the_effective_batch(scaling, factor):
    arguments = OptimizationArguments(rate_scaling=scaling, reference_batch=64)
    assert rate_factor(arguments, 16) == factor
    optimizer = build_optimizer(build_tiny(), arguments, factor=factor)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-4 * factor, 1e-5 * factor]
    line = describe_rates(arguments, 16)[0]
    assert ("16/64" in line, f"= {1e-4 * factor:.3g}" in line) == (scaling != "none", scaling != "none")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_rates_of_the_configurations_are_as_they_are_written(path):
    assert rate_factor(parse("--config", str(path)).optimization, 1000) == 1


def test_rates_fall_from_stage_to_stage_of_the_backbone():
    model = build_tiny()
    arguments = OptimizationArguments(backbone_learning_rate=1e-2, backbone_rate_decay=0.5)
    optimizer = build_optimizer(model, arguments)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if ".backbone." in name and parameter.requires_grad:
            stage = int(name.split("layer")[1][0])  # of a ResNet; the last is the fourth
            assert rates[id(parameter)] == pytest.approx(1e-2 * 0.5 ** (4 - stage)), name


@pytest.mark.parametrize("name", ["test_resnet", "tf_efficientnet_lite0", "convnext_atto"])
def test_stages_of_any_backbone_follow_one_another(name):
    stages = list(backbone_stages_of(name).values())
    assert stages == sorted(stages)
    assert set(stages) == {0, 1, 2, 3}


def backbone_stages_of(name):
    model = torch.nn.Module()
    model.model = torch.nn.Module()
    model.model.backbone = Backbone(name)
    return backbone_stages(model)


# ------ what is trained


@pytest.mark.parametrize(
    ("settings", "trained"),
    [
        ({}, {"backbone", "transformer", "heads", "masks"}),
        ({"stage": "boxes"}, {"backbone", "transformer", "heads"}),
        ({"stage": "masks"}, {"masks"}),
        ({"freeze_backbone": True}, {"transformer", "heads", "masks"}),
    ],
)
def test_a_stage_trains_its_parts_alone(settings, trained):
    model = build_tiny()
    freeze(model, ModelArguments(**settings))
    seen = set()
    for name, parameter in model.named_parameters():
        part = "masks" if name.startswith("mask_") else "heads" if not name.startswith("model.") else "transformer"
        part = "backbone" if ".backbone." in name else part
        seen |= {part} if parameter.requires_grad else set()
    assert seen == trained


def test_the_moving_average_follows_by_its_decay():
    model = torch.nn.Linear(2, 1, bias=False)
    averaged, expected = average_weights(model, 0.5), None
    for n, value in enumerate((4.0, 8.0, 16.0, 3.0)):
        model.weight.data.fill_(value)
        averaged.update_parameters(model)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = value if n == 0 else decay * expected + (1 - decay) * value
        assert averaged.module.weight[0, 0].item() == pytest.approx(expected, rel=1e-6)


# ------ class head


def test_rows_of_the_class_head_go_by_name():
    model = build_tiny(id2label={0: "boat", 1: "Sea", 2: "sky"}, label2id={"boat": 0, "Sea": 1, "sky": 2})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    categories = Categories(("sea", "sheep", "sky", "boat"), (False, True, False, True), (7, 2, 9, 4))
    assert fit_class_head(model, categories) == ["sheep"]
    weight, bias = model.class_head.weight, model.class_head.bias
    for new, old in ((0, 1), (2, 2), (3, 0), (4, 3)):  # the last is "no object"
        assert torch.equal(weight[new], before["class_head.weight"][old])
        assert bias[new] == before["class_head.bias"][old]
    assert not any(torch.equal(weight[1], row) for row in before["class_head.weight"])
    assert model.config.id2label == categories.id2label
    assert model.config.num_labels == 4
    assert (model.config.stuff_label_ids, model.config.category_ids) == ([0, 2], [7, 2, 9, 4])
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if not name.startswith("class_head."))


# ------ memory


def test_the_memory_estimate_grows_as_what_is_kept():
    """The extrapolation from small images against counting at a large size, in float32 and bfloat16."""
    from detr_panoptic.training import plan

    model = build_tiny()
    flags = ["--short-side", "320", "--long-side", "448", "--batch-size", "1"]
    for precision in ("no", "bf16"):
        arguments = parse(*flags, "--mixed-precision", precision)
        weights = sum(4 * p.numel() * (4 if p.requires_grad else 1) for p in model.parameters())
        counted = weights + plan._kept_bytes(model.train(), (320, 448), 3, half=precision == "bf16")
        assert estimate_memory(model.config, arguments, targets=3) == pytest.approx(counted, rel=0.05)
    tiny = plan._kept_bytes(model.train(), (32, 32), 1, half=False)
    # Weights are counted once, not as kept; only those of the backbone's convolutions exist a second time, normalized.
    assert tiny < sum(4 * p.numel() for p in model.model.backbone.parameters())


def test_the_memory_advice_says_what_helps():
    from detr_panoptic.training.plan import memory_advice

    advice = memory_advice(build_tiny().config, parse("--batch-size", "4"), targets=3)
    assert len(advice) == 5
    assert all(advice[flags] < advice[""] for flags in advice if flags)
    for flags in filter(None, advice):
        parse(*itertools.chain.from_iterable(word.split() for word in flags.split()))  # they are flags that exist
