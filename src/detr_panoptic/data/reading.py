"""Reads datasets of every format as canonical records, and images without annotations."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

import pyarrow.compute as pc
from datasets import Dataset, Features, Image, IterableDataset, Value

from .categories import Categories
from .coco import annotation_paths, raw_coco_panoptic, splits_hint
from .coco_instances import instance_files, raw_coco_instances
from .folders import log_left_out, pictures_below
from .label_maps import (
    MAP_FOLDERS,
    MAPS_FOLDER,
    SEMANTIC,
    TWO_CHANNEL,
    find_maps,
    kind_of_maps,
    raw_cityscapes,
    raw_label_maps,
)
from .lazy_records import (
    RawRecords,
    ReadOptions,
    dataset_of,
    file_image_id,
    map_style_records,
    relabeled,
    streamed_records,
)
from .rows import (
    check_pictures_inside,
    first_rows,
    holds_rows,
    identified,
    is_hub_id,
    is_picture_column,
    open_rows,
    raw_rows,
)

COCO_PANOPTIC_FORMAT, COCO_INSTANCES, CITYSCAPES_FORMAT, ROWS = "coco-panoptic", "coco-instances", "cityscapes", "rows"
FORMATS = (COCO_PANOPTIC_FORMAT, ROWS, TWO_CHANNEL, COCO_INSTANCES, CITYSCAPES_FORMAT, SEMANTIC)
SHOWN_NAMES = 2  # of each kind, in the text of a dataset


class PanopticData(NamedTuple):
    """A dataset: canonical records (see `read_panoptic`) and what their label ids mean.

    Examples:
        >>> from detr_panoptic.scenes import read_source
        >>> data = read_source("scenes", limit=2)
        >>> data
        PanopticData: 2 records, 14 classes (8 things: house, tree, ...; 6 stuff: sky, mountain, ...)
        >>> records, categories = data
    """

    records: Dataset | IterableDataset
    categories: Categories

    def __repr__(self) -> str:
        """Returns one line: the numbers of records and classes, and the first names."""
        count = f"{len(self.records)} records" if isinstance(self.records, Dataset) else "streamed records"
        names, stuff = self.categories.names, self.categories.stuff_label_ids
        things = [name for label, name in enumerate(names) if label not in stuff]
        shown = [
            f"{len(chosen)} {kind}: {', '.join(chosen[:SHOWN_NAMES])}{', ...' * (len(chosen) > SHOWN_NAMES)}"
            for kind, chosen in (("things", things), ("stuff", [names[label] for label in stuff]))
            if chosen
        ]
        return f"PanopticData: {count}, {len(names)} classes ({'; '.join(shown)})"


def read_panoptic(
    source: str | Path | PanopticData,
    *,
    split: str | None = None,
    data_format: str | None = None,
    limit: int | None = None,
    categories: Categories | None = None,
    stuff: Sequence[str] | None = None,
    streaming: bool = False,
    files_may_be_missing: bool = False,
) -> PanopticData:
    """Reads an annotated dataset. The format is recognized from the files; docs/data.md describes all six.

    | `data_format`    | files                                                                                      |
    |------------------|--------------------------------------------------------------------------------------------|
    | `coco-panoptic`  | `panoptic.json`, `images/`, `panoptic/`; or the official COCO layout                       |
    | `rows`           | a dataset of `datasets`: on the Hub, saved to disk, or Parquet files                       |
    | `two-channel`    | `images/`, `maps/` (red: class, green: instance), `categories.json`                        |
    | `coco-instances` | `instances.json`, `images/`, maybe `stuff/`; official layout; exports of annotation tools  |
    | `cityscapes`     | `leftImg8bit/SPLIT/`, `gtFine/SPLIT/`                                                      |
    | `semantic`       | `images/`, `maps/` with one class per pixel, `categories.json`                             |

    Records are read when they are used. Each has `image` (PIL, RGB), `image_id` (int), `file_name` (str or None),
    `segmentation` (PIL, RGB: id = R + 256 G + 256^2 B, 0 is void) and `segments_info`, a list of dicts with `id`,
    `label_id`, `iscrowd`, `area` in pixels and `bbox` [x, y, width, height] in pixels.

    Args:
        source: a folder, a Parquet file, the name of a dataset on the Hub, or a `PanopticData`, which is returned
            with the `limit` and `categories` applied.
        split: such as "val2017", if the source has splits.
        data_format: one of `FORMATS`. By default it is recognized.
        limit: maximum number of records, from the first.
        categories: use their label ids; classes are matched by name (`match_labels`). They also say what category ids
            mean if the source does not. By default, the source's own.
        stuff: for COCO instances, such as an annotation tool's export: names of the classes that are stuff. The others
            are things. By default, the file's `isthing` decides, and without it all are things.
        streaming: return an `IterableDataset` with the same records in the same order.
        files_may_be_missing: a missing file of a COCO dataset raises an error only when its record is used.

    Raises:
        ValueError: the format is unknown or not recognized, there is no annotated image, a file is invalid, or a
            class of the source is not among `categories`.

    Examples:
        >>> import tempfile
        >>> from detr_panoptic.data import write_coco_panoptic_dataset
        >>> from detr_panoptic.scenes import SCENE_CATEGORIES, make_scene
        >>> folder = tempfile.mkdtemp()
        >>> _ = write_coco_panoptic_dataset(folder, [make_scene(0)], SCENE_CATEGORIES)
        >>> data = read_panoptic(folder)
        >>> data.records[0]["image"].size, data.categories.names[:3]
        ((256, 256), ('house', 'tree', 'sheep'))
    """
    check_least("limit", limit, 1)
    if isinstance(source, PanopticData):
        if split is not None or data_format is not None or streaming or stuff is not None:
            raise ValueError("`split`, `data_format`, `stuff` and `streaming` do not apply to a `PanopticData`.")
        raw = RawRecords(first_rows(source.records, limit), source.categories)
    else:
        named = None if stuff is None else tuple(stuff)
        options = ReadOptions(split, limit, streaming, files_may_be_missing, categories, named)
        raw = raw_records(str(source), data_format, options)
    if isinstance(raw.rows, Dataset) and len(raw.rows) == 0:
        raise ValueError(f"`source` {str(source)!r} holds no annotated image.")
    if categories is not None:
        raw = relabeled(raw, categories)
    streams = streaming or isinstance(raw.rows, IterableDataset)
    return PanopticData(streamed_records(raw) if streams else map_style_records(raw), raw.categories)


def check_least(name: str, value: Any, least: int) -> None:
    """Raises ValueError unless a value is None or a whole number of at least `least`."""
    if value is not None and not (isinstance(value, int) and value >= least):
        raise ValueError(f"`{name}` must be a whole number of at least {least}, got {value!r}.")


def raw_records(source: str, data_format: str | None, options: ReadOptions) -> RawRecords:
    """Reads a dataset with the reader of its format; decodes nothing; raises ValueError as `read_panoptic`."""
    if data_format is not None and data_format not in FORMATS:
        raise ValueError(f"`data_format` must be one of {', '.join(FORMATS)}, got {data_format!r}.")
    name = data_format or recognize(source, split=options.split)
    if options.stuff is not None and name != COCO_INSTANCES:
        raise ValueError(f"`stuff` applies to {COCO_INSTANCES} only; {name} says itself which classes are stuff.")
    if name == ROWS or (name in (TWO_CHANNEL, SEMANTIC) and (holds_rows(source) or not Path(source).exists())):
        return raw_rows(source, options, map_kind=None if name == ROWS else name)
    readers: dict[str, Callable[[Path, ReadOptions], RawRecords]] = {
        COCO_PANOPTIC_FORMAT: raw_coco_panoptic,
        COCO_INSTANCES: raw_coco_instances,
        CITYSCAPES_FORMAT: raw_cityscapes,
        TWO_CHANNEL: partial(raw_label_maps, kind=TWO_CHANNEL),
        SEMANTIC: partial(raw_label_maps, kind=SEMANTIC),
    }
    return readers[name](Path(source), options)


def recognize(source: str, *, split: str | None = None) -> str:
    """Returns which of `FORMATS` a source has; raises ValueError with what was looked for if it is none."""
    folder = Path(source)
    if is_hub_id(source):
        return ROWS
    files = {
        COCO_PANOPTIC_FORMAT: annotation_paths(folder, split, "panoptic", ".json"),
        COCO_INSTANCES: instance_files(folder, split),
    }
    signs = {
        ROWS: holds_rows(source),
        **{name: any(path.is_file() for path in paths) for name, paths in files.items()},
        CITYSCAPES_FORMAT: (folder / MAPS_FOLDER).is_dir(),
    }
    for name, found in signs.items():
        if found:
            return name
    maps = find_maps(folder, split)
    if maps is not None:
        return kind_of_maps(maps[1])
    hint = splits_hint(folder, None, "panoptic") or splits_hint(folder, None, "instances")
    what = "is in no known format" if split is None else f"has no split {split!r} in a known format"
    names = [str(path.relative_to(folder)) for paths in files.values() for path in paths]
    names += [f"{MAPS_FOLDER}/", f"images/ with {'/, '.join(MAP_FOLDERS)}/", "*.parquet", "dataset_info.json"]
    raise ValueError(f"`source` {source!r} {what}: looked for {', '.join(names)}.{hint}")


PICTURE_FEATURES = Features({"image": Image(), "image_id": Value("int64"), "file_name": Value("string")})
ROWS_AT_ONCE = 1000  # of which the paths are read


def read_images(
    source: str | Path, *, split: str | None = None, data_format: str | None = None, limit: int | None = None
) -> Dataset:
    """Reads the images of a dataset, annotated or not.

    The arguments are those of `read_panoptic`. The source may also be a dataset of `datasets` with one column of
    images, or a folder with images in it and its subfolders.

    Returns:
        Rows with `image`, `image_id` and `file_name` (None if unknown).

    Raises:
        ValueError: as `read_panoptic`; there is no image, or there are several columns of images.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = tempfile.mkdtemp()
        >>> Image.new("RGB", (4, 3)).save(f"{folder}/7.png")
        >>> read_images(folder)[0]["image_id"]
        7
    """
    source = str(source)
    check_least("limit", limit, 1)
    if data_format in (None, ROWS) and (is_hub_id(source) or holds_rows(source)):
        rows: Any = open_rows(source, split=split, streaming=False)
        check_pictures_inside(rows, source)
        return _picture_rows(first_rows(rows, limit), source)
    if data_format is None:
        try:
            recognize(source, split=split)
        except ValueError:
            folder = Path(source) if split is None else Path(source, split)
            names = pictures_below(folder) if folder.is_dir() else []
            if not names:
                raise
            log_left_out(folder, (path.name for path in folder.rglob("*") if path.is_file()))
            return _folder_rows(folder, names[:limit])
    return read_panoptic(source, split=split, data_format=data_format, limit=limit).records


def _folder_rows(folder: Path, names: list[str]) -> Dataset:
    """Returns rows of image files, named relative to a folder."""
    rows = [
        {"image": str((folder / name).absolute()), "image_id": file_image_id(name), "file_name": name}
        for name in names
    ]
    return dataset_of(rows, PICTURE_FEATURES)


def _picture_rows(rows: Dataset, source: str) -> Dataset:
    """Returns the column of images of any rows; without `file_name`, the stored paths are the names."""
    columns = [name for name, feature in rows.features.items() if is_picture_column(feature)]
    if "image" in columns:
        columns = ["image"]
    if len(columns) != 1:
        found = ", ".join(f"{name}: {feature}" for name, feature in rows.features.items())
        expected = "a column `image` or exactly one other column of images"
        raise ValueError(f"`source` {source!r} must have {expected}, got {found}.")
    known = [name for name in ("image_id", "file_name") if name in rows.column_names]
    rows = rows.select_columns([*columns, *known]).rename_columns({columns[0]: "image"})
    return identified(rows, _stored_names(rows)).cast_column("image", Image())


def _stored_names(rows: Dataset) -> list[str | None]:
    """Returns the names of the image files without reading their contents."""
    tables = rows.select_columns("image").with_format("arrow").iter(ROWS_AT_ONCE)
    paths = [path for table in tables for path in pc.struct_field(table["image"], "path").to_pylist()]
    return [PureWindowsPath(path).name if path else None for path in paths]  # either kind of slash
