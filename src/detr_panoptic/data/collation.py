"""The `collate_fn` that makes batches of records."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import BatchFeature

from .augmentation import Augmentation, sample_seed
from .records import Record


class PanopticCollator:
    """Augments canonical records and passes them to the image processor.

    Args:
        processor: a `DetrPanopticImageProcessor`.
        augmentation: of training; it sets the size, so the processor does not resize then.
        seed: of the augmentation, together with the epoch and the `image_id` of each record.

    Example:
        >>> from detr_panoptic import DetrPanopticImageProcessor
        >>> from detr_panoptic.scenes import make_scene
        >>> collate = PanopticCollator(DetrPanopticImageProcessor(size={"height": 64, "width": 96}))
        >>> batch = collate([make_scene(0), make_scene(1)])
        >>> tuple(batch["pixel_values"].shape), len(batch["labels"])
        ((2, 3, 64, 96), 2)
    """

    def __init__(self, processor: Any, augmentation: Augmentation | None = None, *, seed: int = 0) -> None:
        self.processor = processor
        self.augmentation = augmentation
        self.seed = seed
        # In shared memory: persistent workers hold a copy of the collator and must see the change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next batches."""
        self._epoch.fill_(epoch)

    def __call__(self, records: Sequence[Record]) -> BatchFeature:
        """Returns `pixel_values` (B, 3, H, W), `pixel_mask` (B, H, W) and `labels`, a list of one dict per record."""
        options: dict[str, Any] = {}
        if self.augmentation is not None:
            seeds = [sample_seed(self.seed, int(self._epoch), record["image_id"]) for record in records]
            records = [self.augmentation(record, seed) for record, seed in zip(records, seeds, strict=True)]
            options["do_resize"] = False
        keys = ("image_id", "segmentation", "segments_info")
        annotations = [{key: record[key] for key in keys} for record in records]
        images = [record["image"] for record in records]
        return self.processor(images, annotations=annotations, return_tensors="pt", **options)
