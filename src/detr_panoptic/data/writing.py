"""Writers of canonical records: COCO panoptic folders, saved datasets, Parquet files.

Each takes any iterable and goes through it once. A picture that comes as its file (`path` or `bytes`, as `datasets`
gives it with `Image(decode=False)`) is copied byte by byte: a JPEG written anew would be another picture.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from itertools import islice
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, load_from_disk
from PIL import Image as PILImage
from PIL import UnidentifiedImageError

from ..segment_ids import ids_to_rgb
from .categories import Categories
from .contained_paths import path_inside
from .lazy_records import check_size, name_of, upright_size
from .records import Record, panoptic_features, segmentation_ids

ROW_GROUP = 64  # records; what a reader of Parquet loads at once
SHARD_BYTES = 500 * 2**20  # as of `datasets`
SEGMENT_KEYS = ("id", "iscrowd", "area", "bbox", "score")  # in JSON; `score` of predictions


def write_coco_panoptic_dataset(folder: str | Path, records: Iterable[Record], categories: Categories) -> Path:
    """Write `images/`, `panoptic/` and `panoptic.json`.

    Args:
        folder: made if it does not exist.
        records: canonical ones; segments may have a `score`.
        categories: of their label ids.

    Returns:
        The JSON file.

    Raises:
        ValueError: two records have one id or one file name, a name leaves the folder, or a map does not fit its
            picture.
    """
    folder = Path(folder)
    images, annotations = [], []
    seen: set[int | str] = set()
    for record in records:
        name, contents = picture_file(record)
        map_name = str(PurePosixPath(name).with_suffix(".png"))
        for value in (record["image_id"], name, f"map {map_name}"):
            if value in seen:
                raise ValueError(f"{name_of(record)}: expected each id and file name once, got {value!r} twice.")
            seen.add(value)
        size = upright_size({"bytes": contents})
        _write(path_inside(folder / "panoptic", map_name, name_of(record)), map_file(record))
        _write(path_inside(folder / "images", name, name_of(record)), contents)
        image_id, segments = record["image_id"], [_segment(entry, categories) for entry in record["segments_info"]]
        images.append({"id": image_id, "file_name": name, "width": size[0], "height": size[1]})
        annotations.append({"image_id": image_id, "file_name": map_name, "segments_info": segments})
    contents_of_file = {"images": images, "annotations": annotations, "categories": categories.to_coco()}
    json_file = folder / "panoptic.json"
    _write(json_file, json.dumps(contents_of_file, ensure_ascii=False).encode())
    return json_file


def save_dataset(
    folder: str | Path, records: Iterable[Record], categories: Categories, *, with_scores: bool = False
) -> Dataset:
    """Write a folder that `datasets.load_from_disk` and `read_panoptic` read, with the pictures in it.

    Args:
        folder: made if it does not exist.
        records: canonical ones.
        categories: of their label ids; they stay with the dataset (`records.py`).
        with_scores: segments have a `score`.

    Returns:
        The dataset as it was saved; its `push_to_hub` sends all of it.

    Raises:
        ValueError: there is no record, or a map does not fit its picture.
    """
    features = panoptic_features(categories, with_scores=with_scores)
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        rows = f"{work}/rows.arrow"
        with pa.ipc.new_stream(rows, features.arrow_schema) as writer:
            for table in _tables(records, features):
                writer.write_table(table)
        Dataset.from_file(rows).save_to_disk(folder)
    return load_from_disk(folder)


def write_parquet(
    folder: str | Path,
    records: Iterable[Record],
    categories: Categories,
    *,
    split: str = "train",
    with_scores: bool = False,
) -> list[Path]:
    """Write `data/SPLIT-….parquet`, with the pictures in them, the layout of the Hub.

    Args:
        folder: made if it does not exist.
        records: canonical ones.
        categories: of their label ids; they stay with the files (`records.py`).
        split: what the files are named after.
        with_scores: segments have a `score`.

    Returns:
        The files.

    Raises:
        ValueError: there is no record, or a map does not fit its picture.
    """
    features = panoptic_features(categories, with_scores=with_scores)
    data = Path(folder) / "data"
    data.mkdir(parents=True, exist_ok=True)
    tables = _tables(records, features)
    parts: list[Path] = []
    for first in tables:  # of each file
        parts.append(data / f"part-{len(parts)}.parquet")
        with pq.ParquetWriter(parts[-1], features.arrow_schema) as writer:
            writer.write_table(first)
            while parts[-1].stat().st_size < SHARD_BYTES and (table := next(tables, None)) is not None:
                writer.write_table(table)
    names = [f"{split}-{index:05d}-of-{len(parts):05d}.parquet" for index in range(len(parts))]
    return [part.rename(data / name) for part, name in zip(parts, names, strict=True)]


def _tables(records: Iterable[Record], features: Features) -> Iterator[pa.Table]:
    """The records in groups, none too large for memory."""
    remaining = iter(records)
    group = list(islice(remaining, ROW_GROUP))
    if not group:
        raise ValueError("`records` must hold at least one record, got none.")
    while group:
        rows = [features.encode_example(stored_record(record)) for record in group]
        yield pa.Table.from_pylist(rows, schema=features.arrow_schema)
        group = list(islice(remaining, ROW_GROUP))


def stored_record(record: Record) -> Record:
    """A record whose pictures are the contents of files.

    Raises:
        ValueError: the map does not fit the picture.
    """
    name, contents = picture_file(record)
    return {
        "image": {"bytes": contents, "path": PurePosixPath(name).name},
        "image_id": record["image_id"],
        "file_name": name,
        "segmentation": {"bytes": map_file(record), "path": PurePosixPath(name).with_suffix(".png").name},
        "segments_info": record["segments_info"],
    }


def picture_file(record: Record) -> tuple[str, bytes]:
    """Name and contents of a record's picture as a file; of a picture in memory a PNG file is made."""
    image = record["image"]
    name = record.get("file_name")
    if isinstance(image, PILImage.Image):
        stem = PurePosixPath(name) if name else PurePosixPath(f"{record['image_id']:012d}")
        return str(stem.with_suffix(".png")), _png(image)
    contents = _contents(image)
    if not name and image.get("path"):
        name = PureWindowsPath(image["path"]).name  # either kind of slash
    if not name:
        with PILImage.open(BytesIO(contents)) as picture:
            name = f"{record['image_id']:012d}.{str(picture.format).lower()}"
    return name, contents


