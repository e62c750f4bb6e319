"""Batches of training images, in an order and with augmentations that depend on the seed and the epoch alone."""

import os
import signal
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, RandomSampler

from ..data import NamedRecords, PanopticCollator
from ..data.augmentation import build_augmentation
from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
from .data import TrainingData
from .settings import TrainingSettings

Batch = dict[str, Any]


class Batches:
    """The training data as batches: `loader` yields one epoch per pass."""

    def __init__(self, settings: TrainingSettings, data: TrainingData, processor: DetrPanopticImageProcessor) -> None:
        images, self.seed = settings.data, settings.run.seed
        sides = {"short_side": images.short_side, "long_side": images.long_side}
        self.collator = PanopticCollator(processor, build_augmentation(images.augmentation, **sides), seed=self.seed)
        self._order = torch.Generator()
        self._is_over = torch.zeros((), dtype=torch.int64).share_memory_()
        records: Any = NamedRecords(data.train)
        self.loader: DataLoader[Any] = DataLoader(
            records,
            batch_size=int(settings.optimization.batch_size),
            sampler=RandomSampler(records, generator=self._order),
            collate_fn=partial(collate, self.collator, with_masks=settings.model.stage != "boxes"),
            num_workers=images.workers,
            persistent_workers=images.workers > 0,
            worker_init_fn=partial(_leave_signals_to_the_run, self._is_over),
            generator=torch.Generator().manual_seed(
                self.seed
            ),  # otherwise passes advance the generator of the dropout
        )

    def start_epoch(self, epoch: int) -> None:
        """Sets order and augmentation of the next pass, so that a resumed run finds its place."""
        self._order.manual_seed((self.seed << 32) + epoch)
        self.collator.set_epoch(epoch)

    def close(self) -> None:
        """Tells the workers that the next SIGTERM is meant for them."""
        self._is_over.fill_(1)


def collate(collator: PanopticCollator, records: list[dict[str, Any]], *, with_masks: bool = True) -> Batch:
    """Returns the arguments of the model for some records; without masks it computes no masks and no mask losses."""
    batch = dict(collator(records))  # Accelerate moves the labels of a plain dict to the device, too
    if not with_masks:
        labels = [{name: value for name, value in target.items() if name != "masks"} for target in batch["labels"]]
        batch |= {"labels": labels, "mask_queries": 0}
    return batch


def _leave_signals_to_the_run(is_over: torch.Tensor, _worker: int) -> None:
    # Schedulers and Ctrl-C signal every process of a job, but torch ends a run whose worker dies before the run could
    # save. At the end of the program, Python sends SIGTERM to its workers and waits for them.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if is_over else None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
