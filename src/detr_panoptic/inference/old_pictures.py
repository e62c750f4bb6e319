"""Images by index for a long run: the records of a dataset, or image files. Imports `datasets` and torch."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Image

from ..data.lazy_records import check_size, name_of, upright_size
from .old_prediction import read_image


def file_name_of(file_name: str | None, image_id: int) -> str:
    """The name of a picture, or what it is called where it has none."""
    return file_name or f"{image_id:012d}.png"


class DatasetPictures:
    """Records of a dataset.

    Args:
        records: canonical ones; without truth, anything with their `image`, `image_id` and `file_name`.
        with_truth: whether their maps are read, too, and must fit their pictures.

    Raises:
        ValueError: two records have one id.
    """

    def __init__(self, records: Dataset, *, with_truth: bool) -> None:
        """Keep the records, and a view of them that opens no picture."""
        pictures = records.with_format(None).select_columns(["image", "image_id", "file_name"])
        self._records = records if with_truth else pictures
        self._with_truth = with_truth
        self._stored = pictures.cast_column("image", Image(decode=False))
        ids, counts = np.unique(np.array(pictures.with_format("numpy")["image_id"]), return_counts=True)
        if (counts > 1).any():
            raise ValueError(f"`data` must have each `image_id` once, got {ids[counts > 1][0]} more than once.")

    def __len__(self) -> int:
        """How many."""
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A record, its picture upright and RGB."""
        record = self._records[index]
        if self._with_truth:
            check_size(record, record["segmentation"].size)
        return record

    def size_of(self, index: int) -> tuple[int, int]:
        """(width, height), from the head of the file."""
        return upright_size(self._stored[index]["image"])

    def name_of(self, index: int) -> str:
        """Id and file name."""
        return name_of(self._stored[index])

    @property
    def paths(self) -> list[Path]:
        """The file names; of a picture that has none, one made of its id."""
        columns = self._stored.with_format(None)
        return [Path(file_name_of(*pair)) for pair in zip(columns["file_name"], columns["image_id"], strict=True)]

    def stored_picture(self, index: int) -> dict[str, Any]:
        """`image` as it is stored, `image_id` and `file_name`."""
        return dict(self._stored[index])

    def fingerprint(self) -> str:
        """A text that tells other images from these, by their ids."""
        ids = np.array(self._stored.with_format("numpy")["image_id"], dtype=np.int64)
        return hashlib.blake2b(ids.tobytes(), digest_size=8).hexdigest()


class ImageFiles:
    """Image files; their ids are their places, from 1.

    Args:
        paths: the files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """Keep the paths."""
        self.paths = paths

    def __len__(self) -> int:
        """How many."""
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The picture, upright and RGB, its id and its path."""
        return {"image": read_image(self.paths[index]), "image_id": index + 1, "file_name": str(self.paths[index])}

    def size_of(self, index: int) -> tuple[int, int]:
        """(width, height), from the head of the file."""
        return upright_size({"path": str(self.paths[index])})

    def name_of(self, index: int) -> str:
        """The path."""
        return str(self.paths[index])

    def stored_picture(self, index: int) -> dict[str, Any]:
        """`image` as it is stored, `image_id` and `file_name`."""
        path = self.paths[index]
        return {"image": {"path": str(path), "bytes": None}, "image_id": index + 1, "file_name": path.name}

    def fingerprint(self) -> str:
        """A text that tells other images from these, by their paths."""
        digest = hashlib.blake2b(digest_size=8)
        for path in self.paths:
            digest.update(os.fsencode(path) + b"\n")
        return digest.hexdigest()
