"""PQ of a model on records."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..categories import Categories
from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
from ..modeling_detr_panoptic import DetrPanopticForSegmentation
from ..segment_ids import rgb_to_ids
from .panoptic_quality import PanopticStats, panoptic_stats


@torch.no_grad()
def evaluate_model(
    model: DetrPanopticForSegmentation,
    processor: DetrPanopticImageProcessor,
    records: Iterable[Mapping[str, Any]],
    categories: Categories,
    *,
    batch_size: int = 8,
    sum_over_processes: Callable[[Tensor], Tensor] | None = None,
) -> PanopticStats:
    """Segments every record and compares it with its truth at the truth's own size.

    Args:
        model: put into evaluation mode, and back into its own after.
        processor: resizes the images, merges the masks.
        records: canonical records; with several processes, this process's share of them.
        categories: of the records; label ids are those of the model.
        batch_size: images per forward.
        sum_over_processes: adds a tensor up over processes; None for a single one.
    """
    was_training = model.training
    model.eval()
    stats = PanopticStats.zeros(len(categories))
    for batch in _batches(records, batch_size):
        truths = [_ids(record["segmentation"]) for record in batch]
        inputs = processor([record["image"] for record in batch], return_tensors="pt").to(model.device)
        predictions = processor.post_process_panoptic_segmentation(
            model(**inputs), target_sizes=[truth.shape for truth in truths]
        )
        for record, truth, prediction in zip(batch, truths, predictions, strict=True):
            stats = stats + panoptic_stats(
                truth,
                record["segments_info"],
                prediction["segmentation"].cpu(),
                prediction["segments_info"],
                categories.category_ids,
            )
    model.train(was_training)
    if sum_over_processes is None:
        return stats
    return PanopticStats.from_tensor(sum_over_processes(stats.to_tensor().to(model.device)))


def _batches(records: Iterable[Mapping[str, Any]], size: int) -> Iterable[Sequence[Mapping[str, Any]]]:
    batch = []
    for record in records:
        batch.append(record)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _ids(segmentation: Any) -> np.ndarray:
    return segmentation if isinstance(segmentation, np.ndarray) else rgb_to_ids(segmentation)
