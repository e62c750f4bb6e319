"""The images that a model runs over: files and datasets as one type."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Image
from PIL import Image as PILImage

from ..data.folders import IMAGE_SUFFIXES, is_picture, log_left_out
from ..data.lazy_records import UPRIGHT, check_size, name_of, opened, orientation_of, upright_size
from ..data.reading import PICTURE_FEATURES, PanopticData, check_least, read_images
from ..image_reading import picture_to_tensor, read_picture
from ..scenes.source import SCENES, read_source


class Pictures:
    """Images by index, with their annotations if the records have any; ValueError if two have the same id.

    `missing` has a message for each path that leads to no image.
    """

    def __init__(self, records: Dataset, missing: Sequence[str] = ()) -> None:
        self.missing = missing
        stored = records.with_format(None).select_columns(["image", "image_id", "file_name"])
        self._stored = stored.cast_column("image", Image(decode=False))
        has_truth = "segmentation" in records.features
        self._records = records.cast_column("image", Image(decode=False)) if has_truth else self._stored
        self._ids: list[int] = stored["image_id"][:]
        self._file_names: list[str | None] = stored["file_name"][:]
        ids, counts = np.unique(np.array(self._ids), return_counts=True)
        if (counts > 1).any():
            raise ValueError(f"`image_id` must be unique in the dataset, got {ids[counts > 1][0]} more than once.")

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns a record, its image upright and RGB; any error raised here concerns this image alone."""
        record = self._records[index]
        if "segmentation" in record:
            check_size(record, record["segmentation"].size)
        stored = record["image"]
        is_file = not isinstance(stored, PILImage.Image) and stored["bytes"] is None
        picture = read_picture(stored["path"]) if is_file else opened(stored)
        return {**record, "image": plain_picture(picture)}

    def size_of(self, index: int) -> tuple[int, int]:
        """Returns (width, height) from the file's header."""
        return upright_size(self.stored(index)["image"])

    def name_of(self, index: int) -> str:
        """Returns the id and the file name, for messages."""
        return name_of({"image_id": self._ids[index], "file_name": self._file_names[index]})

    def id_of(self, index: int) -> int:
        """Returns the `image_id`."""
        return self._ids[index]

    def bytes_of(self, index: int) -> int:
        """Returns the size of the image's file in bytes; 0 if it is not there."""
        stored = self.stored(index)["image"]
        if stored["bytes"] is not None:
            return len(stored["bytes"])
        return Path(stored["path"]).stat().st_size if Path(stored["path"]).is_file() else 0

    def path_of(self, index: int) -> Path:
        """Returns the file name, or one made of the id."""
        return Path(self._file_names[index] or f"{self._ids[index]:012d}.png")

    def stored(self, index: int) -> dict[str, Any]:
        """Returns `image` as its file's `path` or `bytes`, `image_id` and `file_name`, without decoding."""
        return dict(self._stored[index])


def plain_picture(picture: PILImage.Image) -> PILImage.Image:
    """Returns the picture as the model sees it: upright, RGB, 8 bits; errors as in `picture_to_tensor`."""
    picture.load()  # a broken file raises here, not in `orientation_of`, which ignores errors
    if picture.mode == "RGB" and orientation_of(picture) == UPRIGHT:
        return picture  # large ones are not copied
    return PILImage.fromarray(picture_to_tensor(picture).permute(1, 2, 0).contiguous().numpy())


def open_pictures(source: Any, *, limit: int | None = None, **options: Any) -> Pictures:
    """Opens whatever contains images, at most `limit`: the sources of `Predictor.predict`, or `Pictures`.

    Raises:
        ValueError: the source contains no images.
        TypeError: the source is something else.
    """
    check_least("limit", limit, 1)
    if isinstance(source, Pictures):
        return source
    if isinstance(source, PanopticData):
        source = source.records
    if isinstance(source, Dataset):
        return Pictures(source if limit is None else source.select(range(min(limit, len(source)))))
    if isinstance(source, str | Path):
        if str(source) == SCENES:
            return Pictures(read_source(SCENES, limit=limit, **options).records)
        if not _is_file_or_plain_folder(Path(source)):
            return Pictures(read_images(source, limit=limit, **options))
        source = [source]
    if not isinstance(source, Iterable):
        raise TypeError(f"`source` must be a path, a list of paths or a dataset, got {type(source).__name__}.")
    if given := [name for name, value in options.items() if value is not None]:
        raise ValueError(
            f"`{given[0]}` is for datasets, got {options[given[0]]!r} with image files or folders of them."
        )
    paths, missing = _expanded(source)
    if not paths:
        raise ValueError(f"`source` contains no images: {'; '.join(missing) or 'it is empty'}.")
    # File names need not be valid UTF-8, but columns of text do.
    names = [str(path).encode("utf-8", "backslashreplace").decode() for path in paths[:limit]]
    images = [
        {"path": name, "bytes": None if name == str(path) else path.read_bytes()}
        for name, path in zip(names, paths, strict=False)
    ]
    columns = {"image": images, "image_id": range(1, len(names) + 1), "file_name": names}
    return Pictures(Dataset.from_dict(columns, features=PICTURE_FEATURES), missing)


def _expanded(names: Iterable[str | Path]) -> tuple[list[Path], list[str]]:
    """Returns the image files that some paths mean, without subfolders, and a message for each that means none."""
    paths: list[Path] = []
    missing = []
    for path in map(Path, names):
        if path.is_dir():
            files = [child for child in path.iterdir() if child.is_file()]
            log_left_out(path, (child.name for child in files))
            inside = sorted(child for child in files if is_picture(child.name))
            paths += inside
            if not inside:
                missing.append(f"no images in {path} (expected {', '.join(IMAGE_SUFFIXES)})")
        elif path.is_file():
            paths.append(path)
        else:
            missing.append(f"no such file or folder: {path}")
    return paths, missing


def unique_stems(paths: Sequence[Path], endings: Sequence[str], *, output: Path) -> list[str]:
    """Chooses a name for each image's results such that no two files collide and no input in `output` is overwritten.

    `a/x.jpg` and `b/x.jpg` become `x` and `x_2`; `endings` are those of the files written for each name.
    """
    # Case is ignored: on most desktops X.json and x.json are the same file.
    home = output.resolve()
    inside = {parent for parent in {path.parent for path in paths} if parent.resolve() == home}
    taken = {path.name.casefold() for path in paths if path.parent in inside}
    stems = []
    for path in paths:
        number, stem = 1, path.stem
        while taken & (files := {f"{stem}{ending}".casefold() for ending in endings}):
            number += 1
            stem = f"{path.stem}_{number}"
        taken |= files
        stems.append(stem)
    return stems


def _is_file_or_plain_folder(path: Path) -> bool:
    """Returns whether a path is an image file, or a folder that contains images and no dataset."""
    if path.is_file():
        return is_picture(path.name)
    return path.is_dir() and not any(
        child.is_dir() or child.suffix in (".json", ".parquet") for child in path.iterdir()
    )