def map_file(record: Record) -> bytes:
    """A record's id map as an RGB PNG file; one that is such a file is copied.

    Raises:
        ValueError: it is broken, or does not fit the picture.
    """
    segmentation = record["segmentation"]
    if isinstance(segmentation, Mapping):
        contents = _contents(segmentation)
        try:
            with PILImage.open(BytesIO(contents)) as picture:
                picture.load()
        except Exception as error:  # broken files raise anything from SyntaxError to struct.error
            reason = "no picture" if isinstance(error, UnidentifiedImageError) else error
            raise ValueError(
                f"{name_of(record)}: its map {segmentation.get('path') or ''} is broken: {reason}"
            ) from error
        check_size(record, picture.size)
        return contents if (picture.format, picture.mode) == ("PNG", "RGB") else _png(picture.convert("RGB"))
    ids = segmentation_ids(segmentation)
    check_size(record, ids.shape[::-1])
    return _png(PILImage.fromarray(ids_to_rgb(ids)))


def _segment(entry: Mapping[str, Any], categories: Categories) -> dict[str, Any]:
    category_id = categories.category_ids[entry["label_id"]]
    return {"category_id": category_id, **{key: entry[key] for key in SEGMENT_KEYS if key in entry}}


def _contents(picture: Mapping[str, Any]) -> bytes:
    contents = picture.get("bytes")
    return Path(picture["path"]).read_bytes() if contents is None else contents


def _png(picture: PILImage.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _write(path: Path, contents: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(contents)
