"""The one loop that runs a model over images, in batches of similar shape that worker processes load.

The batches depend on the images and the batch size alone, not on the number of processes or on earlier runs, so
neither changes a result. An image that cannot be read does not affect the others of its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import BatchFeature

from ..box_ops import upload
from ..data.augmentation import padding_options
from ..image_processing_detr_panoptic import DetrPanopticImageProcessor

if TYPE_CHECKING:
    from ..modeling_detr_panoptic import DetrPanopticForSegmentation
    from .pictures import Pictures

WINDOW = 64  # batches; images are sorted by shape within a window, whose sizes are read ahead


class Batch(NamedTuple):
    """Records with an upright RGB `image`, their `pixel_values` (B, 3, H, W), and maybe `pixel_mask` (B, H, W)."""

    records: Sequence[Mapping[str, Any]]
    inputs: BatchFeature

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each original image."""
        return [(record["image"].height, record["image"].width) for record in self.records]


def make_batch(processor: Callable[..., BatchFeature], records: Sequence[Mapping[str, Any]]) -> Batch:
    """Preprocesses the images of some records."""
    images = [record["image"] for record in records]
    options = padding_options(processor, images) if isinstance(processor, DetrPanopticImageProcessor) else {}
    return Batch(records, processor(images, return_tensors="pt", **options))


def plan_batches(
    pictures: Pictures, batch_size: int, is_done: Callable[[int], bool] | None = None
) -> Iterator[list[int]]:
    """Yields the indices of all images by batch, sorted by aspect ratio and size to reduce padding, if above 1.

    Batches of which each image `is_done` are left out.
    """
    for start in range(0, len(pictures), WINDOW * batch_size):
        window = range(len(pictures))[start : start + WINDOW * batch_size]
        indices = window if batch_size == 1 else sorted(window, key=partial(_shape, pictures))
        for first in range(0, len(indices), batch_size):
            batch = list(indices[first : first + batch_size])
            if is_done is None or not all(map(is_done, batch)):
                yield batch


@torch.no_grad()
def run_model(
    model: DetrPanopticForSegmentation,
    batches: Iterable[Batch],
    *,
    network: Any = None,
    **options: Any,
) -> Iterator[tuple[Batch, Any]]:
    """Runs a model in evaluation mode and yields each batch with its raw outputs; its own mode is restored.

    A `network` is called in its place: a faster form of it. `options` are further arguments of the model.

    Raises:
        FloatingPointError: scores or masks are not finite; names the images.
    """
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            outputs = (network or model)(**inputs_on(model, batch), **options)
            _check_finite(batch, outputs)
            yield batch, outputs
    finally:
        model.train(was_training)


def inputs_on(model: DetrPanopticForSegmentation, batch: Batch) -> dict[str, Any]:
    """Returns the model's arguments on its device; without `pixel_mask` if nothing is padded: attention is faster."""
    inputs: dict[str, Any] = dict(batch.inputs)
    if "pixel_mask" in inputs and inputs["pixel_mask"].all():
        del inputs["pixel_mask"]
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    return {name: upload(tensor, model.device) for name, tensor in inputs.items()}


def _shape(pictures: Pictures, index: int) -> tuple[float, int]:
    try:
        width, height = pictures.size_of(index)
    except Exception:  # reading it fails as well, and is reported then
        return 0.0, 0
    return width / height, width * height


def load_batch(
    pictures: Pictures, processor: Callable[..., BatchFeature] | None, indices: Sequence[int]
) -> tuple[Batch | None, list[str]]:
    """Returns the batch of the images that could be read, with their `index`, and messages about the others."""
    records, failures = [], []
    for index in indices:
        try:
            records.append({**pictures[index], "index": index})
        except Exception as error:  # broken files raise anything from SyntaxError to struct.error
            name, text = pictures.name_of(index), " ".join(str(error).split()) or type(error).__name__
            failures.append(text if name in text else f"{name}: {text}")
    if not records:
        return None, failures
    return Batch(records, BatchFeature()) if processor is None else make_batch(processor, records), failures


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
