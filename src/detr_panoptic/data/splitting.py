"""Images held out for validation: chosen by class, so that frequent and rare classes are in both parts."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from tqdm.auto import tqdm

from .files import check_new_folder, whole_folder
from .lazy_records import NamedRecords, undecoded
from .reading import PanopticData, read_panoptic
from .rows import entries_of
from .stored import stored_record
from .writing import write_coco_panoptic_dataset

TRAIN, VALIDATION = "train", "val"  # names of the splits that are written
RARE = 4  # images; a class in fewer is not held out
MOST_DECODED = 2000  # images whose annotations are decoded to know their classes

_logger = logging.getLogger(__name__)


def split_rows(records: Dataset, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Chooses the rows to train on and those to hold out, which depend on the records and the seed alone.

    A class has about the same share in both parts. One that occurs in fewer than four images stays in training. Of a
    large dataset whose classes are only known by decoding its annotations, rows are chosen at random.

    Args:
        records: with segments.
        fraction: of the rows to hold out, at least one row.
        seed: another seed gives another choice.

    Examples:
        >>> from detr_panoptic.scenes import scenes_dataset
        >>> training, held_out = split_rows(scenes_dataset(20, height=64, width=64), 0.15, seed=0)
        >>> len(training), len(held_out)
        (17, 3)
    """
    labels = _label_sets(records)
    count = len(labels)
    held = min(max(round(fraction * count), 1), count - 1)
    room = {True: held, False: count - held}
    frequencies = Counter(label for row in labels for label in row)
    wanted = {part: {label: n * room[part] / count for label, n in frequencies.items()} for part in room}
    order = np.random.default_rng(seed).permutation(count).tolist()
    chosen: dict[int, bool] = {}
    for label, _ in sorted(frequencies.items(), key=lambda item: item[::-1]):  # the rarest class first
        for row in [row for row in order if label in labels[row] and row not in chosen]:
            is_short = frequencies[label] >= RARE and wanted[True][label] > wanted[False][label]
            part = bool(room[True]) and (is_short or not room[False])
            chosen[row] = part
            room[part] -= 1
            for own in labels[row]:
                wanted[part][own] -= 1
    for row in [row for row in order if row not in chosen]:  # without a segment
        chosen[row] = room[True] > 0
        room[chosen[row]] -= 1
    return [row for row in range(count) if not chosen[row]], [row for row in range(count) if chosen[row]]


def _label_sets(records: Dataset) -> list[frozenset[int]]:
    """Returns the classes of each record: label ids, or category ids where the rows have these."""
    if "segments_info" in records.features:
        segments = records.with_format(None)["segments_info"]
    elif len(records) <= MOST_DECODED:
        segments = [record["segments_info"] for record in NamedRecords(records)]
    else:
        _logger.info("images are held out at random: the classes of %d images are not known", len(records))
        return [frozenset()] * len(records)
    keys = ("label_id", "category_id")
    return [frozenset(next(s[key] for key in keys if key in s) for s in entries_of(row)) for row in segments]


@dataclass(frozen=True)
class DataSplit:
    """The result of `split_data`: the folder and the numbers of images.

    Examples:
        >>> print(DataSplit(Path("split"), training=85, validation=15))
        85 images in split/train, 15 in split/val; train with --data split --split train --validation-split val
    """

    output: Path
    training: int
    validation: int

    def __str__(self) -> str:
        """Returns the numbers and how to use the splits."""
        return (
            f"{self.training} images in {self.output / TRAIN}, {self.validation} in {self.output / VALIDATION}; "
            f"train with --data {self.output} --split {TRAIN} --validation-split {VALIDATION}"
        )


def split_data(
    source: str | Path | PanopticData,
    output: str | Path,
    *,
    fraction: float = 0.15,
    seed: int = 0,
    split: str | None = None,
    data_format: str | None = None,
    progress: bool = True,
) -> DataSplit:
    """Writes a dataset as two splits, "train" and "val", in COCO's panoptic layout.

    Args:
        source: as in `read_panoptic`.
        output: a folder that is empty or does not exist; it appears when it is complete.
        fraction: share of the images for "val". Classes have about the same share in both.
        seed: another seed gives another choice.
        split: the split of the source that is divided further.
        data_format: of the source; None recognizes it.
        progress: whether to show a progress bar.

    Raises:
        ValueError: an argument is invalid, there are fewer than two images, or one cannot be read.

    Examples:
        >>> import tempfile
        >>> from detr_panoptic.scenes import read_source
        >>> scenes = read_source("scenes", limit=5, scene_side=64)
        >>> split_data(scenes, f"{tempfile.mkdtemp()}/out", fraction=0.2, progress=False).validation
        1
    """
    if not isinstance(fraction, int | float) or not 0 < fraction < 1:
        raise ValueError(f"`fraction` must be above 0 and below 1, got {fraction!r}.")
    check_new_folder(output)
    data = read_panoptic(source, split=split, data_format=data_format)
    if not isinstance(data.records, Dataset) or len(data.records) < len((TRAIN, VALIDATION)):
        raise ValueError("`source` must have at least two images and not be a stream.")
    parts = dict(zip((TRAIN, VALIDATION), split_rows(data.records, fraction, seed), strict=True))
    encoded = NamedRecords(undecoded(data.records))
    bar = tqdm(total=len(encoded), disable=None if progress else True, desc="splitting")
    with whole_folder(output) as folder, bar:
        for name, rows in parts.items():
            write_coco_panoptic_dataset(folder / name, _read(encoded, rows, bar), data.categories)
    return DataSplit(Path(output), *map(len, parts.values()))


def _read(encoded: NamedRecords, rows: Sequence[int], bar: Any) -> Any:
    for row in rows:
        yield stored_record(encoded[row])
        bar.update()
