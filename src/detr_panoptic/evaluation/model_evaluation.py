"""Panoptic quality of a model on records."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..data.categories import Categories
from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
from ..inference.loop import make_batch, run_model
from ..modeling_detr_panoptic import DetrPanopticForSegmentation
from ..segment_ids import rgb_to_ids
from .panoptic_quality import PanopticStats, panoptic_stats


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
    stats = PanopticStats.zeros(len(categories))
    batches = (make_batch(processor, some) for some in _groups(records, batch_size))
    for batch, outputs in run_model(model, batches):
        truths = [truth_ids(record) for record in batch.records]
        predictions = processor.post_process_panoptic_segmentation(
            outputs, target_sizes=[truth.shape for truth in truths]
        )
        for record, truth, prediction in zip(batch.records, truths, predictions, strict=True):
            stats = stats + panoptic_stats(
                truth,
                record["segments_info"],
                prediction["segmentation"].cpu(),
                prediction["segments_info"],
                categories.category_ids,
            )
    if sum_over_processes is None:
        return stats
    return PanopticStats.from_tensor(sum_over_processes(stats.to_tensor().to(model.device)))


def truth_ids(record: Mapping[str, Any]) -> np.ndarray:
    """The annotated id map (H, W) of a canonical record, an RGB picture or an array of ids."""
    segmentation = record["segmentation"]
    if isinstance(segmentation, Image.Image):
        return rgb_to_ids(np.asarray(segmentation.convert("RGB")))
    return np.asarray(segmentation)


def _groups(records: Iterable[Mapping[str, Any]], size: int) -> Iterator[list[Mapping[str, Any]]]:
    group = []
    for record in records:
        group.append(record)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
