"""From the raw rows of a reader to canonical records: each row is decoded when it is used.

`records.shard`, `split_dataset_by_node` and the workers of a DataLoader divide map-style and streamed records alike.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, Features, Image, IterableDataset
from PIL import ExifTags
from PIL import Image as PILImage

from .categories import Categories, match_labels
from .findings import DataError, Report
from .plain_text import first_line
from .records import Record, has_scores, ids_to_rgb, panoptic_features

MAX_SHARDS = 64  # of a stream; more processes and workers than this share none
MAX_HASHED_ID = 2**52  # JSON readers with floats for numbers still read it exactly
MAX_IMAGE_ID = 2**63 - 1
UPRIGHT = 1  # EXIF orientation
TURNING_ORIENTATIONS = (5, 6, 7, 8)  # by 90 degrees, mirrored or not

Decode = Callable[[Record], Record]
Batch = dict[str, list[Any]]


@dataclass(frozen=True)
class ReadOptions:
    """How a format is read; the first four fields are arguments of `read_panoptic`."""

    split: str | None = None  # name of the split
    limit: int | None = None  # maximum number of records
    streaming: bool = False  # do not download and prepare rows first
    files_may_be_missing: bool = False  # do not look for the files of COCO datasets
    categories: Categories | None = None  # what category ids mean if the source does not say
    stuff: tuple[str, ...] | None = None  # names of the stuff classes, in formats that do not say which are
    report: Report | None = None  # collects the findings of the validator. None: the first error is raised


class RawRecords(NamedTuple):
    """What a reader of one format returns."""

    rows: Dataset | IterableDataset  # with the columns `image`, `image_id`, `file_name`, and what `decode` needs
    categories: Categories  # of the label ids
    decode: Decode | None = None  # makes a canonical record of a raw row. None: the rows are canonical


def dataset_of(rows: list[Record], features: Features) -> Dataset:
    """Returns rows as a dataset, with these columns also if there is no row."""
    return Dataset.from_dict({name: [row[name] for row in rows] for name in features}, features=features)


def map_style_records(raw: RawRecords) -> Dataset:
    """Returns records by index; images are opened and maps made for the rows that are used."""
    if raw.decode is None:
        return raw.rows
    earlier = raw.rows.format["format_kwargs"].get("transform")  # of records that were read before
    return raw.rows.with_transform(partial(_decode_batch, raw.decode, earlier, frozenset(raw.rows.column_names)))


def streamed_records(raw: RawRecords) -> IterableDataset:
    """Returns the same records in the same order as a stream."""
    rows = raw.rows
    if isinstance(rows, Dataset):
        rows = rows.to_iterable_dataset(num_shards=min(len(rows), MAX_SHARDS))
    if raw.decode is None:
        return rows
    features = panoptic_features(raw.categories, with_scores=has_scores(rows.features))
    extra = [name for name in rows.column_names if name not in features]
    # With `features`, `map` passes decoded images on; without, it would write them as new files.
    return rows.map(raw.decode, remove_columns=extra, features=features)


def _decode_batch(
    decode: Decode, earlier: Callable[[Batch], Batch] | None, columns: frozenset[str], batch: Batch
) -> Batch:
    """Makes records of raw rows; columns that `map` has added are kept, and rows that `map` has replaced."""
    if not columns & batch.keys():
        return batch
    added = {name: values for name, values in batch.items() if name not in columns}
    batch = batch if earlier is None else earlier(batch)
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    records = [decode(row) for row in rows]
    return {name: [record[name] for record in records] for name in records[0]} | added


class NamedRecords:
    """Map-style canonical records whose errors name the image."""

    def __init__(self, records: Dataset) -> None:
        self._records = records  # and a view of their names that opens no image
        self._names = records.with_format(None).select_columns(["image_id", "file_name"])

    def __len__(self) -> int:
        """Returns the number of records."""
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        """Returns a record; raises ValueError with the name of the image if it cannot be read."""
        try:
            return self._records[index]
        except Exception as error:  # broken files raise anything from SyntaxError to struct.error
            raise ValueError(self.describe(index, error)) from error

    def describe(self, index: int, error: Exception) -> str:
        """Returns the first line of an error, with the name of the image."""
        name, text = name_of(self._names[index]), first_line(error)
        return text if name in text else f"{name}: {text}"

    def __iter__(self) -> Iterator[Record]:
        """Yields one record after the other."""
        return (self[index] for index in range(len(self)))


def relabeled(raw: RawRecords, categories: Categories) -> RawRecords:
    """Returns the same records with the label ids of other categories, which must have every class by name."""
    table = match_labels(categories, raw.categories)
    lacking = [repr(name) for label, name in raw.categories.id2label.items() if label not in table]
    if lacking:
        raise ValueError(f"`categories` must have every class of the data, {', '.join(lacking)} not found.")
    if all(label == wanted for label, wanted in table.items()):
        return raw._replace(categories=categories)
    return RawRecords(raw.rows, categories, partial(_decode_and_relabel, raw.decode, table))


def _decode_and_relabel(decode: Decode | None, table: dict[int, int], row: Record) -> Record:
    record = row if decode is None else decode(row)
    segments = [{**segment, "label_id": table[segment["label_id"]]} for segment in record["segments_info"]]
    return {**record, "segments_info": segments}


def make_record(row: Record, ids: np.ndarray, segments_info: list[dict[str, Any]]) -> Record:
    """Makes a canonical record of a raw row, its (H, W) id map and its measured segments; checks size and ids."""
    check_size(row, ids.shape[::-1])
    try:
        colors = ids_to_rgb(ids)
    except ValueError as error:
        raise row_error(row, str(error).rstrip("."), kind="impossible-id") from error
    kept = {name: row[name] for name in ("image", "image_id", "file_name")}
    return {**kept, "segmentation": PILImage.fromarray(colors), "segments_info": segments_info}


def check_size(row: Record, size: tuple[int, ...]) -> None:
    """Raises ValueError unless a map of `size` (width, height) has the size of the row's upright image."""
    expected = upright_size(row["image"])
    if expected == tuple(size):
        return
    turned = expected == tuple(size)[::-1]
    hint = "; if an EXIF tag rotates the image, the map must be rotated too (docs/data.md)" if turned else ""
    message = f"the map must have the size of the image, {expected[0]}x{expected[1]}, got {size[0]}x{size[1]}{hint}"
    raise row_error(row, message, kind="size-mismatch")


