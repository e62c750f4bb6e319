"""What a model sees in the records of a dataset, batch by batch, for `data complete-stuff`. Imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Image as ImageFeature

from ..commands.data_convert import SKIP_HINT
from ..commands.frame import CommandError, report
from ..data.lazy_records import undecoded
from ..data.writing import stored_record
from ..evaluation.average_precision import image_sizes
from ..inference.batching import load_batches, plan_batches
from ..inference.long_runs import num_workers
from ..inference.loop import run_model
from ..inference.old_pictures import DatasetPictures
from ..panoptic_merging import crop_to_image

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

    from datasets import Dataset
    from PIL import Image
    from torch import Tensor

    from ..commands.data_convert import Counts
    from ..data import Record
    from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
    from ..inference.batching import Loaded
    from ..inference.loop import Batch
    from ..modeling_detr_panoptic import DetrPanopticForSegmentation

PIXEL_LOGIT = 0.0  # a probability of one half
Seen = tuple[dict[str, Any], np.ndarray, list[dict[str, Any]]]
"""A record as files, the map (H, W) int32 of what the model is sure to see, and its segments (labels of the model)."""


class RecordFiles(DatasetPictures):
    """Records whose picture is decoded, and all of it, `stored`, as files."""

    def __init__(self, records: Dataset) -> None:
        """Keep the records, also without decoding."""
        super().__init__(records, with_truth=False)
        self._encoded = undecoded(records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`image`, upright and RGB, and `stored`."""
        stored = stored_record(self._encoded[index])
        return {"image": picture_of(stored), "stored": stored}


def seen_records(
    pictures: Any,
    model: DetrPanopticForSegmentation,
    processor: DetrPanopticImageProcessor,
    arguments: argparse.Namespace,
    counts: Counts,
) -> Iterator[Seen]:
    """Every record that can be read, and what the model is sure to see in it, in the order of the data.

    Args:
        pictures: all records.
        model: in evaluation mode.
        processor: the model's.
        arguments: of the command.
        counts: gets what was read, and what was left out.

    Raises:
        CommandError: a record cannot be read, and is not to be left out; or none can.
    """
    threshold = processor.threshold if arguments.threshold is None else arguments.threshold
    workers = num_workers(arguments.workers, model.device)
    loaded = load_batches(pictures, plan_batches(pictures, arguments.batch_size), processor, workers=workers)
    failed: set[int] = set()
    batches = _readable(loaded, counts, failed, skip=arguments.on_error == "skip")
    waiting: dict[int, Seen] = {}
    place = 0
    for batch, outputs in run_model(model, batches):
        sizes = batch.sizes
        merged = processor.post_process_panoptic_segmentation(outputs, threshold, target_sizes=sizes)
        for index, (record, result) in enumerate(zip(batch.records, merged, strict=True)):
            sure = claimed_pixels(outputs, index, sizes[index], threshold)
            seen = (result["segmentation"] * sure).cpu().numpy()
            waiting[record["index"]] = record["stored"], seen, [dict(entry) for entry in result["segments_info"]]
        while place in waiting or place in failed:
            if place not in failed:
                counts.add(waiting[place][0])
                yield waiting.pop(place)
            place += 1
    if not counts.images:
        raise CommandError("no image of SOURCE can be read.")


def _readable(loaded: Iterable[Loaded], counts: Counts, failed: set[int], *, skip: bool) -> Iterator[Batch]:
    """The batches; records that cannot be read end it, or are reported and noted."""
    for batch, failures in loaded:
        for failure in failures:
            if not skip:
                raise CommandError(f"{failure.message} {SKIP_HINT}")
            report(failure.message)
            counts.broken.append(failure.message)
            failed.add(failure.place)
        if batch is not None:
            yield batch


def claimed_pixels(outputs: Any, index: int, size: tuple[int, int], threshold: float) -> Tensor:
    """Where a mask of a segment above the threshold has a probability of at least one half.

    Args:
        outputs: the model's, of a batch.
        index: of the image in the batch.
        size: (height, width) of the image.
        threshold: least score of a segment.

    Returns:
        (H, W) bool.
    """
    scores, labels = outputs.logits[index].float().softmax(-1).max(-1)
    kept = (labels < outputs.logits.shape[-1] - 1) & (scores > threshold)
    claimed = torch.zeros(size, dtype=torch.bool, device=scores.device)
    masks = crop_to_image(outputs.pred_masks[index][kept].float(), image_sizes(outputs, index, size))
    for mask in masks:  # one by one: all of them at an image's size may be gigabytes
        claimed |= torch.nn.functional.interpolate(mask[None, None], size, mode="bilinear")[0, 0] >= PIXEL_LOGIT
    return claimed


def picture_of(record: Record) -> Image.Image:
    """The picture of a record that has it as a file, upright and RGB, as `datasets` decodes it."""
    return ImageFeature(mode="RGB").decode_example(record["image"])
