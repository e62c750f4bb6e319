"""Batches of training images, in an order and with augmentations that depend on the seed and the epoch alone."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from ..data import NamedRecords, PanopticCollator
from ..data.augmentation import build_augmentation
from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
from .data import TrainingData
from .settings import TrainingSettings

Batch = dict[str, Any]


class EpochOrder(Sampler[int]):
    """A shuffled order of records that follows from the seed and the epoch, so that a resumed run finds its place."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch = count, seed, 0

    def __len__(self) -> int:
        """Returns the number of records."""
        return self.count

    def __iter__(self) -> Iterator[int]:
        """Yields the indices of the records in the order of the current epoch."""
        generator = torch.Generator().manual_seed((self.seed << 32) + self.epoch)
        yield from torch.randperm(self.count, generator=generator).tolist()


@dataclass(frozen=True)
class Batches:
    """The training data as batches: `loader` yields one epoch per pass."""

    loader: DataLoader[Any]
    collator: PanopticCollator
    order: EpochOrder
    is_over: torch.Tensor  # in shared memory: tells the loader's workers that a SIGTERM is meant for them

    def start_epoch(self, epoch: int) -> None:
        """Sets order and augmentation of the next pass."""
        self.order.epoch = epoch
        self.collator.set_epoch(epoch)

    def close(self) -> None:
        """Lets the workers end with the program."""
        self.is_over.fill_(1)


def build_batches(settings: TrainingSettings, data: TrainingData, processor: DetrPanopticImageProcessor) -> Batches:
    """Builds the loader of the training data."""
    images, seed = settings.data, settings.run.seed
    augmentation = build_augmentation(images.augmentation, short_side=images.short_side, long_side=images.long_side)
    collator = PanopticCollator(processor, augmentation, seed=seed)
    order = EpochOrder(len(data.train), seed)
    is_over = torch.zeros((), dtype=torch.int64).share_memory_()
    loader: DataLoader[Any] = DataLoader(
        NamedRecords(data.train),  # type: ignore[arg-type]  # has the two methods that are needed
        batch_size=int(settings.optimization.batch_size),
        sampler=order,
        collate_fn=partial(collate, collator, with_masks=settings.model.stage != "boxes"),
        num_workers=images.workers,
        persistent_workers=images.workers > 0,
        worker_init_fn=partial(_leave_signals_to_the_run, is_over),
        generator=torch.Generator().manual_seed(seed),  # otherwise each pass advances the generator of the dropout
    )
    return Batches(loader, collator, order, is_over)


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
