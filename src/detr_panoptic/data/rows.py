"""Reader of `datasets`: from the Hub, saved to disk, or Parquet files.

Rows have `image`, a map, and `segments_info`; or `image` and a map of classes, if the format is named. The map is a
picture: RGB for ids R + 256 G + 256² B, one channel for the ids themselves; of a palette, whichever of the two agrees
with `segments_info`.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from huggingface_hub.constants import HF_HUB_CACHE
from PIL import Image as PILImage

from ..segment_ids import rgb_to_ids
from .categories import COCO_PANOPTIC, Categories
from .coco import whole, whole_box
from .folders import CATEGORIES_FILE, read_categories
from .hub_names import hub_name
from .label_maps import SEMANTIC, LabelMapDecoder
from .lazy_records import RawRecords, image_id_of, make_record, name_of, opened
from .plain_text import first_line
from .records import Record, categories_of, fill_measures, panoptic_features

MAP_COLUMNS = ("segmentation", "label", "annotation", "mask")
SAVED_FILES = ("dataset_info.json", "dataset_dict.json")
CACHES = (Path(HF_CACHE_HOME), Path(HF_DATASETS_CACHE), Path(HF_HUB_CACHE))
SEEN_ROWS = 100  # to see whose category ids they are

_logger = logging.getLogger(__name__)


def holds_rows(source: str) -> bool:
    """Whether a path is a saved dataset, or Parquet files."""
    path = Path(source)
    if path.is_file():
        return path.suffix == ".parquet"
    if any((path / name).is_file() for name in SAVED_FILES):
        return True
    return any(next(path.glob(pattern), None) for pattern in ("*.parquet", "*/*.parquet"))


def is_hub_id(source: str) -> bool:
    """Whether a source is the name of a dataset on the Hub; False: there is something here.

    Raises:
        ValueError: it is neither.
    """
    if Path(source).exists():
        return False
    if hub_name(source):
        return True
    raise ValueError(f"`data` {source!r} must be a folder or a Parquet file, or OWNER/NAME of a dataset on the Hub.")


def raw_rows(
    source: str,
    *,
    split: str | None,
    streaming: bool,
    categories: Categories | None,
    map_kind: str | None = None,
) -> RawRecords:
    """Rows of a dataset.

    Args:
        source: path, or name on the Hub.
        split: needed if there are several.
        streaming: do not download and prepare the whole first.
        categories: what the category ids mean if the dataset does not say.
        map_kind: of maps of classes, instead of `segments_info`: `TWO_CHANNEL` or `SEMANTIC`.

    Raises:
        ValueError: there is no such dataset or split, it has other columns, or nothing says what its categories are.
    """
    rows = open_rows(source, split=split, streaming=streaming)
    if isinstance(rows, Dataset):
        check_pictures_inside(rows, source)
    features = rows.features
    if features is None:
        raise ValueError(f"`data` {source!r} does not say what its columns are when it is streamed: read it whole.")
    own = categories_of(features)
    if own is not None and map_kind is None and _is_canonical(features):
        for name in ("image", "segmentation"):
            rows = rows.cast_column(name, Image(mode="RGB"))
        return RawRecords(rows, own)
    map_column = _map_column(features, source, map_kind)
    known = own or _categories_beside(source, kind_needed=map_kind != SEMANTIC) or categories
    if map_kind is None and known is None:
        known = _guess_categories(rows, source)
    if known is None:
        raise ValueError(_unknown_categories(source))
    decode = RowDecoder(known, map_column, LabelMapDecoder(known, map_kind) if map_kind else None)
    rows = rows.cast_column(map_column, Image())  # in the mode of its file
    if not isinstance(features["image"], Image):
        rows = rows.cast_column("image", Image())
    if isinstance(rows, Dataset):
        rows = identified(rows)
    elif "image_id" not in features:
        rows = _numbered(rows)
    return RawRecords(rows, known, decode)


def is_picture_column(feature: Any) -> bool:
    """Whether a column holds pictures, also if its file was not written by `datasets`, and does not say so."""
    return isinstance(feature, Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def identified(rows: Dataset, file_names: Sequence[str | None] | None = None) -> Dataset:
    """The rows with a number as `image_id`, and with a `file_name`.

    Args:
        rows: an `image_id` of text becomes a number, one that lacks is the place of the row.
        file_names: of rows that have none; None: unknown.
    """
    numbers = list(range(len(rows)))
    if "image_id" in rows.column_names:
        numbers = [image_id_of(name) for name in rows["image_id"]]
        rows = rows.remove_columns("image_id")
    rows = rows.add_column("image_id", numbers, feature=Value("int64"))
    if "file_name" not in rows.column_names:
        names = [None] * len(rows) if file_names is None else list(file_names)
        rows = rows.add_column("file_name", names, feature=Value("string"))
    return rows


def _map_column(features: Features, source: str, map_kind: str | None) -> str:
    """Which column has the maps; raises ValueError if that or another column is missing, or of another type."""
    map_column = next((name for name in MAP_COLUMNS if is_picture_column(features.get(name))), None)
    missing = [name for name in ("image", *([] if map_kind else ["segments_info"])) if name not in features]
    if missing or map_column is None:
        raise ValueError(
            f"`data` {source!r} must have the columns `image`, `segments_info` and a picture "
            f"{' or '.join(MAP_COLUMNS)}, got {list(features)}; without `segments_info`, name the format, "
            "two-channel or semantic."
        )
    if not is_picture_column(features["image"]):
        raise ValueError(f"`data` {source!r} must have pictures in `image`, got {features['image']}.")
    if not map_kind and isinstance(features["segments_info"], Value):
        raise ValueError(f"`data` {source!r} must have a list in `segments_info`, got {features['segments_info']}.")
    return map_column


def check_pictures_inside(rows: Dataset, source: str) -> None:
    """Raises ValueError for pictures that are not in the rows but paths to elsewhere: to files of whoever reads them.

    Good are paths into the source's own folder, and into the caches, where `datasets` unpacks what it has fetched.
    """
    roots = [root.resolve() for root in (*([Path(source)] if Path(source).is_dir() else []), *CACHES)]
    for name, feature in rows.features.items():
        if not is_picture_column(feature):
            continue
        for pictures in rows.data.column(name).chunks:
            paths = pictures.field("path").filter(pictures.field("bytes").is_null())
            for path in filter(None, paths.unique().to_pylist()):
                file = Path(path.rpartition("::")[2])  # of an archive: zip://1.png::/folder/archive.zip
                if not any(file.resolve().is_relative_to(root) for root in roots):
                    raise ValueError(
                        f"`data` {source!r} must have its pictures inside, got in `{name}` the path {path!r}."
                    )


def _numbered(rows: IterableDataset) -> IterableDataset:
    """A stream with the number of each row as `image_id`; each worker of a loader counts its own."""
    features = Features({**rows.features, "image_id": Value("int64")})
    return rows.map(_add_number, with_indices=True, features=features)


def _add_number(row: Record, index: int) -> Record:
    return {**row, "image_id": index}


def open_rows(source: str, *, split: str | None, streaming: bool) -> Dataset | IterableDataset:
    """The rows of one split, as they are.

    Raises:
        ValueError: there is no such dataset, it is broken, or it has several splits and none of this name.
    """
    path = Path(source)
    if any((path / name).is_file() for name in SAVED_FILES):
        try:
            saved = load_from_disk(source)
        except Exception as error:  # of JSON, Arrow and `datasets`, each with its own
            reason = first_line(error)
            raise ValueError(f"`data` {source!r} is no saved dataset, or a broken one: {reason}") from error
        return saved[_one_split(list(saved), split, source)] if isinstance(saved, DatasetDict) else saved
    options: dict[str, Any] = {"streaming": streaming}
    if path.is_file():
        try:
            pq.read_schema(path)  # what is no Parquet file, `datasets` says in several lines
            return load_dataset("parquet", data_files=source, split="train", **options)
        except Exception as error:  # of pyarrow and `datasets`, each with its own
            raise ValueError(
                f"`data` {source!r} is no Parquet file, or only a part of one: {first_line(error)}"
            ) from error
    try:
        names = get_dataset_split_names(source)
    except Exception as error:  # of the Hub, the network and the parsers of files, each with its own
        raise ValueError(
            f"`data` {source!r} is no dataset that can be read, on the Hub or here: {first_line(error)}"
        ) from error
    chosen = _one_split(names, split, source)
    try:
        return load_dataset(source, split=chosen, **options)
    except Exception as error:  # as above; the schema of a file can be whole and the rest not
        cause = error.__cause__ or error  # "An error occurred while generating the dataset" says nothing
        raise ValueError(f"`data` {source!r} cannot be read whole: {first_line(cause)}") from error


def _one_split(names: list[str], split: str | None, source: str) -> str:
    if split is None and len(names) == 1:
        return names[0]
    if split not in names:
        raise ValueError(f"`split` of {source!r} must be one of {', '.join(names)}, got {split!r}.")
    return split


def first_rows(rows: Dataset | IterableDataset, count: int) -> Dataset | IterableDataset:
    """The first rows, or all if there are fewer."""
    return rows.select(range(min(count, len(rows)))) if isinstance(rows, Dataset) else rows.take(count)


def _is_canonical(features: Features) -> bool:
    """Whether nothing is to be done but to read; more keys of a segment, such as `score`, do no harm."""
    expected = panoptic_features()
    return set(expected) <= set(features) and (
        set(expected["segments_info"].feature) <= set(features["segments_info"].feature)
    )


def _categories_beside(source: str, *, kind_needed: bool) -> Categories | None:
    path = Path(source)
    if path.exists():
        file = (path if path.is_dir() else path.parent) / CATEGORIES_FILE
        return read_categories(file, kind_needed=kind_needed) if file.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        file = Path(hf_hub_download(source, CATEGORIES_FILE, repo_type="dataset"))
    except (EntryNotFoundError, LocalEntryNotFoundError):
        return None
    return read_categories(file, kind_needed=kind_needed)


def _guess_categories(rows: Dataset | IterableDataset, source: str) -> Categories | None:
    """COCO's, if the ids are COCO's: with a thing and a stuff, as 1, 2 and 3 are anybody's."""
    seen: set[int] = set()
    for row in first_rows(rows.select_columns(["segments_info"]), SEEN_ROWS):
        for segment in _entries(row["segments_info"]):
            if "category_id" not in segment:
                return None
            seen.add(segment["category_id"])
    known = dict(zip(COCO_PANOPTIC.category_ids, COCO_PANOPTIC.is_thing, strict=True))
    if not seen <= set(known) or {known[category_id] for category_id in seen} != {True, False}:
        return None
    _logger.warning("%s does not name its categories; the ids are those of COCO panoptic, so are the names.", source)
    return COCO_PANOPTIC


