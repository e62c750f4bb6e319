"""transformers' Trainer trains and measures the model with nothing but public parts."""

import pytest
import torch
from transformers import EvalPrediction, Trainer, TrainingArguments

from detr_panoptic import DetrPanopticConfig, DetrPanopticForSegmentation, DetrPanopticImageProcessor
from detr_panoptic.data import SCENE_CATEGORIES, PanopticCollator, scenes_dataset
from detr_panoptic.evaluation import evaluate_model
from detr_panoptic.evaluation.panoptic_quality import PanopticStats, panoptic_quality, panoptic_stats
from detr_panoptic.modeling_detr_panoptic import DetrPanopticSegmentationOutput

SIDE = 64


class PanopticQuality:
    """`compute_metrics` of one process: adds up PQ batch by batch, at the size that the model sees.

    The truth is that of the inputs: Trainer's own `label_ids` lose segments in the last batch, where Accelerate cuts
    every tensor, those inside a target too, to the number of images that are left.
    """

    names = ("logits", "pred_boxes", "pred_masks", "image_sizes", "canvas_sizes")

    def __init__(self, processor, categories):
        self.processor, self.categories = processor, categories
        self.stats = PanopticStats.zeros(len(categories))

    def __call__(self, batch: EvalPrediction, compute_result: bool):
        outputs = DetrPanopticSegmentationOutput(**dict(zip(self.names, batch.predictions, strict=True)))
        results = self.processor.post_process_panoptic_segmentation(outputs)
        for target, result in zip(batch.inputs["labels"], results, strict=True):
            ids = torch.arange(1, len(target["masks"]) + 1)
            truth = (target["masks"].cpu() * ids[:, None, None]).sum(0)
            columns = (ids.tolist(), target["class_labels"].tolist(), target["iscrowd"].tolist())
            segments = [{"id": i, "label_id": c, "iscrowd": crowd} for i, c, crowd in zip(*columns, strict=True)]
            self.stats += panoptic_stats(
                truth, segments, result["segmentation"].cpu(), result["segments_info"], self.categories.category_ids
            )
        if not compute_result:
            return {}
        stats, self.stats = self.stats, PanopticStats.zeros(len(self.categories))
        quality = panoptic_quality(stats, category_ids=self.categories.category_ids, is_thing=self.categories.is_thing)
        return {"pq": quality["All"]["pq"], "predicted": int((stats.tp + stats.fp).sum())}


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
        compute_metrics=PanopticQuality(processor, categories),
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
    expected = evaluate_model(
        trainer.model, trainer.processing_class, trainer.eval_dataset, SCENE_CATEGORIES, batch_size=2
    )
    assert metrics["eval_predicted"] == int((expected.tp + expected.fp).sum()) > 0
    assert metrics["eval_pq"] == pytest.approx(float(expected.pq().nan_to_num(0).sum() / (expected.pq() >= 0).sum()))

    trainer.save_model(str(tmp_path))
    loaded = DetrPanopticForSegmentation.from_pretrained(tmp_path)
    assert all(torch.equal(value, after[name]) for name, value in loaded.state_dict().items())
    assert DetrPanopticImageProcessor.from_pretrained(tmp_path).threshold == 0.0
