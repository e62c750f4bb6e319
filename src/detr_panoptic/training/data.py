"""The images of a training run: records to train on and to measure PQ on, and batches of them.

Order, augmentations and sides depend on the seed and the epoch alone.
"""

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader, RandomSampler

from ..data import NamedRecords, PanopticCollator, PanopticData
from ..data.augmentation import build_augmentation
from ..data.categories import Categories
from ..data.hub_names import public_name
from ..data.records import Record
from ..data.splitting import split_rows
from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
from ..scenes.dataset import MIN_SIDE
from ..scenes.source import SCENE_SIDE, SCENES, read_source
from .settings import DataSettings, TrainingSettings

Batch = dict[str, Any]

SUMMARY_IMAGES = 200  # evenly spaced; reading all annotations of a large dataset would take minutes
VALIDATION_SEED_OFFSET = 1_000_003  # so that validation scenes differ from training scenes
VALIDATION_SCENES = 100
LEAST_TO_SPLIT = 20  # images; of fewer, all are needed to train on
SPLIT_FILE = "split.json"
GROWTH = (0.4, 0.7)  # shares of the run between which images grow
GROWTH_STEP = 32  # pixels


@dataclass(frozen=True)
class TrainingData:
    """Training and validation records with the same categories."""

    train: Dataset
    validation: Dataset  # the training records if there are no others
    categories: Categories
    train_name: str  # without private paths
    validation_name: str
    sample: Sequence[Sequence[int]]  # label ids of the segments of some training images
    held_out: Mapping[str, Any] | None = None  # of a split made here: seed, fraction, and the names in both parts

    @property
    def is_measured_on_training(self) -> bool:
        """Whether there are no images but the training images to measure on."""
        return self.validation is self.train

    def describe(self) -> dict[str, str]:
        """Returns a sentence about the training data, with counts of the sample, and one about the validation data."""
        counts = [len(labels) for labels in self.sample]
        seen = {label for labels in self.sample for label in labels}
        things, missing = sum(self.categories.is_thing[label] for label in seen), len(self.categories) - len(seen)
        training = (
            f"{self.train_name}: {len(counts)} images, {sum(counts)} segments ({sum(counts) / len(counts):.1f} per "
            f"image) of {len(seen)} classes ({things} things, {len(seen) - things} stuff)"
        )
        training += f"; {missing} classes never occur" if missing else ""
        training += f"; {counts.count(0)} images without a segment" if 0 in counts else ""
        training += f"; counted in {len(counts)} of {len(self.train)} images" if len(counts) < len(self.train) else ""
        hint = "; quality on other images may be lower: see `validation_data`" if self.is_measured_on_training else ""
        validation = f"{len(self.validation)} images, {self.validation_name}{hint}"
        return {"training": training, "validation": validation}


