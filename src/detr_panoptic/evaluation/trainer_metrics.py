"""Panoptic quality for the Trainer of transformers."""

from __future__ import annotations

import os
from typing import Any

import torch

from ..data.categories import Categories
from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
from ..modeling_detr_panoptic import DetrPanopticSegmentationOutput
from .panoptic_quality import PanopticQuality


class TrainerPanopticQuality:
    """Computes panoptic quality batch by batch as `compute_metrics` of a Trainer, at the model's input size.

    It needs `batch_eval_metrics=True`, `include_for_metrics=["inputs"]` and `remove_unused_columns=False`, and
    measures one process. It reads the truth from the inputs: the `label_ids` of a Trainer lose segments in the last
    batch, because Accelerate cuts every tensor, also those of a target, to the number of images that are left.

    Args:
        processor: merges the masks.
        categories: of the model's labels.
    """

    OUTPUTS = ("logits", "pred_boxes", "pred_masks", "image_sizes", "canvas_sizes")

    def __init__(self, processor: DetrPanopticImageProcessor, categories: Categories) -> None:
        """Starts without images; raises ValueError in one of several processes.

        Accelerate cannot gather targets of different sizes: it would wait forever, or the processes would crash.
        """
        if (count := os.environ.get("WORLD_SIZE", "1")) != "1":
            raise ValueError(
                f"`compute_metrics` must be None in {count} processes: call `evaluate` after the training."
            )
        self.processor = processor
        self.quality = PanopticQuality(categories)

    def __call__(self, batch: Any, compute_result: bool | None = None) -> dict[str, float]:
        """Adds a batch; with `compute_result`, returns the quality of all batches in [0, 1] and starts again.

        Raises:
            ValueError: the Trainer's arguments are not those that the class needs.
        """
        if compute_result is None:
            raise ValueError("`batch_eval_metrics` of the TrainingArguments must be True, got False.")
        if batch.inputs is None:
            raise ValueError('`include_for_metrics` of the TrainingArguments must be ["inputs"], got no inputs.')
        outputs = DetrPanopticSegmentationOutput(**dict(zip(self.OUTPUTS, batch.predictions, strict=True)))
        results = self.processor.post_process_panoptic_segmentation(outputs)
        for target, result in zip(batch.inputs["labels"], results, strict=True):
            masks, labels, crowds = (target[key].cpu() for key in ("masks", "class_labels", "iscrowd"))
            ids = torch.arange(1, len(masks) + 1)
            columns = zip(ids.tolist(), labels.tolist(), crowds.tolist(), strict=True)
            segments = [{"id": i, "label_id": label, "iscrowd": crowd} for i, label, crowd in columns]
            truth = {"segmentation": (masks * ids[:, None, None]).sum(0), "segments_info": segments}
            self.quality.update(truth, {**result, "segmentation": result["segmentation"].cpu()})
        if not compute_result:
            return {}
        total, self.quality = self.quality.compute(), PanopticQuality(self.quality.categories)
        return vars(total.overall) | {"pq_things": total.things.pq, "pq_stuff": total.stuff.pq}
