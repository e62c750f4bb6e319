"""The images of a training run: those that are trained on and those that PQ is measured on."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from ..data import NamedRecords, PanopticData
from ..data.categories import Categories
from ..scenes.source import SCENES, read_source
from ..sharing.card import public_name
from .settings import DataSettings

SUMMARY_IMAGES = 200  # evenly spaced; reading all annotations of a large dataset would take minutes
MAX_SCENE_SIDE = 640  # pixels; larger scenes only cost time
VALIDATION_SEED_OFFSET = 1_000_003  # so that validation scenes differ from training scenes
VALIDATION_SCENES = 100


@dataclass(frozen=True)
class DataSummary:
    """Counts over some annotated images.

    Args:
        images: Number of images.
        empty: Number of images without a segment.
        counts: Number of segments of each label.
        most_segments: Largest number of segments in an image.
    """

    images: int
    empty: int
    counts: tuple[int, ...]
    most_segments: int

    @property
    def segments(self) -> int:
        """Number of segments in all images."""
        return sum(self.counts)

    def describe(self, categories: Categories) -> str:
        """Returns a line such as `80 images, 812 segments (10.2 per image) of 71 classes (45 things, 26 stuff)`."""
        seen = [thing for thing, count in zip(categories.is_thing, self.counts, strict=True) if count]
        line = (
            f"{self.images} images, {self.segments} segments ({self.segments / max(self.images, 1):.1f} per image) of "
            f"{len(seen)} classes ({sum(seen)} things, {len(seen) - sum(seen)} stuff)"
        )
        missing = len(categories) - len(seen)
        line += f"; {missing} classes never occur" if missing else ""
        return line + (f"; {self.empty} images without a segment" if self.empty else "")


def summarize(label_ids: Iterable[list[int]], categories: Categories) -> DataSummary:
    """Counts images and segments, given the label ids of the segments of each image."""
    lengths, counts = [], [0] * len(categories)
    for labels in label_ids:
        lengths.append(len(labels))
        for label in labels:
            counts[label] += 1
    return DataSummary(len(lengths), lengths.count(0), tuple(counts), max(lengths, default=0))


@dataclass(frozen=True)
class TrainingData:
    """Training and validation records with the same categories.

    Args:
        train: Training records.
        validation: Validation records; the training records if there are no others.
        categories: Classes of both.
        train_name: Name of the training data without private paths.
        validation_name: Name of the validation data without private paths.
        summary: Counts over the training data.
    """

    train: Dataset
    validation: Dataset
    categories: Categories
    train_name: str
    validation_name: str
    summary: DataSummary

    def describe(self) -> dict[str, str]:
        """Returns a sentence about the training data and one about the validation data."""
        sampled = self.summary.images < len(self.train)
        counted = f"; counted in {self.summary.images} of {len(self.train)} images" if sampled else ""
        hint = "; quality on other images may be lower: see `validation_data`"
        return {
            "training": f"{self.train_name}: {self.summary.describe(self.categories)}{counted}",
            "validation": f"{len(self.validation)} images, {self.validation_name}"
            + (hint if self.validation is self.train else ""),
        }


def read_data(settings: DataSettings, seed: int, *, source: Any = None, validation_source: Any = None) -> TrainingData:
    """Reads the training and validation records.

    Args:
        settings: What to read.
        seed: Seed of generated scenes.
        source: Records in memory, a `PanopticData`, in place of `settings.data`.
        validation_source: Records in memory in place of `settings.validation_data`.

    Raises:
        ValueError: If no data are named, they cannot be read, no image has a segment, or the classes differ.
    """
    if source is None and settings.data is None:
        raise ValueError(f"`data` is needed: a folder, a Hub dataset or `{SCENES}`.")
    options: dict[str, Any] = {"data_format": settings.format, "limit": settings.limit}
    options |= {"scene_side": min(settings.short_side, MAX_SCENE_SIDE), "scene_seed": seed}
    train = _read(source, settings.data, settings.split, options)
    summary = summarize(_label_ids(train.records), train.categories)
    if summary.segments == 0:
        raise ValueError(f"`data` {settings.data!r} has no annotated segment in the {summary.images} images examined.")
    validation, name = train, "the training images"
    options |= {"scene_seed": seed + VALIDATION_SEED_OFFSET, "categories": train.categories}
    if validation_source is not None or settings.validation_data is not None or settings.validation_split is not None:
        named = settings.validation_data or settings.data
        try:
            validation = _read(validation_source, named, settings.validation_split, options)
        except ValueError as error:
            raise ValueError(f"`validation_data` {named!r} does not fit the training data: {error}") from error
        name = public_name(str(named), settings.validation_split)
    elif settings.data == SCENES:
        options["limit"] = min(settings.limit or VALIDATION_SCENES, VALIDATION_SCENES)
        validation, name = _read(None, SCENES, None, options), "generated scenes that are not trained on"
    train_name = public_name(str(settings.data), settings.split)
    return TrainingData(train.records, validation.records, train.categories, train_name, name, summary)


def _read(in_memory: Any, named: str | None, split: str | None, options: dict[str, Any]) -> PanopticData:
    if in_memory is not None:
        return read_source(in_memory, limit=options["limit"], categories=options.get("categories"))
    return read_source(str(named), split=split, **options)


def _label_ids(records: Dataset) -> list[list[int]]:
    step = max(1, len(records) // SUMMARY_IMAGES)
    named = NamedRecords(records)
    rows = (named[i] for i in range(0, len(records), step))
    return [[segment["label_id"] for segment in row["segments_info"]] for row in rows]
