"""Images of a dataset without annotations."""

from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset, Features, Image, Value

from .folders import pictures_below
from .lazy_records import dataset_of, file_image_id
from .reading import ROWS, check_limit, read_panoptic, recognize
from .rows import check_pictures_inside, first_rows, holds_rows, identified, is_hub_id, is_picture_column, open_rows

ROWS_AT_ONCE = 1000  # of which the paths are read


def read_images(
    source: str | Path,
    *,
    split: str | None = None,
    data_format: str | None = None,
    limit: int | None = None,
    files_may_be_missing: bool = False,
) -> Dataset:
    """Reads the images of a dataset, annotated or not.

    Args:
        source: anything that `read_panoptic` takes; a dataset of `datasets` with one column of images; or a folder
            with images in it and its subfolders.
        split: name of the split, if the source has splits.
        data_format: as of `read_panoptic`. By default it is recognized.
        limit: maximum number of images, from the first.
        files_may_be_missing: as of `read_panoptic`.

    Returns:
        Rows with `image`, `image_id` and `file_name` (None if unknown).

    Raises:
        ValueError: as `read_panoptic`; there is no image, or there are several columns of images.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = tempfile.mkdtemp()
        >>> Image.new("RGB", (4, 3)).save(f"{folder}/7.png")
        >>> read_images(folder)[0]["image_id"]
        7
    """
    source = str(source)
    check_limit(limit)
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
            return _folder_rows(folder, names[:limit])
    data: Any = read_panoptic(
        source, split=split, data_format=data_format, limit=limit, files_may_be_missing=files_may_be_missing
    )
    return data.records


def _folder_rows(folder: Path, names: list[str]) -> Dataset:
    """Returns rows of image files, named relative to a folder."""
    rows = [
        {"image": str((folder / name).absolute()), "image_id": file_image_id(name), "file_name": name}
        for name in names
    ]
    return dataset_of(rows, Features({"image": Image(), "image_id": Value("int64"), "file_name": Value("string")}))


def _picture_rows(rows: Dataset, source: str) -> Dataset:
    """Returns the column of images of any rows; without `file_name`, the stored paths are the names."""
    columns = [name for name, feature in rows.features.items() if is_picture_column(feature)]
    if "image" in columns:
        columns = ["image"]
    if len(columns) != 1:
        found = ", ".join(f"{name}: {feature}" for name, feature in rows.features.items())
        raise ValueError(
            f"`source` {source!r} must have a column `image` or exactly one other column of images, got {found}."
        )
    known = [name for name in ("image_id", "file_name") if name in rows.column_names]
    rows = rows.select_columns([*columns, *known]).rename_columns({columns[0]: "image"})
    names = None if "file_name" in known else list(_stored_names(rows))
    return identified(rows, names).cast_column("image", Image())


def _stored_names(rows: Dataset) -> Iterator[str | None]:
    """Yields the names of the image files without reading their contents."""
    for table in rows.select_columns("image").with_format("arrow").iter(ROWS_AT_ONCE):
        for path in pc.struct_field(table["image"], "path").to_pylist():
            yield PureWindowsPath(path).name if path else None  # either kind of slash
