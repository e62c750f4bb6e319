"""Real photographs from the reader through the model and back; DETR_PANOPTIC_COCO names the folder."""

import json
from itertools import islice

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from detr_panoptic import DetrPanopticImageProcessor
from detr_panoptic.data import PanopticCollator, find_coco_panoptic, read_panoptic, segmentation_ids
from detr_panoptic.evaluation import evaluate_model
from detr_panoptic.evaluation.panoptic_quality import PanopticStats, panoptic_quality, panoptic_stats
from detr_panoptic.training.loop import train_step
from tests.conftest import build_tiny

COUNT = 6


@pytest.fixture(scope="module")
def photographs(coco_folder):
    return read_panoptic(coco_folder, limit=COUNT)


@pytest.fixture(scope="module")
def processor(photographs):
    _, categories = photographs
    return DetrPanopticImageProcessor(
        size={"shortest_edge": 128, "longest_edge": 213},
        stuff_label_ids=categories.stuff_label_ids,
        category_ids=list(categories.category_ids),
    )


def test_targets_are_the_annotations(coco_folder, photographs, processor):
    """Labels and boxes are those of the file that COCO ships, which the reader reads and the processor never sees."""
    dataset, categories = photographs
    annotations = json.loads(find_coco_panoptic(coco_folder).json_path.read_text())["annotations"]
    segments_of = {entry["image_id"]: entry["segments_info"] for entry in annotations}
    for record in dataset:
        (target,) = PanopticCollator(processor)([record])["labels"]
        width, height = record["image"].size
        assert target["orig_size"].tolist() == [height, width]
        segments = sorted(segments_of[record["image_id"]], key=lambda segment: -segment["area"])
        assert len(target["class_labels"]) <= len(segments)
        found = [categories.category_ids[label] for label in target["class_labels"]]
        for segment in segments[:3]:  # small ones may vanish on a map smaller than the photograph
            x, y, w, h = segment["bbox"]
            expected = torch.tensor([(x + w / 2) / width, (y + h / 2) / height, w / width, h / height])
            same = target["boxes"][[category == segment["category_id"] for category in found]]
            # An edge moves by at most a pixel of that map.
            assert (same - expected).abs().amax(1).min() < 1.5 / min(target["size"].tolist())


def test_a_step_on_two_photographs_of_different_sizes_learns(photographs, processor):
    dataset, categories = photographs
    sizes = [record["image"].size for record in dataset]
    other = next(i for i, size in enumerate(sizes) if size != sizes[0])
    labels = {"id2label": categories.id2label, "stuff_label_ids": categories.stuff_label_ids}
    model = build_tiny(num_labels=len(categories), encoder_layers=1, num_queries=30, **labels).train()
    batch = dict(PanopticCollator(processor)([dataset[0], dataset[other]]))
    assert not batch["pixel_mask"].bool().all()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = [
        float(train_step(model, [batch], optimizer, Accelerator(cpu=True), max_grad_norm=0.1)["loss"])
        for _ in range(4)
    ]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    stats = evaluate_model(model, processor, islice(dataset, 2), categories)
    assert int((stats.tp + stats.fn).sum()) == sum(
        not segment["iscrowd"] for record in islice(dataset, 2) for segment in record["segments_info"]
    )


def test_the_truth_as_prediction_has_quality_one(photographs):
    dataset, categories = photographs
    stats = PanopticStats.zeros(len(categories))
    for record in dataset:
        ids = segmentation_ids(record["segmentation"])
        truth = record["segments_info"]
        predicted = [{"id": segment["id"], "label_id": segment["label_id"]} for segment in truth]
        stats += panoptic_stats(ids, truth, ids, predicted, categories.category_ids)
    result = panoptic_quality(stats, category_ids=categories.category_ids, is_thing=categories.is_thing)
    assert result["All"]["pq"] == result["Things"]["pq"] == result["Stuff"]["pq"] == 1
    assert result["Things"]["n"] > 0
    assert result["Stuff"]["n"] > 0


def test_targets_shown_as_predictions_come_back_as_the_truth(photographs, processor):
    """Photograph, target, merging, quality: what is lost is the resolution of the masks, and nothing else."""
    dataset, categories = photographs
    stats = PanopticStats.zeros(len(categories))
    for record in dataset:
        batch = PanopticCollator(processor)([record])
        (target,) = batch["labels"]
        logits = torch.full((1, len(target["masks"]), len(categories) + 1), -20.0)
        logits[0, torch.arange(len(target["masks"])), target["class_labels"]] = 20.0
        outputs = PerfectOutputs(logits, target["masks"][None].float() * 40 - 20, target["size"][None])
        truth = segmentation_ids(record["segmentation"])
        (result,) = processor.post_process_panoptic_segmentation(outputs, target_sizes=[truth.shape])
        stats += panoptic_stats(
            truth,
            record["segments_info"],
            result["segmentation"],
            result["segments_info"],
            categories.category_ids,
        )
    result = panoptic_quality(stats, category_ids=categories.category_ids, is_thing=categories.is_thing)
    assert result["All"]["pq"] > 0.8


class PerfectOutputs:
    """What a model would return that sees the masks at the size of the image, without a stride."""

    def __init__(self, logits, pred_masks, sizes):
        self.logits, self.pred_masks = logits, pred_masks
        self.image_sizes = self.canvas_sizes = sizes
