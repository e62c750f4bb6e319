"""The images that a model runs over: files, datasets and sequences of records behind one protocol."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from datasets import Dataset, Image
from PIL import Image as PILImage

from ..data.folders import IMAGE_SUFFIXES, is_picture
from ..data.images import read_images
from ..data.lazy_records import check_size, name_of, upright_size
from ..data.reading import PanopticData
from ..image_reading import plain_picture, read_picture
from ..scenes.source import SCENES, read_source

Source = str | Path | Sequence[str | Path] | Dataset | PanopticData


class Pictures(Protocol):
    """Images by index."""

    def __len__(self) -> int:
        """Returns the number of images."""

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """Returns the record of one image: `image`, `image_id`, `file_name` and perhaps its annotation.

        Any error raised here concerns this image alone.
        """

    def size_of(self, index: int) -> tuple[int, int]:
        """Returns (width, height) without decoding the image."""

    def name_of(self, index: int) -> str:
        """Returns the name of an image for messages."""

    def path_of(self, index: int) -> Path:
        """Returns the file name of an image, or one made of its id."""

    def stored(self, index: int) -> dict[str, Any]:
        """Returns `image` as a file's `path` or `bytes`, `image_id` and `file_name`, without decoding."""


class DatasetPictures:
    """Records of a dataset.

    Args:
        records: canonical records with `image`, `image_id` and `file_name`; annotations are read if they are there.

    Raises:
        ValueError: two records have the same id.
    """

    def __init__(self, records: Dataset) -> None:
        names = records.with_format(None).select_columns(["image", "image_id", "file_name"])
        self._has_truth = "segmentation" in records.column_names
        self._records = records
        self._stored = names.cast_column("image", Image(decode=False))
        columns = self._stored.select_columns(["image_id", "file_name"])
        self._ids: list[int] = columns["image_id"][:]
        self._file_names: list[str | None] = columns["file_name"][:]
        ids, counts = np.unique(np.array(self._ids), return_counts=True)
        if (counts > 1).any():
            raise ValueError(f"`image_id` must be unique in the dataset, got {ids[counts > 1][0]} more than once.")

    def __len__(self) -> int:
        """Returns the number of records."""
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns a record, its image upright and RGB."""
        record = self._records[index]
        if self._has_truth:
            check_size(record, record["segmentation"].size)
        return record

    def size_of(self, index: int) -> tuple[int, int]:
        """Returns (width, height) from the file's header."""
        return upright_size(self._stored[index]["image"])

    def name_of(self, index: int) -> str:
        """Returns the id and the file name."""
        return name_of({"image_id": self._ids[index], "file_name": self._file_names[index]})

    def path_of(self, index: int) -> Path:
        """Returns the file name, or one made of the id."""
        return Path(self._file_names[index] or f"{self._ids[index]:012d}.png")

    def stored(self, index: int) -> dict[str, Any]:
        """Returns the image as it is stored, its id and its file name."""
        return dict(self._stored[index])


class FilePictures:
    """Image files; their ids are their positions, from 1.

    Args:
        paths: of the files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def __len__(self) -> int:
        """Returns the number of files."""
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns the image, upright and RGB, with its id and path."""
        path = self.paths[index]
        try:
            image = plain_picture(read_picture(path))
        except ValueError as error:
            raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
        return {"image": image, "image_id": index + 1, "file_name": str(path)}

    def size_of(self, index: int) -> tuple[int, int]:
        """Returns (width, height) from the file's header."""
        return upright_size({"path": str(self.paths[index])})

    def name_of(self, index: int) -> str:
        """Returns the path."""
        return str(self.paths[index])

    def path_of(self, index: int) -> Path:
        """Returns the path."""
        return self.paths[index]

    def stored(self, index: int) -> dict[str, Any]:
        """Returns the path, the id and the file name."""
        path = self.paths[index]
        return {"image": {"path": str(path), "bytes": None}, "image_id": index + 1, "file_name": path.name}


