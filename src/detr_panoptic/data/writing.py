"""Writers of canonical records: COCO panoptic folders, saved datasets, Parquet files; `convert_data` calls them.

Each takes any iterable of records. An image that comes as a file (`path` or `bytes`, as `datasets` gives it with
`Image(decode=False)`) is copied byte by byte, since encoding a JPEG again would change it.
"""

import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, load_from_disk
from tqdm.auto import tqdm

from .categories import Categories
from .contained_paths import path_inside
from .files import check_new_folder, whole_folder, write_file
from .lazy_records import NamedRecords, name_of, open_stored, row_error, undecoded, upright_size
from .plain_text import counted
from .reading import PanopticData, read_panoptic
from .records import Record, has_scores, panoptic_features
from .stored import map_file, picture_file, stored_record
from .writing_instances import Masks, write_coco_instances

ROW_GROUP = 64  # records; a reader of Parquet loads a group at once
SHARD_BYTES = 500 * 2**20  # as of `datasets`
SEGMENT_KEYS = ("id", "iscrowd", "area", "bbox", "score")  # in JSON; `score` of predictions


def write_coco_panoptic_dataset(folder: str | Path, records: Iterable[Record], categories: Categories) -> Path:
    """Writes `images/`, `panoptic/` and `panoptic.json`, which it returns; segments may have a `score`.

    Raises:
        ValueError: two records have the same id or file name, a name leads out of the folder, or a map and its image
            differ in size.

    Examples:
        >>> import tempfile
        >>> from detr_panoptic.scenes import SCENE_CATEGORIES, make_scene
        >>> write_coco_panoptic_dataset(tempfile.mkdtemp(), [make_scene(0)], SCENE_CATEGORIES).name
        'panoptic.json'
    """
    folder = Path(folder)
    images, annotations = [], []
    seen: set[int | str] = set()
    for record in records:
        name, contents = picture_file(record)
        image_id, map_name = record["image_id"], str(PurePosixPath(name).with_suffix(".png"))
        for value in (image_id, name, f"map {map_name}"):
            if value in seen:
                raise row_error(record, f"expected each id and file name once, got {value!r} twice")
            seen.add(value)
        width, height = upright_size({"bytes": contents})
        write_file(path_inside(folder / "panoptic", map_name, name_of(record)), map_file(record))
        write_file(path_inside(folder / "images", name, name_of(record)), contents)
        segments = [segment_entry(entry, categories) for entry in record["segments_info"]]
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        annotations.append({"image_id": image_id, "file_name": map_name, "segments_info": segments})
    document = {"images": images, "annotations": annotations, "categories": categories.to_coco()}
    write_file(folder / "panoptic.json", json.dumps(document, ensure_ascii=False))
    return folder / "panoptic.json"


def save_dataset(
    folder: str | Path, records: Iterable[Record], categories: Categories, *, with_scores: bool = False
) -> Dataset:
    """Writes a folder for `datasets.load_from_disk` and `read_panoptic`, images and categories included.

    There must be a record; with scores, segments have a `score`. `push_to_hub` of the returned dataset uploads
    everything.

    Examples:
        >>> import tempfile
        >>> from detr_panoptic.scenes import SCENE_CATEGORIES, make_scene
        >>> save_dataset(tempfile.mkdtemp(), [make_scene(0)], SCENE_CATEGORIES).num_rows
        1
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
    """Writes `data/SPLIT-00000-of-0000N.parquet`, the layout of the Hub; returns the files.

    The arguments are those of `save_dataset`; `split` is a part of the file names.

    Examples:
        >>> import tempfile
        >>> from detr_panoptic.scenes import SCENE_CATEGORIES, make_scene
        >>> [path.name for path in write_parquet(tempfile.mkdtemp(), [make_scene(0)], SCENE_CATEGORIES)]
        ['train-00000-of-00001.parquet']
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
    """Yields tables of a few records each."""
    remaining, schema = iter(records), features.arrow_schema
    is_empty = True
    while group := list(islice(remaining, ROW_GROUP)):
        is_empty = False
        yield pa.Table.from_pylist([features.encode_example(stored_record(record)) for record in group], schema=schema)
    if is_empty:
        raise ValueError("`records` must hold at least one record, got none.")


def segment_entry(entry: Mapping[str, Any], categories: Categories) -> dict[str, Any]:
    """Returns an entry of `segments_info` as COCO's panoptic JSON has it."""
    category_id = categories.category_ids[entry["label_id"]]
    return {"category_id": category_id, **{key: entry[key] for key in SEGMENT_KEYS if entry.get(key) is not None}}


COCO, DATASET, PARQUET, INSTANCES = TARGETS = ("coco", "dataset", "parquet", "coco-instances")
Target = Literal["coco", "dataset", "parquet", "coco-instances"]

_logger = logging.getLogger(__name__)


