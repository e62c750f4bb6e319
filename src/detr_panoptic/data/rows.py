"""Reader and validator of `datasets`: from the Hub, saved to disk, or Parquet files.

Rows have `image`, a map and `segments_info`; or `image` and a map of classes, if the format is named. The map is an
image: RGB for ids R + 256 G + 256^2 B, one channel for the ids themselves; of a palette image, whichever agrees with
`segments_info`.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    Value,
    get_dataset_split_names,
    load_dataset,
    load_from_disk,
)
from datasets.config import HF_CACHE_HOME, HF_DATASETS_CACHE
from huggingface_hub import hf_hub_download
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from PIL import Image as PILImage

from ..segment_ids import rgb_to_ids
from .categories import COCO_PANOPTIC, Categories
from .coco import checked_segments
from .findings import raising
from .folders import CATEGORIES_FILE, read_categories
from .hub_names import hub_name
from .label_maps import SEMANTIC, decode_label_map
from .lazy_records import RawRecords, ReadOptions, hashed_id, image_id_of, make_record, name_of, opened, row_error
from .plain_text import first_line
from .records import Record, categories_of, fill_measures, panoptic_features

MAP_COLUMNS = ("segmentation", "label", "annotation", "mask")
SAVED_FILES = ("dataset_info.json", "dataset_dict.json")
CACHES = (Path(HF_CACHE_HOME), Path(HF_DATASETS_CACHE), Path(HF_HUB_CACHE))
SEEN_ROWS = 100  # to see whose category ids they are

_logger = logging.getLogger(__name__)


def holds_rows(source: str) -> bool:
    """Returns whether a path is a saved dataset or has Parquet files."""
    path = Path(source)
    if path.is_file():
        return path.suffix == ".parquet"
    return any(next(path.glob(pattern), None) for pattern in (*SAVED_FILES, "*.parquet", "*/*.parquet"))


def is_hub_id(source: str) -> bool:
    """Returns whether a source is the name of a dataset on the Hub, False for a path; raises ValueError for others."""
    if Path(source).exists():
        return False
    if hub_name(source):
        return True
    raise ValueError(f"`source` {source!r} must be a folder or a Parquet file, or OWNER/NAME of a dataset on the Hub.")


def raw_rows(source: str, options: ReadOptions, *, map_kind: str | None = None) -> RawRecords:
    """Reads rows of a dataset; `map_kind` is `TWO_CHANNEL` or `SEMANTIC` for maps of classes without segments."""
    rows = open_rows(source, split=options.split, streaming=options.streaming)
    if isinstance(rows, Dataset):
        check_pictures_inside(rows, source)
    rows = first_rows(rows, options.limit)
    features = rows.features
    if features is None:
        raise ValueError(f"`source` {source!r} does not say what its columns are when it is streamed: read it whole.")
    own = categories_of(features)
    if own is not None and map_kind is None and _is_canonical(features):
        for name in ("image", "segmentation"):
            rows = rows.cast_column(name, Image(mode="RGB"))
        return RawRecords(rows, own)
    map_column = _map_column(features, source, map_kind)
    known = own or _known_categories(rows, source, options.categories, map_kind)
    decode = partial(decode_row, known, map_column, map_kind)
    if isinstance(rows, Dataset):
        rows = identified(rows)
    elif "image_id" not in features:
        rows = _identified_stream(rows, features)
    for name in ("image", map_column):  # in the mode of its file
        rows = rows.cast_column(name, Image())
    return RawRecords(rows, known, decode)


def _known_categories(
    rows: Dataset | IterableDataset, source: str, given: Categories | None, map_kind: str | None
) -> Categories:
    """Returns the categories of a file beside the rows, else those given, else COCO's if the ids are COCO's."""
    file = _file_beside(source)
    known = given if file is None else read_categories(file, kind_needed=map_kind != SEMANTIC)
    if map_kind is None and known is None:
        known = _guess_categories(rows, source)
    if known is None:
        raise ValueError(
            f"`source` {source!r} does not say what its categories are: add a {CATEGORIES_FILE}, a list of "
            "{id, name, isthing}, to its folder or repository, or give `categories`."
        )
    return known


def _file_beside(source: str) -> Path | None:
    """Returns the file of categories in a folder or in a repository on the Hub, or None."""
    path = Path(source)
    if path.exists():
        file = (path if path.is_dir() else path.parent) / CATEGORIES_FILE
        return file if file.is_file() else None
    try:
        return Path(hf_hub_download(source, CATEGORIES_FILE, repo_type="dataset"))
    except (EntryNotFoundError, LocalEntryNotFoundError):
        return None


def is_picture_column(feature: Any) -> bool:
    """Returns whether a column holds images; files of other programs have them as `bytes` and `path`."""
    return isinstance(feature, Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def identified(rows: Dataset, file_names: Sequence[str | None] | None = None) -> Dataset:
    """Returns the rows with a number as `image_id`, by default the index, and with a `file_name`."""
    names = list(file_names or [None] * len(rows))
    numbers = list(range(len(rows)))
    if "image_id" in rows.column_names:
        numbers = [image_id_of(name) for name in rows["image_id"]]
        rows = rows.remove_columns("image_id")
    if "file_name" not in rows.column_names:
        rows = rows.add_column("file_name", names, feature=Value("string"))
    return rows.add_column("image_id", numbers, feature=Value("int64"))


def _map_column(features: Features, source: str, map_kind: str | None) -> str:
    """Returns the column of the maps; raises ValueError if it or another column is missing or of another type."""
    map_column = next((name for name in MAP_COLUMNS if is_picture_column(features.get(name))), None)
    has_list = bool(map_kind) or not isinstance(features.get("segments_info", Value("null")), Value)
    if map_column is None or not is_picture_column(features.get("image")) or not has_list:
        checked = {name: features[name] for name in ("image", "segments_info") if name in features}
        types = "".join(f" ({name}: {kind.dtype})" for name, kind in checked.items() if type(kind) is Value)
        raise ValueError(
            f"`source` {source!r} must have the columns `image`, images, `segments_info`, a list, and a picture "
            f"{' or '.join(MAP_COLUMNS)}, got {list(features)}{types}; without `segments_info`, name the format, "
            "two-channel or semantic."
        )
    return map_column


def check_pictures_inside(rows: Dataset, source: str) -> None:
    """Raises ValueError for paths that would read files of the user instead of images of the dataset.

    Paths into the source's own folder and into the caches of `datasets` are valid.
    """
    roots = [root.resolve() for root in (*([Path(source)] if Path(source).is_dir() else []), *CACHES)]
    for name in [name for name, feature in rows.features.items() if is_picture_column(feature)]:
        for pictures in rows.data.column(name).chunks:
            paths = pictures.field("path").filter(pictures.field("bytes").is_null())
            for path in filter(None, paths.unique().to_pylist()):
                file = Path(path.rpartition("::")[2])  # of an archive: zip://1.png::/folder/archive.zip
                if not any(file.resolve().is_relative_to(root) for root in roots):
                    got = f"got in `{name}` the path {path!r}"
                    raise ValueError(f"`source` {source!r} must have its images inside, {got}.")


def _identified_stream(rows: IterableDataset, features: Features) -> IterableDataset:
    """Returns a stream with a hash of the image file, or of its path, as `image_id`.

    Workers and processes read different parts of a stream, so a count would give several images the same number.
    """
    columns = Features({**features, "image": Image(), "image_id": Value("int64")})
    return rows.cast_column("image", Image(decode=False)).map(_add_hash, features=columns)


def _add_hash(row: Record) -> Record:
    image = row["image"]  # opened here: a stream that has been mapped ignores `cast_column`
    number = hashed_id(image.get("bytes") or str(image["path"]).encode())
    return {**row, "image": opened(image), "image_id": number}


def open_rows(source: str, *, split: str | None, streaming: bool) -> Dataset | IterableDataset:
    """Opens the rows of one split; raises ValueError if the dataset is missing or broken, or lacks the split."""
    path = Path(source)
    if any((path / name).is_file() for name in SAVED_FILES):
        with _named_errors(source, "is not a saved dataset, or a broken one"):
            saved = load_from_disk(source)
        return saved[_one_split(list(saved), split, source)] if isinstance(saved, DatasetDict) else saved
    if path.is_file():
        with _named_errors(source, "is not a Parquet file, or only a part of one"):
            pq.read_schema(path)  # `datasets` describes other files in several lines
            return load_dataset("parquet", data_files=source, split="train", streaming=streaming)
    with _named_errors(source, "is not a dataset that can be read, on the Hub or here"):
        names = get_dataset_split_names(source)
    chosen = _one_split(names, split, source)
    with _named_errors(source, "cannot be read completely"):
        return load_dataset(source, split=chosen, streaming=streaming)


@contextmanager
def _named_errors(source: str, what: str) -> Iterator[None]:
    """Raises ValueError with the first line of any error: the Hub, the network, JSON and Arrow each have their own."""
    try:
        yield
    except Exception as error:
        cause = error.__cause__ or error  # "An error occurred while generating the dataset" says nothing
        raise ValueError(f"`source` {source!r} {what}: {first_line(cause)}") from error


def _one_split(names: list[str], split: str | None, source: str) -> str:
    if split is None and len(names) == 1:
        return names[0]
    if split not in names:
        raise ValueError(f"`split` of {source!r} must be one of {', '.join(names)}, got {split!r}.")
    return split


def first_rows(rows: Dataset | IterableDataset, count: int | None) -> Dataset | IterableDataset:
    """Returns the first rows, or all if there are fewer or `count` is None."""
    if count is None:
        return rows
    return rows.select(range(min(count, len(rows)))) if isinstance(rows, Dataset) else rows.take(count)


def _is_canonical(features: Features) -> bool:
    """Returns whether rows are canonical records; additional columns and keys are allowed."""
    expected = panoptic_features()
    keys = set(expected["segments_info"].feature)
    return set(expected) <= set(features) and keys <= set(features["segments_info"].feature)


def _guess_categories(rows: Dataset | IterableDataset, source: str) -> Categories | None:
    """Returns COCO's categories if the ids are among them, things and stuff: 1, 2 and 3 can be of any dataset."""
    some = first_rows(rows.select_columns(["segments_info"]), SEEN_ROWS)
    seen = {segment.get("category_id") for row in some for segment in entries_of(row["segments_info"])}
    known: dict[Any, bool] = dict(zip(COCO_PANOPTIC.category_ids, COCO_PANOPTIC.is_thing, strict=True))
    if {known.get(category_id) for category_id in seen} != {True, False}:
        return None
    _logger.warning("%s does not name its categories; the ids are those of COCO panoptic, so are the names.", source)
    return COCO_PANOPTIC