class RecordPictures:
    """Records in memory, or any other sequence of them.

    Args:
        records: mappings with an `image` and, if they have them, `image_id`, `file_name` and annotations.
    """

    def __init__(self, records: Sequence[Mapping[str, Any]]) -> None:
        self._records = records

    def __len__(self) -> int:
        """Returns the number of records."""
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns a record."""
        return {"image_id": index + 1, "file_name": None, **self._records[index]}

    def size_of(self, index: int) -> tuple[int, int]:
        """Returns (width, height)."""
        return self._records[index]["image"].size

    def name_of(self, index: int) -> str:
        """Returns the number of the record."""
        return f"Image {index + 1}"

    def path_of(self, index: int) -> Path:
        """Returns a file name made of the record's number."""
        return Path(f"{index + 1:012d}.png")

    def stored(self, index: int) -> dict[str, Any]:
        """Returns the image as PNG bytes, its id and its file name."""
        record, buffer = self[index], BytesIO()
        record["image"].save(buffer, format="PNG")
        return {
            "image": {"path": None, "bytes": buffer.getvalue()},
            "image_id": record["image_id"],
            "file_name": record["file_name"],
        }


def open_pictures(source: Any, **options: Any) -> tuple[Pictures, list[str]]:
    """Opens whatever contains images.

    Args:
        source: a path to an image, a folder of images or a dataset; a list of paths to images and folders; "scenes";
            a `Dataset`, a `PanopticData` or a sequence of records.
        options: `split`, `data_format` and `limit` of `read_panoptic`.

    Returns:
        The images, and a message for each path that leads to none.

    Raises:
        ValueError: the source contains no images.
    """
    limit = options.get("limit")
    if isinstance(source, PanopticData):
        source = source.records
    if isinstance(source, Dataset):
        return DatasetPictures(source if limit is None else source.select(range(min(limit, len(source))))), []
    if isinstance(source, str | Path):
        if str(source) == SCENES:
            return DatasetPictures(read_source(SCENES, **options).records), []
        if not _is_file_or_plain_folder(Path(source)):
            return DatasetPictures(read_images(source, **options)), []
        source = [source]
    if not isinstance(source, Iterable):
        raise TypeError(f"`source` must be a path, a list of paths or a dataset, got {type(source).__name__}.")
    items: Any = source if hasattr(source, "__getitem__") and hasattr(source, "__len__") else list(source)
    if len(items) and not isinstance(items[0], str | Path):
        return RecordPictures(items), []
    paths, missing = expand_paths(items)
    if not paths:
        raise ValueError(f"`source` contains no images: {'; '.join(missing) or 'it is empty'}.")
    return FilePictures(paths[:limit]), missing


def expand_paths(names: Iterable[str | Path]) -> tuple[list[Path], list[str]]:
    """Finds the image files that some paths mean.

    Args:
        names: files, and folders whose images are taken, sorted; subfolders are not searched.

    Returns:
        The files, and a message for each path that leads to none.
    """
    paths: list[Path] = []
    missing = []
    for path in map(Path, names):
        if path.is_dir():
            inside = sorted(child for child in path.iterdir() if is_picture(child.name) and child.is_file())
            paths += inside
            if not inside:
                missing.append(f"no images in {path} (expected {', '.join(IMAGE_SUFFIXES)})")
        elif path.is_file():
            paths.append(path)
        else:
            missing.append(f"no such file or folder: {path}")
    return paths, missing


def unique_stems(paths: Sequence[Path], endings: Sequence[str], *, output: Path) -> list[str]:
    """Chooses a name for the results of each image such that no two files collide and no input is overwritten.

    Args:
        paths: of the images; `a/x.jpg` and `b/x.jpg` become `x` and `x_2`.
        endings: of the files that are written for each name.
        output: folder of the results; images in it keep their files.
    """
    # Case is ignored: on most desktops X.json and x.json are the same file.
    taken = {path.name.casefold() for path in paths if path.parent.resolve() == output.resolve()}
    stems = []
    for path in paths:
        number, stem = 1, path.stem
        while taken & (files := {f"{stem}{ending}".casefold() for ending in endings}):
            number += 1
            stem = f"{path.stem}_{number}"
        taken |= files
        stems.append(stem)
    return stems


def record_image(record: Mapping[str, Any]) -> PILImage.Image:
    """Returns the image of a record, upright and RGB."""
    return plain_picture(record["image"])


def _is_file_or_plain_folder(path: Path) -> bool:
    """Whether a path is an image file, or a folder with images right inside and nothing of a dataset's layout."""
    if path.is_file():
        return is_picture(path.name)
    return path.is_dir() and not any(
        child.is_dir() or child.suffix in (".json", ".parquet") for child in path.iterdir()
    )
