"""PQ for transformers' Trainer."""

from typing import Any

import torch

from ..data.categories import Categories
from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
from ..modeling_detr_panoptic import DetrPanopticSegmentationOutput
from .panoptic_quality import PanopticStats, panoptic_quality, panoptic_stats


class TrainerPanopticQuality:
    """`compute_metrics` of a Trainer: adds up PQ batch by batch, at the size that the model sees.

    It needs `batch_eval_metrics=True`, `include_for_metrics=["inputs"]` and `remove_unused_columns=False`, and it
    measures one process. The truth is that of the inputs: Trainer's own `label_ids` lose segments in the last batch,
    where Accelerate cuts every tensor, those inside a target too, to the number of images that are left.

    Args:
        processor: merges the masks.
        categories: of the model's labels.
    """

    OUTPUTS = ("logits", "pred_boxes", "pred_masks", "image_sizes", "canvas_sizes")

    def __init__(self, processor: DetrPanopticImageProcessor, categories: Categories) -> None:
        """Starts at nothing."""
        self.processor, self.categories = processor, categories
        self.stats = PanopticStats.zeros(len(categories))

    def __call__(self, batch: Any, compute_result: bool) -> dict[str, float]:
        """Adds a batch; `compute_result` with the last one returns PQ, SQ, RQ and begins anew."""
        outputs = DetrPanopticSegmentationOutput(**dict(zip(self.OUTPUTS, batch.predictions, strict=True)))
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
        return {
            **{name: quality["All"][name] for name in ("pq", "sq", "rq")},
            "pq_things": quality["Things"]["pq"],
            "pq_stuff": quality["Stuff"]["pq"],
        }
