"""transformers' Trainer trains and measures the model with nothing but public parts."""

import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

from detr_panoptic import DetrPanopticConfig, DetrPanopticForSegmentation, DetrPanopticImageProcessor
from detr_panoptic.data import PanopticCollator, PanopticData
from detr_panoptic.evaluation import evaluate
from detr_panoptic.evaluation.trainer_metrics import TrainerPanopticQuality
from detr_panoptic.scenes import SCENE_CATEGORIES, scenes_dataset
from tests.conftest import build_tiny
from tests.training.runs import write_data

SIDE = 64
GUIDE = Path(__file__).parents[2] / "docs" / "training.md"
MOST_LINES = 25  # what a reader takes in at a glance; 20 and the imports' blank lines


@pytest.fixture
def trainer(tmp_path):
    categories, scenes = SCENE_CATEGORIES, scenes_dataset(5, height=SIDE, width=SIDE)
    torch.manual_seed(0)
    config = DetrPanopticConfig(
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
    processor = DetrPanopticImageProcessor.for_model(config, size={"shortest_edge": SIDE, "longest_edge": SIDE})
    return Trainer(
        model=DetrPanopticForSegmentation(config),
        args=TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=3,
            per_device_train_batch_size=2,
            per_device_eval_batch_size=2,
            learning_rate=1e-3,
            remove_unused_columns=False,  # the collator takes whole records
            batch_eval_metrics=True,
            include_for_metrics=["inputs"],
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
        ),
        data_collator=PanopticCollator(processor),
        train_dataset=scenes,
        eval_dataset=scenes,
        processing_class=processor,
        compute_metrics=TrainerPanopticQuality(processor, categories),
    )


def test_trainer_takes_steps_and_measures_quality(trainer, tmp_path):
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trained = trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
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