def _unknown_categories(source: str) -> str:
    place = "in" if Path(source).is_dir() or not Path(source).exists() else "beside"
    return (
        f"`data` {source!r} does not say what its categories are: put a {CATEGORIES_FILE} {place} it, a list of "
        "{id, name, isthing}, or give `categories`."
    )


def _entries(segments: Any) -> list[dict[str, Any]]:
    """`segments_info` as a list of entries, which older versions of `datasets` turned inside out."""
    if isinstance(segments, Mapping):
        return [dict(zip(segments, values, strict=True)) for values in zip(*segments.values(), strict=True)]
    return [dict(segment) for segment in segments]


@dataclass(frozen=True)
class RowDecoder:
    """Makes a record of a row.

    Args:
        categories: of the rows.
        map_column: where the map is.
        label_maps: what reads maps of classes; None: the maps hold ids.
    """

    categories: Categories
    map_column: str
    label_maps: LabelMapDecoder | None = None

    def __call__(self, row: Record) -> Record:
        """Make the record.

        Raises:
            ValueError: the map is no map, ids do not fit, or a segment has an unknown category; names the row.
        """
        raw = {
            "image": row["image"],
            "image_id": image_id_of(row["image_id"]),
            "file_name": row.get("file_name"),
            "segmentation": row[self.map_column],
        }
        if self.label_maps is not None:
            return self.label_maps(raw)
        segments = [self._segment(segment, raw) for segment in _entries(row["segments_info"])]
        ids = map_ids(opened(raw["segmentation"]), {segment["id"] for segment in segments}, raw)
        return make_record(raw, ids, fill_measures(ids, segments))

    def _segment(self, entry: dict[str, Any], row: Record) -> dict[str, Any]:
        where = f"{name_of(row)}, segment {entry.get('id')}"
        if entry.get("id") is None:
            raise ValueError(f"{where}: a segment must have an `id`, got {entry}.")
        label_id = entry.get("label_id")
        if label_id is not None and not 0 <= label_id < len(self.categories):
            raise ValueError(f"{where}: `label_id` must be from 0 to {len(self.categories) - 1}, got {label_id}.")
        if label_id is None:
            try:
                label_id = self.categories.label_id(entry["category_id"])
            except (KeyError, ValueError) as error:
                reason = error if isinstance(error, ValueError) else "expected `label_id` or `category_id`."
                raise ValueError(f"{where}: {reason}") from error
        return {
            "id": entry["id"],
            "label_id": label_id,
            "iscrowd": int(entry.get("iscrowd") or 0),
            "area": whole(entry.get("area"), f"{where}: `area`"),
            "bbox": whole_box(entry.get("bbox"), f"{where}: `bbox`"),
        }


def map_ids(picture: PILImage.Image, listed: set[int], row: Record) -> np.ndarray:
    """Ids (H, W) int64 of a map in any mode.

    Args:
        picture: the map.
        listed: ids of `segments_info`, to tell what a palette picture holds.
        row: for the error.

    Raises:
        ValueError: it holds no ids.
    """
    if picture.mode == "P":
        values = np.asarray(picture).astype(np.int64)
        if set(np.unique(values).tolist()) - {0} == listed:
            return values
    if picture.mode in ("P", "RGB", "RGBA"):
        return rgb_to_ids(np.asarray(picture.convert("RGB"))).astype(np.int64)
    values = np.asarray(picture)
    if values.ndim != 2 or values.dtype.kind not in "iub":
        raise ValueError(f"{name_of(row)}: a map must be RGB or hold whole numbers, got mode {picture.mode}.")
    return values.astype(np.int64)
