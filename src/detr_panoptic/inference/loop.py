"""A model run over records: the one loop."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from transformers import BatchFeature

from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
from ..modeling_detr_panoptic import DetrPanopticForSegmentation


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
