"""One door for every format: what lies at a source is recognized, or named, and comes out as canonical records."""

from pathlib import Path
from typing import NamedTuple

from datasets import Dataset, IterableDataset

from .categories import Categories
from .cityscapes import MAPS_FOLDER, raw_cityscapes
from .coco import find_coco_panoptic, json_candidates, raw_coco_panoptic, splits_hint
from .coco_instances import ROBOFLOW_FILE, find_coco_instances, raw_coco_instances
from .label_maps import MAP_FOLDERS, SEMANTIC, TWO_CHANNEL, find_maps, kind_of_maps, raw_label_maps
from .lazy_records import RawRecords, map_style_records, relabeled, streamed_records
from .rows import first_rows, holds_rows, is_hub_id, raw_rows

COCO_PANOPTIC_FORMAT, COCO_INSTANCES, CITYSCAPES_FORMAT, ROWS = "coco-panoptic", "coco-instances", "cityscapes", "rows"
FORMATS = (COCO_PANOPTIC_FORMAT, ROWS, TWO_CHANNEL, COCO_INSTANCES, CITYSCAPES_FORMAT, SEMANTIC)


class PanopticData(NamedTuple):
    """Records and what their label ids mean."""

    records: Dataset | IterableDataset
    categories: Categories


def read_panoptic(
    source: str | Path,
    *,
    split: str | None = None,
    data_format: str | None = None,
    limit: int | None = None,
    categories: Categories | None = None,
    streaming: bool = False,
    files_may_be_missing: bool = False,
) -> PanopticData:
    """Read a dataset in any of `FORMATS`; docs/data.md shows each.

    Args:
        source: a folder, a Parquet file, or the name of a dataset on the Hub.
        split: such as "val2017", where the source has splits.
        data_format: one of `FORMATS`; None recognizes it.
        limit: number of records to read, from the first.
        categories: whose label ids are wanted, matched by name; None: the source's own. If the source does not say
            what its category ids are, these do.
        streaming: an `IterableDataset` of the same records in the same order, instead of a `Dataset`.
        files_may_be_missing: a picture or map that COCO's files name and that is not there is an error when its record
            is asked for, not here: for whoever leaves out what cannot be read.

    Raises:
        ValueError: the format is unknown, the source is in none of them, it holds no annotated image, or a name of
            the source is not among `categories`.
    """
    source = str(source)
    if data_format is not None and data_format not in FORMATS:
        raise ValueError(f"`data_format` must be one of {', '.join(FORMATS)}, got {data_format!r}.")
    if limit is not None and limit < 1:
        raise ValueError(f"`limit` must be at least 1, got {limit}.")
    name = data_format or recognize(source, split=split)
    folder = Path(source)
    if name == ROWS or (name in (TWO_CHANNEL, SEMANTIC) and (holds_rows(source) or not folder.exists())):
        raw = raw_rows(
            source, split=split, streaming=streaming, categories=categories, map_kind=None if name == ROWS else name
        )
        raw = raw if limit is None else raw._replace(rows=first_rows(raw.rows, limit))
    else:
        raw = _read_folder(folder, name, split, limit, files_may_be_missing)
    if isinstance(raw.rows, Dataset) and len(raw.rows) == 0:
        raise ValueError(f"`data` {source!r} holds no annotated image.")
    if categories is not None:
        raw = relabeled(raw, categories)
    return PanopticData(streamed_records(raw) if streaming else map_style_records(raw), raw.categories)


def _read_folder(
    folder: Path, name: str, split: str | None, limit: int | None, files_may_be_missing: bool
) -> RawRecords:
    if name == COCO_PANOPTIC_FORMAT:
        paths = find_coco_panoptic(folder, split=split)
        return raw_coco_panoptic(paths, limit=limit, files_may_be_missing=files_may_be_missing)
    if name == COCO_INSTANCES:
        instance_paths = find_coco_instances(folder, split=split)
        return raw_coco_instances(instance_paths, limit=limit, files_may_be_missing=files_may_be_missing)
    if name == CITYSCAPES_FORMAT:
        return raw_cityscapes(folder, split=split, limit=limit)
    return raw_label_maps(folder, split=split, limit=limit, kind=name)


def recognize(source: str, *, split: str | None = None) -> str:
    """Which of `FORMATS` lies at a source.

    Raises:
        ValueError: none of them; says what was looked for.
    """
    folder = Path(source)
    if is_hub_id(source):
        return ROWS
    inner = folder if split is None else folder / split
    panoptic = json_candidates(folder, split, "panoptic")
    instances = [*json_candidates(folder, split, "instances"), inner / ROBOFLOW_FILE]
    signs: list[tuple[str, bool]] = [
        (ROWS, holds_rows(source)),
        (COCO_PANOPTIC_FORMAT, any(path.is_file() for path in panoptic)),
        (COCO_INSTANCES, any(path.is_file() for path in instances)),
        (CITYSCAPES_FORMAT, (folder / MAPS_FOLDER).is_dir()),
    ]
    for name, found in signs:
        if found:
            return name
    maps = find_maps(folder, split)
    if maps is not None:
        return kind_of_maps(maps[1])
    hint = splits_hint(folder, "panoptic") or splits_hint(folder, "instances")
    what = "is in no known format" if split is None else f"has no split {split!r} in a known format"
    looked_for = [
        *(str(path.relative_to(folder)) for path in (*panoptic, *instances)),
        f"{MAPS_FOLDER}/",
        f"images/ with {'/, '.join(MAP_FOLDERS)}/",
        "*.parquet",
        "dataset_info.json",
    ]
    raise ValueError(f"`data` {source!r} {what}: looked for {', '.join(looked_for)}.{hint}")
