"""Files of datasets: images and maps of the same name, JSON, lists of categories."""

import json
import logging
import os
import reprlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..image_reading import FORMATS
from .categories import Categories
from .findings import Report, raising
from .plain_text import listing

try:
    from pillow_heif import register_heif_opener
except ImportError:
    HEIF_SUFFIXES: tuple[str, ...] = ()
else:
    register_heif_opener()
    FORMATS.append("HEIF")
    HEIF_SUFFIXES = (".heic", ".heif")

IMAGE_SUFFIXES = (
    *HEIF_SUFFIXES,
    *(".avif", ".bmp", ".gif", ".j2k", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"),
    *(".tif", ".tiff", ".webp"),
)
"""Files with these suffixes, in upper or lower case, are images. Names that begin with a dot are left out."""
CATEGORIES_FILE = "categories.json"

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 2, 60, 60, 24

_logger = logging.getLogger(__name__)


def first_existing(paths: Sequence[Path], *, hint: str = "") -> Path:
    """Returns the first of some paths that exists; raises ValueError with all of them and the hint if none does."""
    for path in paths:
        if path.exists():
            return path
    looked_for = " or ".join(dict.fromkeys(str(path) for path in paths))
    raise ValueError(f"Expected {looked_for} to exist, found neither file nor folder.{hint}")


def pictures_below(folder: Path) -> list[str]:
    """Returns the names of all images in a folder and its subfolders, relative to it, without hidden ones, sorted."""
    names: list[str] = []
    for parent, subfolders, files in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        names += [Path(parent, name).relative_to(folder).as_posix() for name in files if is_picture(name)]
    return sorted(names)


def is_picture(name: str) -> bool:
    """Returns whether a file name has an image suffix and is not hidden."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def log_left_out(folder: Path, names: Iterable[str]) -> None:
    """Logs a warning with the number and the first names of the files that are not images."""
    others = sorted(name for name in names if not is_picture(name) and not name.startswith("."))
    if others:
        hint = "; HEIC needs `pip install pillow-heif`" if any(n.lower().endswith(".heic") for n in others) else ""
        message = "%s: %s of the files are not images and are left out: %s%s."
        _logger.warning(message, folder, len(others), listing(others), hint)


def paired_by_name(
    image_names: Iterable[str], map_names: Iterable[str], *, where: str, report: Report | None = None
) -> list[tuple[str, str]]:
    """Pairs images and maps whose names differ only in the suffix, in the order of the maps; each map needs one."""
    report = report or raising(Path(where))
    images: dict[str, str] = {}
    for name in image_names:
        stem = name.rpartition(".")[0]
        if stem in images:
            report("repeated-image", name, f"expected one image of each name, got {images[stem]!r} and {name!r}")
        images[stem] = name
    pairs = []
    for name in map_names:
        image = images.pop(name.rpartition(".")[0], None)
        if image is None:
            report("unreadable-image", name, "expected an image for each map, found none")
        else:
            pairs.append((image, name))
    if images:
        _logger.warning("%s: %d images have no map and are left out, first %r.", where, len(images), min(images))
    return pairs


def read_categories(path: Path, *, kind_needed: bool = True) -> Categories:
    """Reads categories from a JSON file: a list of {id, name, isthing}, or one under the key `categories`.

    Unless the kind is needed, an entry without `isthing` is stuff. Raises ValueError, with the name of the file.
    """
    entries = read_json(path)
    if isinstance(entries, dict):
        entries = entries.get("categories")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path} must hold a list of categories {{id, name, isthing}}, got {excerpt(entries)}.")
    try:
        return Categories.from_coco(entries if kind_needed else [{"isthing": 0, **entry} for entry in entries])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_json(path: Path) -> Any:
    """Reads a JSON file; raises ValueError with its name if it is missing or not JSON."""
    if not path.is_file():
        raise ValueError(f"Expected the file {path}, which does not exist.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON: {error}") from error


def excerpt(value: Any) -> str:
    """Returns the beginning of a value from a file, which may be huge, for an error message."""
    return _SHORT.repr(value)
