"""transformers' Trainer trains and measures the model with nothing but public parts."""

import re
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments

from detr_panoptic import DetrPanopticConfig, DetrPanopticForSegmentation, DetrPanopticImageProcessor
from detr_panoptic.data import PanopticCollator, PanopticData
from detr_panoptic.evaluation import evaluate
from detr_panoptic.evaluation.trainer_metrics import TrainerPanopticQuality
from detr_panoptic.scenes import SCENE_CATEGORIES, scenes_dataset
from tests.conftest import build_tiny
from tests.training.runs import write_data

# transformers' and peft's own names for activation checkpointing
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
SIDE = 64
GUIDE = Path(__file__).parents[2] / "docs" / "training.md"
MOST_LINES = 25  # what a reader takes in at a glance; 20 and the imports' blank lines


def tiny_config():
    categories = SCENE_CATEGORIES
    return DetrPanopticConfig(
        backbone="test_resnet",
        hidden_size=32,
        encoder_layers=1,
        decoder_layers=2,
        num_heads=4,
        ffn_dim=48,
        num_queries=12,
        id2label=categories.id2label,
        stuff_label_ids=categories.stuff_label_ids,
        category_ids=list(categories.category_ids),
        threshold=0.0,  # an untrained model is sure of nothing
    )


@pytest.fixture(scope="module")
def scenes():
    return scenes_dataset(5, height=SIDE, width=SIDE)


def build_trainer(folder, scenes, *, model=None, model_init=None, callbacks=None, initial_seed=0, **arguments):
    """A Trainer as in notebooks; other keyword arguments are those of `TrainingArguments`."""
    torch.manual_seed(initial_seed)
    config = tiny_config()
    processor = DetrPanopticImageProcessor.for_model(config, size={"shortest_edge": SIDE, "longest_edge": SIDE})
    if model is None and model_init is None:
        model = DetrPanopticForSegmentation(config)
    settings: Any = {
        "output_dir": str(folder),
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "learning_rate": 1e-3,
        "remove_unused_columns": False,  # the collator takes whole records
        "batch_eval_metrics": True,
        "include_for_metrics": ["inputs"],
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return Trainer(
        model=model,
        model_init=model_init,
        args=TrainingArguments(**(settings | arguments)),
        data_collator=PanopticCollator(processor),  # type: ignore[arg-type]  # a BatchFeature is no dict
        train_dataset=scenes,
        eval_dataset=scenes,
        processing_class=processor,
        compute_metrics=TrainerPanopticQuality(processor, SCENE_CATEGORIES),
        callbacks=callbacks,
    )


@pytest.fixture
def make_trainer(scenes, tmp_path):
    return partial(build_trainer, tmp_path, scenes)


@pytest.fixture(scope="module")
def plain_losses(scenes, tmp_path_factory):
    """Of two updates, and of the evaluation after them."""
    trainer = build_trainer(tmp_path_factory.mktemp("plain"), scenes, max_steps=2)
    trainer.train()
    return [*losses_of(trainer), trainer.evaluate()["eval_loss"]]


@pytest.fixture
def trainer(make_trainer):
    return make_trainer()


def losses_of(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_trainer_takes_steps_and_measures_quality(trainer, tmp_path):
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trained = trainer.train()
    losses = losses_of(trainer)
    assert trained.global_step == len(losses) == 3
    assert all(0 < loss < 100 for loss in losses)
    after = trainer.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved <= {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert {"class_head.weight", "mask_head.predictor.weight", "model.query_embeddings.weight"} <= moved

    metrics = trainer.evaluate()
    data = PanopticData(trainer.eval_dataset, SCENE_CATEGORIES)
    parts = (trainer.model, trainer.processing_class)
    expected = evaluate(parts, data, average_precision=False, batch_size=2, progress=False)
    assert sum(row.tp + row.fp for row in expected.per_class.values()) > 0
    assert metrics["eval_pq"] == pytest.approx(expected.pq)
    assert metrics["eval_pq_stuff"] == pytest.approx(expected.stuff.pq)

    trainer.save_model(str(tmp_path))
    loaded = DetrPanopticForSegmentation.from_pretrained(tmp_path)
    assert all(torch.equal(value, after[name]) for name, value in loaded.state_dict().items())
    assert DetrPanopticImageProcessor.from_pretrained(tmp_path).threshold == 0.0


def test_the_lines_of_the_guide_run(tmp_path, monkeypatch, capsys):
    """As they stand there, but for the checkpoint, the size, the device and the length."""
    section = GUIDE.read_text().split("## The trainer of transformers")[1]
    (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    assert len(code.splitlines()) <= MOST_LINES
    build_tiny(num_queries=12).save_pretrained(tmp_path / "checkpoint")
    for name in ("train", "held_out"):
        write_data(tmp_path / "my_data" / name)
    for written, here in (
        ("facebook/detr-resnet-50-panoptic", "checkpoint"),
        ('{"shortest_edge": 800, "longest_edge": 1333}', str({"shortest_edge": SIDE, "longest_edge": SIDE})),
        ("num_train_epochs=50", 'num_train_epochs=1, use_cpu=True, report_to="none"'),
    ):
        assert code.count(written) == 1
        code = code.replace(written, here)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["guide"])
    exec(compile(code, str(GUIDE), "exec"), {})
    printed = capsys.readouterr().out
    assert "eval_pq_stuff" in printed
    model = DetrPanopticForSegmentation.from_pretrained(next((tmp_path / "my_model").glob("checkpoint-*")))
    assert model.config.id2label == SCENE_CATEGORIES.id2label


# ------ what notebooks add to it


EVERY_TWO = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}
MEASURED = {"eval_strategy": "steps", "eval_steps": 2, "prediction_loss_only": True}
BEST = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": False}


def test_a_run_goes_on_from_its_checkpoint(make_trainer, tmp_path):
    whole = make_trainer(**EVERY_TWO)
    whole.train()
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4", "checkpoint-6"}
    shutil.rmtree(tmp_path / "checkpoint-6")
    resumed = make_trainer(**EVERY_TWO, initial_seed=1)  # other weights, until the checkpoint is loaded
    resumed.train(resume_from_checkpoint=True)
    assert losses_of(resumed) == losses_of(whole)
    expected = whole.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())


def test_the_best_checkpoint_is_kept_and_loaded(make_trainer, tmp_path):
    trainer = make_trainer(**EVERY_TWO, **MEASURED, **BEST, save_total_limit=1, learning_rate=0.3)
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {best.name, "checkpoint-6"}
    evaluations = {e["step"]: e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e}
    assert best.name == f"checkpoint-{min(evaluations, key=evaluations.get)}"
    loaded = DetrPanopticForSegmentation.from_pretrained(best).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in trainer.model.state_dict().items())
    assert DetrPanopticImageProcessor.from_pretrained(best).size["shortest_edge"] == SIDE