@dataclass
class DataConversion:
    """The result of `convert_data`: numbers, label ids that occur, and a message for each image that was left out.

    Examples:
        >>> from pathlib import Path
        >>> from detr_panoptic.scenes import SCENE_CATEGORIES
        >>> print(DataConversion(Path("my_data"), SCENE_CATEGORIES, images=1, segments=9, labels={0, 3}))
        1 image, 9 segments, 0 crowds, 2 of 14 classes, written to my_data
    """

    output: Path
    categories: Categories = field(repr=False)
    images: int = 0
    segments: int = 0
    crowds: int = 0
    labels: set[int] = field(default_factory=set, repr=False)
    failures: list[str] = field(default_factory=list)

    def add(self, record: Record) -> None:
        """Counts one record."""
        segments = record["segments_info"]
        self.images += 1
        self.segments += len(segments)
        self.crowds += sum(segment["iscrowd"] for segment in segments)
        self.labels |= {segment["label_id"] for segment in segments}

    def __str__(self) -> str:
        """Returns the counts and what was left out."""
        skipped = [f"{counted(len(self.failures), 'image')} left out:", *(f"  {message}" for message in self.failures)]
        total = (
            f"{counted(self.images, 'image')}, {counted(self.segments, 'segment')}, {counted(self.crowds, 'crowd')}, "
            f"{len(self.labels)} of {len(self.categories)} classes, written to {self.output}"
        )
        return "\n".join([total, *skipped] if self.failures else [total])


def convert_data(  # noqa: PLR0913  every option of a long run, each with a default
    source: str | Path | PanopticData,
    output: str | Path,
    *,
    to: Target = "coco",
    split: str | None = None,
    data_format: str | None = None,
    limit: int | None = None,
    stuff: Sequence[str] | None = None,
    masks: Masks = "polygons",
    on_error: Literal["stop", "skip"] = "stop",
    progress: bool = True,
) -> DataConversion:
    """Writes a dataset in another format; image files are copied byte by byte.

    `source`, `split`, `data_format`, `limit` and `stuff` are those of `read_panoptic`. For a `PanopticData`, `split`
    only names the Parquet files, and `data_format` and `stuff` are refused. The folder `output` must be empty or not
    exist; it appears when it is complete. "coco" writes `images/`, `panoptic/` and `panoptic.json`;
    "dataset" a folder for `datasets.load_from_disk`; "parquet" `data/SPLIT-*.parquet`, the layout of the Hub;
    "coco-instances" `images/` and `instances.json` for annotation tools, with `masks` as "polygons" or "rle". If an
    image cannot be read, `on_error` "stop" raises its error, and "skip" leaves it out.

    Raises:
        ValueError: an argument is invalid, an image cannot be read, or no image can.

    Examples:
        >>> import tempfile
        >>> from detr_panoptic.scenes import read_source
        >>> output = f"{tempfile.mkdtemp()}/scenes"
        >>> conversion = convert_data(read_source("scenes", limit=2), output, to="parquet", progress=False)
        >>> conversion.images, conversion.failures
        (2, [])
        >>> read_panoptic(output)
        PanopticData: 2 records, 14 classes (8 things: house, tree, ...; 6 stuff: sky, mountain, ...)
    """
    for name, value, allowed in (
        ("to", to, TARGETS),
        ("masks", masks, get_args(Masks)),
        ("on_error", on_error, ("stop", "skip")),
    ):
        if value not in allowed:
            raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {value!r}.")
    check_new_folder(output)
    if isinstance(source, PanopticData):
        data = read_panoptic(source, limit=limit, data_format=data_format, stuff=stuff)
    else:
        missing = on_error == "skip"
        options: dict[str, Any] = {"split": split, "data_format": data_format, "limit": limit, "stuff": stuff}
        data = read_panoptic(source, files_may_be_missing=missing, **options)
    if not isinstance(data.records, Dataset):
        raise ValueError("`source` must not be a stream.")
    conversion = DataConversion(Path(output), data.categories)
    records = _readable_records(data.records, conversion, skip=on_error == "skip")
    bar = tqdm(records, total=len(data.records), disable=None if progress else True, desc="converting")
    with whole_folder(output) as part:
        if to == COCO:
            write_coco_panoptic_dataset(part, bar, data.categories)
        elif to == DATASET:
            save_dataset(part, bar, data.categories, with_scores=has_scores(data.records.features))
        elif to == INSTANCES:
            write_coco_instances(part, bar, data.categories, masks=masks)
        else:
            scored = has_scores(data.records.features)
            write_parquet(part, bar, data.categories, split=split or "train", with_scores=scored)
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
            conversion.failures.append(message)
            _logger.warning("Skipped: %s", message)
            continue
        conversion.add(record)
        yield record
    if not conversion.images:
        raise ValueError("`source` has no image that can be read.")
