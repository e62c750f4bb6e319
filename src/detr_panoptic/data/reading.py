"""One door for every format: what lies at a source is recognized, or named, and comes out as canonical records."""

from pathlib import Path
from typing import NamedTuple

from datasets import Dataset

from ..categories import Categories
from .coco import find_coco_panoptic, read_coco_panoptic

FORMATS = ("coco-panoptic",)


class PanopticData(NamedTuple):
    """Records and what their label ids mean."""

    records: Dataset
    categories: Categories


def read_panoptic(
    source: str | Path, *, split: str | None = None, data_format: str | None = None, limit: int | None = None
) -> PanopticData:
    """Read a dataset in any of `FORMATS`.

    Args:
        source: a folder.
        split: such as "val2017", where the source has splits.
        data_format: one of `FORMATS`; None recognizes it.
        limit: number of records to read, from the first.

    Raises:
        ValueError: the format is unknown, the source is in none of them, or it holds no annotated image.
    """
    if data_format is not None and data_format not in FORMATS:
        raise ValueError(f"`data_format` must be one of {', '.join(FORMATS)}, got {data_format!r}.")
    records, categories = read_coco_panoptic(*find_coco_panoptic(source, split=split), limit=limit)
    if len(records) == 0:
        raise ValueError(f"`data` {str(source)!r} holds no annotated image.")
    return PanopticData(records, categories)
