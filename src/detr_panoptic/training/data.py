"""The images of a training run: those that are trained on and those that PQ is measured on."""

from collections.abc import Mapping, Sequence
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
class TrainingData:
    """Training and validation records with the same categories."""

    train: Dataset
    validation: Dataset  # the training records if there are no others
    categories: Categories
    train_name: str  # without private paths
    validation_name: str
    sample: Sequence[Sequence[int]]  # label ids of the segments of some training images

    @property
    def most_segments(self) -> int:
        """The largest number of segments in a sampled image."""
        return max(map(len, self.sample))

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
        if len(counts) < len(self.train):
            training += f"; counted in {len(counts)} of {len(self.train)} images"
        validation = f"{len(self.validation)} images, {self.validation_name}"
        if self.validation is self.train:
            validation += "; quality on other images may be lower: see `validation_data`"
        return {"training": training, "validation": validation}


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
    train = read_source(source, split=settings.split, **options)
    records = NamedRecords(train.records)
    rows = range(0, len(records), max(1, len(records) // SUMMARY_IMAGES))
    sample = [[segment["label_id"] for segment in records[i]["segments_info"]] for i in rows]
    if not any(sample):
        raise ValueError(f"`data` {settings.data!r} has no annotated segment in the {len(sample)} images examined.")
    validation, name = train, "the training images"
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
    train_name = public_name(str(settings.data), settings.split)
    return TrainingData(train.records, validation.records, train.categories, train_name, name, sample)