def test_early_stopping(make_trainer):
    each = {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 1, "eval_steps": 1, "max_steps": 9}
    quality = {"load_best_model_at_end": True, "metric_for_best_model": "pq", "learning_rate": 0.0}
    trainer = make_trainer(**each, **quality, callbacks=[EarlyStoppingCallback(early_stopping_patience=1)])
    trainer.train()
    assert trainer.state.global_step == 2


def test_seeds(make_trainer):
    """A run for each seed from `model_init`: the same seed gives the same run."""
    losses = []
    for seed in (1, 1, 2):
        trainer = make_trainer(model_init=lambda: DetrPanopticForSegmentation(tiny_config()), seed=seed, max_steps=2)
        trainer.train()
        losses.append(losses_of(trainer))
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    "options",
    [
        {"bf16": True, "bf16_full_eval": True},
        {"gradient_checkpointing": True},
        {"optim": "adamw_torch_fused", "lr_scheduler_type": "cosine", "warmup_steps": 1, "max_grad_norm": 0.1},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_training(make_trainer, plain_losses, options):
    trainer = make_trainer(max_steps=2, **options)
    trainer.train()
    assert [*losses_of(trainer), trainer.evaluate()["eval_loss"]] == pytest.approx(plain_losses, rel=0.05)


def test_accumulation(make_trainer):
    """Each batch is divided by its own targets, so the loss is the mean of both."""
    trainer = make_trainer(max_steps=1, per_device_train_batch_size=1, gradient_accumulation_steps=2)
    trainer.train()
    assert trainer.state.global_step == 1
    assert 0 < losses_of(trainer)[0] < 100


def test_an_adapter_is_trained_and_resumed(make_trainer, tmp_path):
    peft = pytest.importorskip("peft")

    def adapted(initial_seed):
        torch.manual_seed(0)
        config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["class_head", "mask_head"])
        base = DetrPanopticForSegmentation(tiny_config())
        torch.manual_seed(initial_seed)
        return peft.get_peft_model(base, config)

    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = make_trainer(model=adapted(0), **saving)
    whole.train()
    assert not (tmp_path / "checkpoint-4" / "model.safetensors").exists()
    shutil.rmtree(tmp_path / "checkpoint-4")
    resumed = make_trainer(model=adapted(1), **saving)  # other weights, until the checkpoint is loaded
    resumed.train(resume_from_checkpoint=True)
    assert losses_of(resumed) == losses_of(whole)
    assert "eval_pq" in resumed.evaluate()


def test_predictions(make_trainer, scenes):
    """Without metrics the outputs come back in the order of `TrainerPanopticQuality.OUTPUTS`."""
    trainer = make_trainer()
    trainer.compute_metrics, trainer.args.batch_eval_metrics = None, False
    found = dict(zip(TrainerPanopticQuality.OUTPUTS, trainer.predict(scenes).predictions, strict=True))
    assert found["logits"].shape == (5, 12, len(SCENE_CATEGORIES) + 1)
    assert found["pred_masks"].shape == (5, 12, SIDE // 4, SIDE // 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_eval_metrics": False}, "`batch_eval_metrics` of the TrainingArguments must be True"),
        ({"include_for_metrics": []}, "`include_for_metrics` of the TrainingArguments must be"),
    ],
)
def test_arguments_that_the_metrics_need_are_named(make_trainer, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(**arguments).evaluate()