def entries_of(segments: Any) -> list[dict[str, Any]]:
    """Returns `segments_info` as a list of entries; older versions of `datasets` store a dict of lists."""
    if isinstance(segments, Mapping):
        return [dict(zip(segments, values, strict=True)) for values in zip(*segments.values(), strict=True)]
    return [dict(segment) for segment in segments]


def decode_row(categories: Categories, map_column: str, map_kind: str | None, row: Record) -> Record:
    """Makes a record of a row; `map_kind` None: the map holds ids. Raises ValueError for invalid maps and segments."""
    raw = {
        "image": row["image"],
        "image_id": image_id_of(row["image_id"]),
        "file_name": row.get("file_name"),
        "segmentation": row[map_column],
    }
    if map_kind is not None:
        return decode_label_map(categories, map_kind, raw)
    segments = checked_segments(entries_of(row["segments_info"]), categories, name_of(raw), raising())
    ids = map_ids(opened(raw["segmentation"]), {segment["id"] for segment in segments}, raw)
    return make_record(raw, ids, fill_measures(ids, segments))


def map_ids(picture: PILImage.Image, listed: set[int], row: Record) -> np.ndarray:
    """Returns the ids (H, W) int64 of a map; a palette image holds ids if they are those of `segments_info`."""
    if picture.mode == "P":
        values = np.asarray(picture).astype(np.int64)
        if set(np.unique(values).tolist()) - {0} == listed:
            return values
    if picture.mode in ("P", "RGB", "RGBA"):
        return rgb_to_ids(np.asarray(picture.convert("RGB"))).astype(np.int64)
    values = np.asarray(picture)
    if values.ndim != 2 or values.dtype.kind not in "iub":
        raise row_error(row, f"a map must be RGB or hold integers, got mode {picture.mode}")
    return values.astype(np.int64)
