"""Batches of images of alike shape, loaded by workers; an image that cannot be read costs nobody else anything.

What goes into a batch depends on the images and the batch size alone, never on how many processes there are or on what
an earlier run has done: so neither changes a result.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from torch.utils.data import DataLoader

from ..data.plain_text import first_line
from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
from .loop import Batch, make_batch

WINDOW = 64  # batches: images are sorted by shape among so many, whose sizes are read ahead


class Pictures(Protocol):
    """Images by index."""

    def __len__(self) -> int:
        """How many."""

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """The record of one, at least `image`; whatever is raised here is a `Failure` of this image alone."""

    def size_of(self, index: int) -> tuple[int, int]:
        """(width, height), at little cost."""

    def name_of(self, index: int) -> str:
        """What messages call it."""


class Failure(NamedTuple):
    """An image that could not be read."""

    place: int
    message: str  # one line; names the image


class Loaded(NamedTuple):
    """A batch of the images that could be read, if any, each record with its `index`; and the others."""

    batch: Batch | None
    failures: list[Failure]


def plan_batches(pictures: Pictures, batch_size: int) -> Iterator[list[int]]:
    """Indices of all images, batch by batch; within a window sorted by aspect ratio, then by size: that pads little.

    With a batch size of 1 they stay in order, and no size is read.
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
    """Read and prepare the batches of a plan, with so many processes besides this one."""
    return iter(
        DataLoader(
            _Readable(pictures),  # type: ignore[arg-type]  # anything with these two methods does
            batch_sampler=plan,
            collate_fn=partial(_collate, processor),
            num_workers=workers,
        )
    )


def _shape(pictures: Pictures, index: int) -> tuple[float, int]:
    try:
        width, height = pictures.size_of(index)
    except Exception:  # its reading will fail as well, and be reported
        return 0.0, 0
    return width / height, width * height


class _Readable:
    """Images by index, or why there is none."""

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, Any] | Failure:
        try:
            return {**self.pictures[index], "index": index}
        except Exception as error:  # broken files raise anything from SyntaxError to struct.error
            name, text = self.pictures.name_of(index), first_line(error)
            return Failure(index, text if name in text else f"{name}: {text}")


def _collate(processor: DetrPanopticImageProcessor, items: Sequence[dict[str, Any] | Failure]) -> Loaded:
    records = [item for item in items if not isinstance(item, Failure)]
    failures = [item for item in items if isinstance(item, Failure)]
    return Loaded(make_batch(processor, records) if records else None, failures)
