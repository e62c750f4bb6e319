"""The images of a training run: those that are trained on and those that PQ is measured on."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from ..data import NamedRecords, PanopticData
from ..data.categories import Categories
from ..data.hub_names import public_name
from ..scenes.source import SCENES, read_source
from .settings import DataSettings

SUMMARY_IMAGES = 200  # evenly spaced; reading all annotations of a large dataset would take minutes
MAX_SCENE_SIDE = 640  # pixels; larger scenes only cost time
VALIDATION_SEED_OFFSET = 1_000_003  # so that validation scenes differ from training scenes
VALIDATION_SCENES = 100


@dataclass(frozen=True)
class DataSummary:
    """Counts over some annotated images."""

    images: int
    empty: int  # images without a segment
    counts: tuple[int, ...]  # segments of each label
    most_segments: int  # in an image

    def describe(self, categories: Categories) -> str:
        """Returns a line such as `80 images, 812 segments (10.2 per image) of 71 classes (45 things, 26 stuff)`."""
        seen = [thing for thing, count in zip(categories.is_thing, self.counts, strict=True) if count]
        segments, missing = sum(self.counts), len(categories) - len(seen)
        line = (
            f"{self.images} images, {segments} segments ({segments / max(self.images, 1):.1f} per image) of "
            f"{len(seen)} classes ({sum(seen)} things, {len(seen) - sum(seen)} stuff)"
        )
        line += f"; {missing} classes never occur" if missing else ""
        return line + (f"; {self.empty} images without a segment" if self.empty else "")


def summarize(records: Dataset, categories: Categories) -> DataSummary:
    """Counts segments in about `SUMMARY_IMAGES` evenly spaced images."""
    named = NamedRecords(records)
    rows = (named[i] for i in range(0, len(records), max(1, len(records) // SUMMARY_IMAGES)))
    images = [[segment["label_id"] for segment in row["segments_info"]] for row in rows]
    counts, lengths = Counter(label for labels in images for label in labels), [len(labels) for labels in images]
    each = tuple(counts[label] for label in range(len(categories)))
    return DataSummary(len(images), lengths.count(0), each, max(lengths, default=0))


@dataclass(frozen=True)
class TrainingData:
    """Training and validation records with the same categories."""

    train: Dataset
    validation: Dataset  # the training records if there are no others
    categories: Categories
    train_name: str  # without private paths
    validation_name: str
    summary: DataSummary  # of training records

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


def read_data(settings: DataSettings, seed: int, in_memory: Mapping[str, PanopticData] | None = None) -> TrainingData:
    """Reads the training and validation records.

    Args:
        settings: what to read.
        seed: of generated scenes.
        in_memory: records that are used in place of the settings `data` and `validation_data`.

    Raises:
        ValueError: no data are named, they cannot be read, no image has a segment, or the classes differ.
    """
    named = {"data": settings.data, "validation_data": settings.validation_data} | dict(in_memory or {})
    source, held_out = named["data"], named["validation_data"]
    if source is None:
        raise ValueError(f"`data` is needed: a folder, a Hub dataset or `{SCENES}`.")
    options: dict[str, Any] = {"data_format": settings.format, "limit": settings.limit}
    options |= {"scene_side": min(settings.short_side, MAX_SCENE_SIDE), "scene_seed": seed}
    train = _read(source, split=settings.split, **options)
    summary = summarize(train.records, train.categories)
    if not any(summary.counts):
        raise ValueError(f"`data` {settings.data!r} has no annotated segment in the {summary.images} images examined.")
    validation, name = train, "the training images"
    options |= {"scene_seed": seed + VALIDATION_SEED_OFFSET, "categories": train.categories}
    if held_out is not None or settings.validation_split is not None:
        held_out_name = settings.validation_data or settings.data
        try:
            validation = _read(held_out or source, split=settings.validation_split, **options)
        except ValueError as error:
            raise ValueError(f"`validation_data` {held_out_name!r} does not fit the training data: {error}") from error
        name = public_name(str(held_out_name), settings.validation_split)
    elif source == SCENES:
        options["limit"] = min(settings.limit or VALIDATION_SCENES, VALIDATION_SCENES)
        validation, name = _read(SCENES, **options), "generated scenes that are not trained on"
    train_name = public_name(str(settings.data), settings.split)
    return TrainingData(train.records, validation.records, train.categories, train_name, name, summary)


def _read(source: Any, **options: Any) -> PanopticData:
    if isinstance(source, PanopticData):
        options = {name: options[name] for name in ("limit", "categories") if name in options}
    return read_source(source, **options)
