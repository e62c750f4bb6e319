"""Reader of COCO panoptic folders.

Images and annotations are matched by `image_id`: their orders differ, in the official files too.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset

from ..categories import Categories
from .folders import file_inside, first_existing, read_json
from .lazy_records import RawRecords, image_id_of, opened
from .records import Record, fill_measures, panoptic_features, segmentation_ids

BOX_LENGTH = 4


class CocoPanopticPaths(NamedTuple):
    """Where the three parts of a COCO panoptic dataset lie."""

    json_path: Path
    image_dir: Path
    segmentation_dir: Path


def find_coco_panoptic(folder: str | Path, *, split: str | None = None) -> CocoPanopticPaths:
    """Find the parts of a COCO panoptic dataset.

    Args:
        folder: a folder with `panoptic.json`, `images/` and `panoptic/`; with `split`, one in COCO's own layout, or
            one with a folder of that name which holds the three parts.
        split: such as "val2017", for `annotations/panoptic_val2017.json`, `annotations/panoptic_val2017/` (or
            `panoptic_val2017/`, as older unpacking guides have it) and `val2017/`.

    Raises:
        ValueError: if a part is missing; the message names the paths looked for.
    """
    folder = Path(folder)
    if split is None:
        json_paths, image_dirs = [folder / "panoptic.json"], [folder / "images"]
        segmentation_dirs = [folder / "panoptic"]
        hint = splits_hint(folder, "panoptic")
    else:
        json_paths = json_candidates(folder, split, "panoptic")
        image_dirs = image_dir_candidates(folder, split)
        segmentation_dirs = [
            folder / split / "panoptic",
            folder / "annotations" / f"panoptic_{split}",
            folder / f"panoptic_{split}",
        ]
        hint = ""
    return CocoPanopticPaths(
        first_existing(json_paths, hint=hint), first_existing(image_dirs), first_existing(segmentation_dirs)
    )


def json_candidates(folder: Path, split: str | None, kind: str) -> list[Path]:
    """Where the annotations of a split may lie, `kind` being "panoptic" or "instances"."""
    if split is None:
        return [folder / f"{kind}.json"]
    return [
        folder / split / f"{kind}.json",
        folder / "annotations" / f"{kind}_{split}.json",
        folder / f"{kind}_{split}.json",
    ]


def image_dir_candidates(folder: Path, split: str | None) -> list[Path]:
    """Where the pictures of a split may lie."""
    if split is None:
        return [folder / "images"]
    return [folder / split / "images", folder / "images" / split, folder / split]


def splits_hint(folder: Path, kind: str) -> str:
    """End of an error: the splits that the folder has after all."""
    names = {path.stem.removeprefix(f"{kind}_") for path in folder.glob(f"annotations/{kind}_*.json")}
    names |= {path.parent.name for path in folder.glob(f"*/{kind}.json")}
    return f" There are splits, name one with `split`: {', '.join(sorted(names))}." if names else ""


def raw_coco_panoptic(paths: CocoPanopticPaths, *, limit: int | None = None) -> RawRecords:
    """Read a COCO panoptic dataset.

    Args:
        paths: the file with `images`, `annotations` and `categories`, and the folders of photographs and of id maps.
        limit: number of annotations to read, from the first.

    Returns:
        Rows in the order of `annotations`, and the labels, in the order of `categories`. Areas and boxes that the file
        does not give are measured when a row is asked for.

    Raises:
        ValueError: if a picture is missing, an annotation names an unknown image or category, an id is there twice, or
            a path leaves its folder.
    """
    contents = read_coco_json(paths.json_path)
    categories = Categories.from_coco(contents["categories"])
    images = by_unique_id(contents["images"], paths.json_path, "id")
    annotations = contents["annotations"][:limit]
    by_unique_id(annotations, paths.json_path, "image_id")
    columns: dict[str, list[Any]] = {name: [] for name in panoptic_features()}
    for annotation in annotations:
        image_id = annotation["image_id"]
        where = f"{paths.json_path}, annotation of image {image_id}"
        if image_id not in images:
            raise ValueError(f"{where}: `images` must hold this id, but has only {len(images)} others.")
        file_name = images[image_id]["file_name"]
        columns["image"].append(str(file_inside(paths.image_dir, file_name, where)))
        columns["image_id"].append(image_id_of(image_id))
        columns["file_name"].append(file_name)
        columns["segmentation"].append(str(file_inside(paths.segmentation_dir, annotation["file_name"], where)))
        columns["segments_info"].append([_segment(entry, categories, where) for entry in annotation["segments_info"]])
    rows = Dataset.from_dict(columns, features=panoptic_features(categories))
    complete = all(None not in segment.values() for segments in columns["segments_info"] for segment in segments)
    return RawRecords(rows, categories, None if complete else _measure_missing)


def read_coco_json(path: Path) -> dict[str, Any]:
    """A COCO file.

    Raises:
        ValueError: if it lacks one of its three lists.
    """
    contents = read_json(path)
    missing = [key for key in ("images", "annotations", "categories") if key not in contents]
    if missing:
        raise ValueError(f"{path} must hold `images`, `annotations` and `categories`, {missing} not found.")
    return contents


def by_unique_id(entries: list[dict[str, Any]], path: Path, key: str) -> dict[Any, dict[str, Any]]:
    """Entries by one of their values.

    Raises:
        ValueError: if one has no such value, or two have the same.
    """
    found: dict[Any, dict[str, Any]] = {}
    for entry in entries:
        if key not in entry:
            raise ValueError(f"{path}: expected `{key}` in each entry, got {str(entry)[:80]}.")
        if entry[key] in found:
            raise ValueError(f"{path}: expected each `{key}` once, got {entry[key]!r} twice.")
        found[entry[key]] = entry
    return found


def _measure_missing(record: Record) -> Record:
    ids = segmentation_ids(opened(record["segmentation"]))
    return {**record, "segments_info": fill_measures(ids, record["segments_info"])}


def _segment(entry: Mapping[str, Any], categories: Categories, where: str) -> dict[str, Any]:
    missing = [key for key in ("id", "category_id") if key not in entry]
    if missing:
        raise ValueError(f"{where}: a segment must have `id` and `category_id`, {missing} not found in {dict(entry)}.")
    where = f"{where}, segment {entry['id']}"
    try:
        label_id = categories.label_id(entry["category_id"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return {
        "id": entry["id"],
        "label_id": label_id,
        "iscrowd": int(entry.get("iscrowd", 0)),
        "area": whole(entry.get("area"), f"{where}: `area`"),
        "bbox": whole_box(entry.get("bbox"), f"{where}: `bbox`"),
    }


def whole(value: Any, where: str) -> int | None:
    """A number of pixels, or None.

    Raises:
        ValueError: it is not whole.
    """
    if value is None:
        return None
    if int(value) != value:
        raise ValueError(f"{where} must be in whole pixels, got {value}.")
    return int(value)


def whole_box(box: Any, where: str) -> list[int | None] | None:
    """A box [x, y, width, height] in whole pixels, or None.

    Raises:
        ValueError: it is something else.
    """
    if box is None:
        return None
    if len(box) != BOX_LENGTH:
        raise ValueError(f"{where} must be [x, y, width, height], got {box}.")
    return [whole(value, where) for value in box]