def row_error(row: Record, message: str, *, kind: str = "unreadable-record") -> DataError:
    """Returns the error for a row whose files do not follow the format."""
    return DataError(kind, name_of(row), message)


def name_of(row: Record) -> str:
    """Returns the name of a record for messages."""
    return f"Image {row['image_id']}" + (f" ({row['file_name']})" if row.get("file_name") else "")


def orientation_of(picture: PILImage.Image) -> int:
    """Returns the orientation of an image's EXIF tags; `UPRIGHT` if there is none or the tags are damaged."""
    with suppress(Exception):  # anything from SyntaxError to struct.error
        return int(picture.getexif().get(ExifTags.Base.Orientation, UPRIGHT))
    return UPRIGHT


def upright_size(image: PILImage.Image | dict[str, Any]) -> tuple[int, int]:
    """Returns (width, height) of a decoded, hence upright image; or of a file after the rotation of its EXIF tag."""
    if isinstance(image, PILImage.Image):
        return image.size
    with open_stored(image) as picture:
        return picture.size[::-1] if orientation_of(picture) in TURNING_ORIENTATIONS else picture.size


def open_stored(stored: PILImage.Image | dict[str, Any]) -> PILImage.Image:
    """Returns an image, or opens its file as `datasets` stores it, `bytes` or `path`, in a supported format."""
    from ..image_reading import FORMATS  # imports transformers, which takes seconds

    if isinstance(stored, PILImage.Image):
        return stored
    return PILImage.open(stored["path"] if stored.get("bytes") is None else BytesIO(stored["bytes"]), formats=FORMATS)


def opened(picture: PILImage.Image | dict[str, Any]) -> PILImage.Image:
    """Returns an image in the mode of its file, decoded or as `datasets` stores it."""
    return picture if isinstance(picture, PILImage.Image) else Image().decode_example(picture)


def undecoded(records: Dataset) -> Dataset:
    """Returns the records with images as the files they are stored in; maps that a reader makes stay images."""
    columns = ("image",) if records.format["type"] == "custom" else ("image", "segmentation")
    for column in columns:
        records = records.cast_column(column, Image(decode=False))
    return records


def image_id_of(name: int | str) -> int:
    """Returns the number of an image: a number itself, the value of digits, or a hash of any other text."""
    if isinstance(name, str) and name.isdecimal() and int(name) <= MAX_IMAGE_ID:
        return int(name)
    if isinstance(name, int) and 0 <= name <= MAX_IMAGE_ID:
        return name
    return hashed_id(str(name).encode())


def hashed_id(contents: bytes) -> int:
    """Returns a number that depends on the contents alone."""
    return int.from_bytes(hashlib.blake2b(contents, digest_size=8).digest(), "big") % MAX_HASHED_ID


def file_image_id(file_name: str) -> int:
    """Returns `image_id_of` a file name without its suffix."""
    return image_id_of(str(PurePosixPath(file_name).with_suffix("")))
