"""The one loop that runs a model over images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from transformers import BatchFeature

    from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
    from ..modeling_detr_panoptic import DetrPanopticForSegmentation


class Batch(NamedTuple):
    """Images that go through the model together.

    Args:
        records: B mappings with at least an `image`, RGB and upright.
        inputs: their `pixel_values` (B, 3, H, W) and `pixel_mask` (B, H, W).
    """

    records: Sequence[Mapping[str, Any]]
    inputs: BatchFeature

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each original image."""
        return [(record["image"].height, record["image"].width) for record in self.records]


def make_batch(processor: DetrPanopticImageProcessor, records: Sequence[Mapping[str, Any]]) -> Batch:
    """Preprocesses the images of some records."""
    return Batch(records, processor([record["image"] for record in records], return_tensors="pt"))


@torch.no_grad()
def run_model(
    model: DetrPanopticForSegmentation, batches: Iterable[Batch], *, mask_queries: str | int | None = None
) -> Iterator[tuple[Batch, Any]]:
    """Runs a model and yields each batch with its raw outputs.

    Args:
        model: switched to evaluation mode, and back to its own mode at the end.
        batches: from `make_batch`; iterated once.
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
    # Comparisons with NaN are false: post-processing would return empty results without an error.
    sums = outputs.logits.sum(dtype=torch.float32)  # one pass over the masks; `isfinite` would copy them
    if outputs.pred_masks is not None:
        sums = sums + outputs.pred_masks.sum(dtype=torch.float32)
    if not sums.isfinite():
        names = [str(record.get("file_name") or record.get("image_id")) for record in batch.records]
        raise FloatingPointError(
            f"The model's outputs are not finite for the images {', '.join(names)}: its weights are broken, or "
            f"{outputs.logits.dtype} is not precise enough for it."
        )
