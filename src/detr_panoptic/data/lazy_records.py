"""From the raw rows of a reader to canonical records: each row is worked on when it is asked for.

`datasets` does the rest: `records.shard`, `split_dataset_by_node` and the workers of a DataLoader divide both kinds.
"""

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, Image, IterableDataset
from PIL import Image as PILImage

from ..segment_ids import ids_to_rgb
from .categories import Categories, match_labels
from .plain_text import first_line
from .records import Record, panoptic_features

MAX_SHARDS = 64  # of a stream; more processes and workers than this share none
MAX_HASHED_ID = 2**52  # JSON readers with floats for numbers still read it exactly
MAX_IMAGE_ID = 2**63 - 1
ORIENTATION_TAG = 0x0112  # EXIF
TURNING_ORIENTATIONS = (5, 6, 7, 8)  # by 90 degrees, mirrored or not

Decode = Callable[[Record], Record]
Batch = dict[str, list[Any]]


class RawRecords(NamedTuple):
    """What a reader of one format returns.

    Args:
        rows: with the columns `image`, `image_id`, `file_name`, and what `decode` needs.
        categories: of the label ids.
        decode: makes one raw row a canonical record; None: the rows are canonical.
    """

    rows: Dataset | IterableDataset
    categories: Categories
    decode: Decode | None = None


def map_style_records(raw: RawRecords) -> Dataset:
    """Records by index; pictures are opened, and maps made, for the rows that are asked for."""
    if raw.decode is None:
        return raw.rows
    earlier = raw.rows.format["format_kwargs"].get("transform")  # of records that were read before
    return raw.rows.with_transform(partial(_decode_batch, raw.decode, earlier))


def streamed_records(raw: RawRecords) -> IterableDataset:
    """The same records in the same order, one after the other."""
    rows = raw.rows
    if isinstance(rows, Dataset):
        rows = rows.to_iterable_dataset(num_shards=min(len(rows), MAX_SHARDS))
    if raw.decode is None:
        return rows
    features = panoptic_features(raw.categories)
    extra = [name for name in rows.column_names if name not in features]
    # With `features` given, `map` hands decoded pictures on as they are; without, it would write them as new files.
    return rows.map(raw.decode, remove_columns=extra, features=features)


def _decode_batch(decode: Decode, earlier: Callable[[Batch], Batch] | None, batch: Batch) -> Batch:
    batch = batch if earlier is None else earlier(batch)
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    records = [decode(row) for row in rows]
    return {name: [record[name] for record in records] for name in records[0]}


class NamedRecords:
    """Canonical records by index; whatever is wrong with one is raised with its name.

    Args:
        records: canonical ones.
    """

    def __init__(self, records: Dataset) -> None:
        """Keep the records, and a view of them that opens no picture."""
        self._records = records
        self._names = records.with_format(None).select_columns(["image_id", "file_name"])

    def __len__(self) -> int:
        """How many."""
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        """A record.

        Raises:
            ValueError: it cannot be read; names the image.
        """
        try:
            return self._records[index]
        except Exception as error:  # broken files raise anything from SyntaxError to struct.error
            name, text = name_of(self._names[index]), first_line(error)
            raise ValueError(text if name in text else f"{name}: {text}") from error

    def __iter__(self) -> Iterator[Record]:
        """One record after the other."""
        return (self[index] for index in range(len(self)))


def relabeled(raw: RawRecords, categories: Categories) -> RawRecords:
    """Returns the same records with the label ids of other categories, matched by name (`match_labels`).

    Raises:
        ValueError: a class of the source is not among `categories`.
    """
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
    """A canonical record out of a raw row, its id map (H, W) and its segments, measured.

    Raises:
        ValueError: the map and the picture differ in size, or an id is too large.
    """
    check_size(row, ids.shape[::-1])
    try:
        colors = ids_to_rgb(ids)
    except ValueError as error:
        raise ValueError(f"{name_of(row)}: {error}") from error
    return {
        "image": row["image"],
        "image_id": row["image_id"],
        "file_name": row["file_name"],
        "segmentation": PILImage.fromarray(colors),
        "segments_info": segments_info,
    }


def check_size(row: Record, size: tuple[int, ...]) -> None:
    """Raises ValueError unless a map of `size` (width, height) fits the row's picture, upright."""
    expected = upright_size(row["image"])
    if expected == tuple(size):
        return
    hint = ""
    if expected == tuple(size)[::-1]:
        hint = "; if an EXIF tag turns the picture, the map must be turned too (docs/data.md)"
    raise ValueError(
        f"{name_of(row)}: the map must be as large as the picture, {expected[0]}x{expected[1]}, "
        f"got {size[0]}x{size[1]}{hint}."
    )


def name_of(row: Record) -> str:
    """How errors call a record."""
    return f"Image {row['image_id']}" + (f" ({row['file_name']})" if row.get("file_name") else "")


def upright_size(image: PILImage.Image | dict[str, Any]) -> tuple[int, int]:
    """(width, height) of a picture as it is shown, after the turn that its EXIF tag asks for.

    Args:
        image: decoded, hence upright already; or as `datasets` stores it, `bytes` or `path`: only its head is read.
    """
    if isinstance(image, PILImage.Image):
        return image.size
    with PILImage.open(BytesIO(image["bytes"]) if image.get("bytes") else image["path"]) as picture:
        turned = picture.getexif().get(ORIENTATION_TAG) in TURNING_ORIENTATIONS
        return picture.size[::-1] if turned else picture.size


def opened(picture: PILImage.Image | dict[str, Any]) -> PILImage.Image:
    """A picture that may still be as `datasets` stores it, in its file's own mode."""
    if isinstance(picture, PILImage.Image):
        return picture
    return Image().decode_example(picture)


def image_id_of(name: int | str) -> int:
    """The number of an image: itself; of text, what its digits say or else a hash, the same wherever it is read."""
    if isinstance(name, str) and name.isdecimal() and int(name) <= MAX_IMAGE_ID:
        return int(name)
    if isinstance(name, int) and 0 <= name <= MAX_IMAGE_ID:
        return name
    digest = hashlib.blake2b(str(name).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % MAX_HASHED_ID


def file_image_id(file_name: str) -> int:
    """`image_id_of` a file's name without its ending."""
    return image_id_of(str(PurePosixPath(file_name).with_suffix("")))
