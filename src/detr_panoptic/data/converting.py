"""`convert_data`: a dataset of any format, written in one that is read quickly."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from datasets import Dataset
from tqdm.auto import tqdm

from .categories import Categories
from .files import check_new_folder, whole_folder
from .lazy_records import NamedRecords, open_stored, undecoded
from .reading import PanopticData, read_panoptic
from .records import Record
from .writing import save_dataset, stored_record, write_coco_panoptic_dataset, write_parquet

COCO, DATASET, PARQUET = TARGETS = ("coco", "dataset", "parquet")
Target = Literal["coco", "dataset", "parquet"]
ON_ERROR = ("stop", "skip")

_logger = logging.getLogger(__name__)


@dataclass
class DataConversion:
    """The result of `convert_data`: numbers, label ids that occur, and a message for each image that was left out."""

    output: Path
    categories: Categories = field(repr=False)
    images: int = 0
    segments: int = 0
    crowds: int = 0
    labels: set[int] = field(default_factory=set, repr=False)
    skipped: list[str] = field(default_factory=list)

    def add(self, record: Record) -> None:
        """Counts one record."""
        segments = record["segments_info"]
        self.images += 1
        self.segments += len(segments)
        self.crowds += sum(segment["iscrowd"] for segment in segments)
        self.labels |= {segment["label_id"] for segment in segments}

    def __str__(self) -> str:
        """Returns the counts and what was left out."""
        skipped = [f"{len(self.skipped)} images were left out:", *(f"  {message}" for message in self.skipped)]
        total = (
            f"{self.images} images, {self.segments} segments, {self.crowds} crowds, "
            f"{len(self.labels)} of {len(self.categories)} classes, written to {self.output}"
        )
        return "\n".join([total, *skipped] if self.skipped else [total])


def convert_data(
    source: str | Path | PanopticData,
    output: str | Path,
    *,
    to: Target = "coco",
    split: str | None = None,
    data_format: str | None = None,
    limit: int | None = None,
    on_error: Literal["stop", "skip"] = "stop",
    progress: bool = True,
) -> DataConversion:
    """Writes a dataset in another format; image files are copied byte by byte.

    Args:
        source: as `data_format` and `limit`, an argument of `read_panoptic`.
        output: a folder that is empty or does not exist. It appears when it is complete.
        to: "coco" writes `images/`, `panoptic/` and `panoptic.json`; "dataset" a folder for
            `datasets.load_from_disk`; "parquet" `data/SPLIT-*.parquet`, the layout of the Hub.
        split: name of the split, if the source has splits, and in the names of Parquet files.
        data_format: by default it is recognized.
        limit: maximum number of images, from the first.
        on_error: "stop" at an image that cannot be read, or "skip" it.
        progress: show a progress bar.

    Raises:
        ValueError: an argument is invalid, an image cannot be read, or none can.

    Example:
        >>> import tempfile
        >>> from detr_panoptic.scenes import read_source
        >>> output = f"{tempfile.mkdtemp()}/scenes"
        >>> conversion = convert_data(read_source("scenes", limit=2), output, to="parquet", progress=False)
        >>> conversion.images, conversion.skipped
        (2, [])
        >>> read_panoptic(output)
        PanopticData: 2 records, 14 classes (8 things: house, tree, ...; 6 stuff: sky, mountain, ...)
    """
    for name, value, allowed in (("to", to, TARGETS), ("on_error", on_error, ON_ERROR)):
        if value not in allowed:
            raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {value!r}.")
    check_new_folder(output)
    if isinstance(source, PanopticData):
        data = read_panoptic(source, limit=limit)
    else:
        missing = on_error == "skip"
        data = read_panoptic(source, split=split, data_format=data_format, limit=limit, files_may_be_missing=missing)
    if not isinstance(data.records, Dataset):
        raise ValueError("`source` must not be a stream.")
    conversion = DataConversion(Path(output), data.categories)
    records = _readable_records(data.records, conversion, skip=on_error == "skip")
    bar = tqdm(records, total=len(data.records), disable=None if progress else True, desc="converting")
    with whole_folder(output) as part:
        if to == COCO:
            write_coco_panoptic_dataset(part, bar, data.categories)
        elif to == DATASET:
            save_dataset(part, bar, data.categories)
        else:
            write_parquet(part, bar, data.categories, split=split or "train")
    return conversion


def _readable_records(records: Dataset, conversion: DataConversion, *, skip: bool) -> Iterator[Record]:
    """Yields records whose files can be decoded, as files; counts them, and skips the others or raises ValueError."""
    encoded = NamedRecords(undecoded(records))
    for index in range(len(encoded)):
        try:
            record = stored_record(encoded[index])
            with open_stored(record["image"]) as picture:
                picture.load()
        except Exception as error:  # broken files raise anything from SyntaxError to struct.error
            message = encoded.describe(index, error)
            if not skip:
                raise ValueError(f'{message} (`on_error="skip"` leaves such images out)') from error
            conversion.skipped.append(message)
            _logger.warning("Skipped: %s", message)
            continue
        conversion.add(record)
        yield record
    if not conversion.images:
        raise ValueError("`source` has no image that can be read.")
