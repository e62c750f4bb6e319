"""Real photographs from the reader through the model and back; DETR_PANOPTIC_COCO names the folder."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from detr_panoptic import DetrPanopticImageProcessor
from detr_panoptic.data import PanopticCollator, PanopticData, read_panoptic, truth_ids
from detr_panoptic.evaluation import PanopticQuality, evaluate
from detr_panoptic.training.loop import train_step
from tests.conftest import build_tiny

COUNT = 6


@pytest.fixture(scope="module")
def photographs(coco_folder):
    return read_panoptic(coco_folder, limit=COUNT)


@pytest.fixture(scope="module")
def processor(photographs):
    return DetrPanopticImageProcessor(
        size={"shortest_edge": 128, "longest_edge": 213},
        stuff_label_ids=photographs.categories.stuff_label_ids,
        category_ids=list(photographs.categories.category_ids),
    )


def test_targets_are_the_annotations(coco_folder, photographs, processor):
    """Labels and boxes are those of COCO's file, which the reader reads and the processor never sees."""
    annotations = json.loads((coco_folder / "panoptic.json").read_text())["annotations"]
    segments_of = {entry["image_id"]: entry["segments_info"] for entry in annotations}
    for record in photographs.records:
        (target,) = PanopticCollator(processor)([record])["labels"]
        width, height = record["image"].size
        assert target["orig_size"].tolist() == [height, width]
        segments = sorted(segments_of[record["image_id"]], key=lambda segment: -segment["area"])
        assert len(target["class_labels"]) <= len(segments)
        found = [photographs.categories.category_ids[label] for label in target["class_labels"]]
        for segment in segments[:3]:  # small ones may vanish on a map smaller than the photograph
            x, y, w, h = segment["bbox"]
            expected = torch.tensor([(x + w / 2) / width, (y + h / 2) / height, w / width, h / height])
            same = target["boxes"][[category == segment["category_id"] for category in found]]
            # An edge moves by at most a pixel of that map.
            assert (same - expected).abs().amax(1).min() < 1.5 / min(target["size"].tolist())


def test_a_step_on_two_photographs_of_different_sizes_learns(photographs, processor):
    records, categories = photographs.records, photographs.categories
    sizes = [record["image"].size for record in records]
    other = next(i for i, size in enumerate(sizes) if size != sizes[0])
    labels = {"id2label": categories.id2label, "stuff_label_ids": categories.stuff_label_ids}
    model = build_tiny(num_labels=len(categories), encoder_layers=1, num_queries=30, **labels).train()
    batch = dict(PanopticCollator(processor)([records[0], records[other]]))
    assert not batch["pixel_mask"].bool().all()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = [
        float(train_step(model, [batch], optimizer, Accelerator(cpu=True), max_grad_norm=0.1)["loss"])
        for _ in range(4)
    ]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    two = PanopticData(records.select(range(2)), categories)
    result = evaluate((model, processor), two, average_precision=False, progress=False)
    assert sum(row.tp + row.fn for row in result.per_class.values()) == sum(
        not segment["iscrowd"] for record in two.records for segment in record["segments_info"]
    )


def test_the_truth_as_prediction_has_quality_one(photographs):
    quality = PanopticQuality(photographs.categories)
    for record in photographs.records:
        predicted = [{"id": segment["id"], "label_id": segment["label_id"]} for segment in record["segments_info"]]
        quality.update(record, {"segmentation": truth_ids(record), "segments_info": predicted})
    result = quality.compute()
    assert result.pq == result.things.pq == result.stuff.pq == 1
    assert result.things.n > 0
    assert result.stuff.n > 0


def test_targets_shown_as_predictions_come_back_as_the_truth(photographs, processor):
    """Photograph, target, merging, quality: what is lost is the resolution of the masks, and nothing else."""
    categories = photographs.categories
    quality = PanopticQuality(categories)
    for record in photographs.records:
        (target,) = PanopticCollator(processor)([record])["labels"]
        logits = torch.full((1, len(target["masks"]), len(categories) + 1), -20.0)
        logits[0, torch.arange(len(target["masks"])), target["class_labels"]] = 20.0
        masks, sizes = target["masks"][None].float() * 40 - 20, target["size"][None]  # without a stride
        outputs = SimpleNamespace(logits=logits, pred_masks=masks, image_sizes=sizes, canvas_sizes=sizes)
        (result,) = processor.post_process_panoptic_segmentation(outputs, target_sizes=[truth_ids(record).shape])
        quality.update(record, result)
    assert quality.compute().pq > 0.8
