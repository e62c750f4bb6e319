"""Batches of images of similar shape, loaded by worker processes.

The batches depend on the images and the batch size alone, not on the number of processes or on earlier runs, so
neither changes a result. An image that cannot be read does not affect the others of its batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch.utils.data import DataLoader

from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
from .loop import Batch, make_batch
from .pictures import Pictures

WINDOW = 64  # batches; images are sorted by shape within a window, whose sizes are read ahead


class Failure(NamedTuple):
    """An image that could not be read."""

    place: int
    message: str  # one line that names the image


class Loaded(NamedTuple):
    """A batch of the images that could be read, each record with its `index`, and the failures."""

    batch: Batch | None
    failures: list[Failure]


def plan_batches(pictures: Pictures, batch_size: int) -> Iterator[list[int]]:
    """Yields the indices of all images, batch by batch, sorted by aspect ratio and size to reduce padding.

    With a batch size of 1, images stay in order and no size is read.
    """
    count = len(pictures)
    if batch_size == 1:
        yield from ([index] for index in range(count))
        return
    for start in range(0, count, WINDOW * batch_size):
        window = sorted(range(start, min(start + WINDOW * batch_size, count)), key=partial(_shape, pictures))
        for first in range(0, len(window), batch_size):
            yield window[first : first + batch_size]


def load_batches(
    pictures: Pictures, plan: Iterator[list[int]], processor: DetrPanopticImageProcessor, *, workers: int
) -> Iterator[Loaded]:
    """Reads and preprocesses the batches of a plan in `workers` processes, or in this one if there are none."""
    return iter(
        DataLoader(
            _Readable(pictures),  # type: ignore[arg-type]  # a map-style dataset by its two methods
            batch_sampler=plan,
            collate_fn=partial(_collate, processor),
            num_workers=workers,
        )
    )


def _shape(pictures: Pictures, index: int) -> tuple[float, int]:
    try:
        width, height = pictures.size_of(index)
    except Exception:  # reading it fails as well, and is reported then
        return 0.0, 0
    return width / height, width * height


class _Readable:
    """Images by index, or the failure to read them."""

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, Any] | Failure:
        try:
            return {**self.pictures[index], "index": index}
        except Exception as error:  # broken files raise anything from SyntaxError to struct.error
            name, text = self.pictures.name_of(index), " ".join(str(error).split()) or type(error).__name__
            return Failure(index, text if name in text else f"{name}: {text}")


def _collate(processor: DetrPanopticImageProcessor, items: Sequence[dict[str, Any] | Failure]) -> Loaded:
    records = [item for item in items if not isinstance(item, Failure)]
    failures = [item for item in items if isinstance(item, Failure)]
    return Loaded(make_batch(processor, records) if records else None, failures)
