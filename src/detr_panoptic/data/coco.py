"""Reader of COCO panoptic folders.

Images and annotations are matched by `image_id`: their orders differ, in the official files too.
"""

import json
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

from datasets import Dataset

from ..categories import Categories
from .records import panoptic_features


class CocoPanopticPaths(NamedTuple):
    """Where the three parts of a COCO panoptic dataset lie."""

    json_path: Path
    image_dir: Path
    segmentation_dir: Path


def find_coco_panoptic(folder: str | Path, *, split: str | None = None) -> CocoPanopticPaths:
    """Find the parts of a COCO panoptic dataset.

    Args:
        folder: a folder with `panoptic.json`, `images/` and `panoptic/`; or, with `split`, one in COCO's own layout.
        split: such as "val2017", for `annotations/panoptic_val2017.json`, `annotations/panoptic_val2017/` (or
            `panoptic_val2017/`, as older unpacking guides have it) and `val2017/`.

    Raises:
        ValueError: if a part is missing; the message names the paths looked for.
    """
    folder = Path(folder)
    if split is None:
        json_paths, image_dirs = [folder / "panoptic.json"], [folder / "images"]
        segmentation_dirs = [folder / "panoptic"]
    else:
        json_paths = [folder / "annotations" / f"panoptic_{split}.json"]
        image_dirs = [folder / split, folder / "images" / split]
        segmentation_dirs = [folder / "annotations" / f"panoptic_{split}", folder / f"panoptic_{split}"]
    return CocoPanopticPaths(*(_first_existing(paths) for paths in (json_paths, image_dirs, segmentation_dirs)))


def _first_existing(paths: list[Path]) -> Path:
    for path in paths:
        if path.exists():
            return path
    raise ValueError(f"Expected {' or '.join(str(path) for path in paths)} to exist, found neither file nor folder.")


def read_coco_panoptic(
    json_path: str | Path, image_dir: str | Path, segmentation_dir: str | Path, *, limit: int | None = None
) -> tuple[Dataset, Categories]:
    """Read a COCO panoptic dataset; pictures are opened only when a row is asked for.

    Args:
        json_path: file with `images`, `annotations` and `categories`.
        image_dir: folder of the photographs.
        segmentation_dir: folder of the id maps, RGB PNG.
        limit: number of annotations to read, from the first.

    Returns:
        Rows with the columns of `panoptic_features`, in the order of `annotations`; and the labels, in the order of
        `categories`.

    Raises:
        ValueError: if a picture is missing, an annotation names an unknown image or category, or a path leaves its
            folder.
    """
    json_path = Path(json_path)
    contents = json.loads(json_path.read_text(encoding="utf-8"))
    missing = [key for key in ("images", "annotations", "categories") if key not in contents]
    if missing:
        raise ValueError(f"{json_path} must hold `images`, `annotations` and `categories`, {missing} not found.")
    categories = Categories.from_coco(contents["categories"])
    images = {image["id"]: image for image in contents["images"]}
    columns: dict[str, list[Any]] = {name: [] for name in panoptic_features()}
    for annotation in contents["annotations"][:limit]:
        image_id = annotation["image_id"]
        where = f"{json_path}, annotation of image {image_id}"
        if image_id not in images:
            raise ValueError(f"{where}: `images` must hold this id, but has only {len(images)} others.")
        columns["image"].append(_inside(Path(image_dir), images[image_id]["file_name"], where))
        columns["image_id"].append(image_id)
        columns["segmentation"].append(_inside(Path(segmentation_dir), annotation["file_name"], where))
        columns["segments_info"].append([_segment(entry, categories, where) for entry in annotation["segments_info"]])
    return Dataset.from_dict(columns, features=panoptic_features()), categories


def _segment(entry: Mapping[str, Any], categories: Categories, where: str) -> dict[str, Any]:
    try:
        label_id = categories.label_id(entry["category_id"])
    except ValueError as error:
        raise ValueError(f"{where}, segment {entry['id']}: {error}") from error
    kept = {key: entry[key] for key in ("id", "area", "bbox")}
    return {**kept, "label_id": label_id, "iscrowd": entry.get("iscrowd", 0)}


def _inside(folder: Path, file_name: str, where: str) -> str:
    """Absolute path of an existing file of `folder`.

    The check is on the text of the name: single files that are symbolic links to another disk are common and fine.
    """
    name = PureWindowsPath(file_name)  # reads both kinds of slash
    if name.anchor or ".." in name.parts:
        raise ValueError(f"{where}: expected a file name inside {folder}, got {file_name!r}.")
    path = (folder / file_name).absolute()
    if not path.is_file():
        raise ValueError(f"{where}: expected the file {path}, which does not exist.")
    return str(path)
