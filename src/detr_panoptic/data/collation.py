"""Records to batches: the `collate_fn` of training and evaluation."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import BatchFeature

from .augmentation import Augmentation, sample_seed
from .records import Record


class PanopticCollator:
    """Augment canonical records and hand them to the image processor.

    Args:
        processor: a `DetrPanopticImageProcessor`, or what is called like one.
        augmentation: of training; it sets the size, so the processor then leaves sizes alone. None: the processor
            resizes.
        seed: of the augmentation, together with the epoch and each record's `image_id`.
    """

    def __init__(self, processor: Any, augmentation: Augmentation | None = None, *, seed: int = 0) -> None:
        """Keep the parts; the epoch is 0."""
        self.processor = processor
        self.augmentation = augmentation
        self.seed = seed
        # In shared memory: workers that live through several epochs hold a copy of the collator and must see a change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Take the augmentations of this epoch from the next batch on."""
        self._epoch.fill_(epoch)

    def __call__(self, records: Sequence[Record]) -> BatchFeature:
        """Make a batch.

        Args:
            records: canonical records.

        Returns:
            `pixel_values` (B, 3, H, W), `pixel_mask` (B, H, W) and `labels`, a list of one dict per record.
        """
        options: dict[str, Any] = {}
        if self.augmentation is not None:
            epoch = int(self._epoch)
            records = [
                self.augmentation(record, sample_seed(self.seed, epoch, record["image_id"])) for record in records
            ]
            options["do_resize"] = False
        annotations = [
            {
                "image_id": record["image_id"],
                "segmentation": record["segmentation"],
                "segments_info": record["segments_info"],
            }
            for record in records
        ]
        images = [record["image"] for record in records]
        return self.processor(images, annotations=annotations, return_tensors="pt", **options)
