"""A model run over records: the one loop, and PQ as the simplest thing to do with it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from ..categories import Categories
from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
from ..modeling_detr_panoptic import DetrPanopticForSegmentation
from ..segment_ids import rgb_to_ids
from .panoptic_quality import PanopticStats, panoptic_stats


class Batch(NamedTuple):
    """Images that go through the model at once.

    Args:
        records: B mappings with at least an `image`, RGB and upright.
        inputs: `pixel_values` (B, 3, H, W) and `pixel_mask` (B, H, W) of them.
    """

    records: Sequence[Mapping[str, Any]]
    inputs: BatchFeature

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each image as it came."""
        return [(record["image"].height, record["image"].width) for record in self.records]


def make_batch(processor: DetrPanopticImageProcessor, records: Sequence[Mapping[str, Any]]) -> Batch:
    """Prepare the images of some records for the model."""
    return Batch(records, processor([record["image"] for record in records], return_tensors="pt"))


@torch.no_grad()
def run_model(
    model: DetrPanopticForSegmentation, batches: Iterable[Batch], *, mask_queries: str | int | None = None
) -> Iterator[tuple[Batch, Any]]:
    """Each batch and the model's outputs for it; post-processing is the caller's.

    Args:
        model: put into evaluation mode, and back into its own after.
        batches: what `make_batch` returns; gone through once.
        mask_queries: which queries get masks; None: as the model's configuration says.

    Raises:
        FloatingPointError: scores or masks are not finite; names the images.
    """
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            inputs = batch.inputs.to(device=model.device, dtype=model.dtype)
            outputs = model(**inputs, mask_queries=mask_queries)
            _check_finite(batch, outputs)
            yield batch, outputs
    finally:
        model.train(was_training)


def _check_finite(batch: Batch, outputs: Any) -> None:
    # Comparisons with NaN are false: post-processing would find nothing, and call that a result.
    sums = outputs.logits.sum(dtype=torch.float32)  # one pass over the masks, where `isfinite` makes copies
    if outputs.pred_masks is not None:
        sums = sums + outputs.pred_masks.sum(dtype=torch.float32)
    if not sums.isfinite():
        names = [str(record.get("file_name") or record["image_id"]) for record in batch.records]
        raise FloatingPointError(
            f"The model's outputs are not finite with the images {', '.join(names)}: its weights are broken, or the "
            f"numbers of {outputs.logits.dtype} too small for it."
        )


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