def read_data(settings: DataSettings, seed: int, in_memory: Mapping[str, PanopticData] | None = None) -> TrainingData:
    """Reads the training and validation records; those in memory take the place of `data` and `validation_data`.

    Raises ValueError if no data are named, they cannot be read, no image has a segment, or the classes differ.
    """
    named = {"data": settings.data, "validation_data": settings.validation_data} | dict(in_memory or {})
    source, held_out = named["data"], named["validation_data"]
    if source is None:
        raise ValueError(f"`data` is needed: a folder, a Hub dataset or `{SCENES}`.")
    options: dict[str, Any] = {"data_format": settings.format, "limit": settings.limit}
    options |= {"scene_side": min(max(settings.short_side, MIN_SIDE), SCENE_SIDE), "scene_seed": seed}
    train = read_source(source, split=settings.split, **options)
    if not isinstance(train.records, Dataset):
        raise ValueError("`data` must not be a stream.")
    train_name = public_name(str(settings.data), settings.split)
    validation, name, choice = train, "the training images", None
    if held_out is None and settings.validation_split is None and source != SCENES:
        train, validation, choice = hold_out(train, settings.validation_fraction, seed)
        name = f"held out of {train_name}, see {SPLIT_FILE}" if choice else name
    records = NamedRecords(train.records)
    rows = range(0, len(records), max(1, len(records) // SUMMARY_IMAGES))
    sample = [[segment["label_id"] for segment in records[i]["segments_info"]] for i in rows]
    if not any(sample):
        raise ValueError(f"`data` {settings.data!r} has no annotated segment in the {len(sample)} images examined.")
    options |= {"scene_seed": seed + VALIDATION_SEED_OFFSET, "categories": train.categories}
    if held_out is not None or settings.validation_split is not None:
        held_out_name = settings.validation_data or settings.data
        try:
            validation = read_source(held_out or source, split=settings.validation_split, **options)
        except ValueError as error:
            raise ValueError(f"`validation_data` {held_out_name!r} does not fit the training data: {error}") from error
        name = public_name(str(held_out_name), settings.validation_split)
    elif source == SCENES:
        options["limit"] = min(settings.limit or VALIDATION_SCENES, VALIDATION_SCENES)
        validation, name = read_source(SCENES, **options), "generated scenes that are not trained on"
    return TrainingData(train.records, validation.records, train.categories, train_name, name, sample, choice)


def hold_out(
    data: PanopticData, fraction: float, seed: int
) -> tuple[PanopticData, PanopticData, dict[str, Any] | None]:
    """Splits data for training and validation, and says which images are in which part.

    With fewer than 20 images or a fraction of 0 both parts are all images.
    """
    if not fraction or len(data.records) < LEAST_TO_SPLIT:
        return data, data, None
    parts = [data.records.select(rows) for rows in split_rows(data.records, fraction, seed)]
    names = [
        [str(name or number) for name, number in zip(part["file_name"], part["image_id"], strict=True)]
        for part in (part.with_format(None).select_columns(["file_name", "image_id"]) for part in parts)
    ]
    choice = {"fraction": fraction, "seed": seed, "training": names[0], "validation": names[1]}
    training, validation = (data._replace(records=part) for part in parts)
    return training, validation, choice


class Batches:
    """The training data as batches: `loader` yields one epoch per pass."""

    def __init__(self, settings: TrainingSettings, data: TrainingData, processor: DetrPanopticImageProcessor) -> None:
        images, self.seed = settings.data, settings.run.seed
        self._images, self._side = images, torch.tensor(side_at(images, 0.0)).share_memory_()
        augmentation: Any = None if images.augmentation == "none" else partial(_augment, images, self._side)
        self.collator = PanopticCollator(processor, augmentation, seed=self.seed, as_maps=True)
        self._order = torch.Generator()
        self._is_over = torch.zeros((), dtype=torch.int64).share_memory_()
        self._records = records = NamedRecords(data.train)
        self.loader: DataLoader[Any] = DataLoader(
            records,  # type: ignore[arg-type]  # has the two methods that are needed
            batch_size=int(settings.optimization.batch_size),
            sampler=RandomSampler(records, generator=self._order),
            collate_fn=partial(collate, self.collator, with_masks=settings.model.stage != "boxes"),
            num_workers=images.workers,
            persistent_workers=images.workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=partial(_leave_signals_to_the_run, self._is_over),
            # Without a generator of its own, passes would advance that of the dropout.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def first(self, count: int) -> Batch:
        """Returns the first images as one batch."""
        return collate(self.collator, [self._records[i] for i in range(min(count, len(self._records)))])

    def start_epoch(self, epoch: int, progress: float = 0.0) -> None:
        """Sets order, augmentation and sides of the next pass, before which a share of the run has been done."""
        self._order.manual_seed((self.seed << 32) + epoch)
        self.collator.set_epoch(epoch)
        self._side.fill_(side_at(self._images, progress))

    def endless(self) -> Iterator[Batch]:
        """Yields the batches of one pass after the other."""
        for epoch in count():
            self.start_epoch(epoch)
            for rows in self.loader.batch_sampler or ():  # in this process: workers would live as long as the run
                yield self.loader.collate_fn([self._records[row] for row in rows])

    def close(self) -> None:
        """Tells the workers that the next SIGTERM is meant for them."""
        self._is_over.fill_(1)


def side_at(images: DataSettings, progress: float) -> int:
    """Returns the short side of the images after a share of the run, in pixels.

    Examples:
        >>> [side_at(DataSettings(first_short_side=128, short_side=256), share) for share in (0.0, 0.5, 0.7)]
        [128, 160, 256]
    """
    first, last = images.first_short_side or images.short_side, images.short_side
    share = (min(max(progress, GROWTH[0]), GROWTH[1]) - GROWTH[0]) / (GROWTH[1] - GROWTH[0])
    return last if share == 1 else first + GROWTH_STEP * int(share * (last - first) / GROWTH_STEP)


def _augment(images: DataSettings, side: torch.Tensor, record: Record, seed: int) -> Record:
    short = int(side)
    long = round(images.long_side * short / images.short_side)
    augmentation: Any = build_augmentation(images.augmentation, short_side=short, long_side=long)
    return augmentation(record, seed)


def collate(collator: PanopticCollator, records: list[dict[str, Any]], *, with_masks: bool = True) -> Batch:
    """Returns the arguments of the model for some records; without masks it computes no masks and no mask losses."""
    batch = dict(collator(records))  # Accelerate moves the labels of a plain dict to the device, too
    if not with_masks:
        batch |= {"labels": batch["labels"].without_masks(), "mask_queries": 0}
    return batch


def _leave_signals_to_the_run(is_over: torch.Tensor, _worker: int) -> None:
    # Schedulers and Ctrl-C signal every process of a job, but torch ends a run whose worker dies before the run could
    # save. At the end of the program, Python sends SIGTERM to its workers and waits for them.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if is_over else None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
