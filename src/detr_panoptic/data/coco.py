"""Reader of COCO panoptic folders.

Images and annotations are matched by `image_id`: their orders differ, in the official files too.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset

from ..segment_ids import MAX_ID, VOID_ID
from .categories import Categories
from .contained_paths import file_inside
from .folders import excerpt, first_existing, named_categories, read_json
from .lazy_records import RawRecords, image_id_of, opened
from .records import Record, fill_measures, panoptic_features, segmentation_ids

BOX_LENGTH = 4
MAX_WHOLE = 2**53  # JSON readers with floats for numbers still read it exactly
KEY = (int, str)  # image ids may be either
IMAGE_KEYS = {"id": KEY, "file_name": (str,)}
ANNOTATION_KEYS = {"image_id": KEY, "file_name": (str,), "segments_info": (list,)}
SEGMENT_KEYS = {"id": (int,), "category_id": (int,)}
LISTS = ("images", "annotations", "categories")
TYPE_NAMES = {int: "a whole number", str: "a text", list: "a list"}


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


def raw_coco_panoptic(
    paths: CocoPanopticPaths, *, limit: int | None = None, files_may_be_missing: bool = False
) -> RawRecords:
    """Read a COCO panoptic dataset.

    Args:
        paths: the file with `images`, `annotations` and `categories`, and the folders of photographs and of id maps.
        limit: number of annotations to read, from the first.
        files_may_be_missing: as of `read_panoptic`.

    Returns:
        Rows in the order of `annotations`, and the labels, in the order of `categories`. Areas and boxes that the file
        does not give are measured when a row is asked for.

    Raises:
        ValueError: if a picture is missing, an annotation names an unknown image or category, an id is there twice, or
            a path leaves its folder.
    """
    contents = read_coco_json(paths.json_path)
    categories = named_categories(contents["categories"], paths.json_path)
    images = by_unique_id(contents["images"], paths.json_path, "images")
    annotations = contents["annotations"][:limit]
    by_unique_id(annotations, paths.json_path, "annotations")
    columns: dict[str, list[Any]] = {name: [] for name in panoptic_features()}
    existing = partial(file_inside, may_be_missing=files_may_be_missing)
    for annotation in annotations:
        image_id = annotation["image_id"]
        where = f"{paths.json_path}, annotation of image {image_id}"
        if image_id not in images:
            raise ValueError(f"{where}: `images` must hold this id, but has only {len(images)} others.")
        file_name = images[image_id]["file_name"]
        columns["image"].append(str(existing(paths.image_dir, file_name, where)))
        columns["image_id"].append(image_id_of(image_id))
        columns["file_name"].append(file_name)
        columns["segmentation"].append(str(existing(paths.segmentation_dir, annotation["file_name"], where)))
        columns["segments_info"].append([_segment(entry, categories, where) for entry in annotation["segments_info"]])
    rows = Dataset.from_dict(columns, features=panoptic_features(categories))
    complete = all(None not in segment.values() for segments in columns["segments_info"] for segment in segments)
    return RawRecords(rows, categories, None if complete else _measure_missing)


def read_coco_json(path: Path) -> dict[str, list[Any]]:
    """A COCO file.

    Raises:
        ValueError: if it lacks one of its three lists.
    """
    contents = read_json(path)
    if not isinstance(contents, dict):
        raise ValueError(f"{path} must hold an object, got {excerpt(contents)}.")
    missing = [key for key in LISTS if key not in contents]
    if missing:
        raise ValueError(f"{path} must hold `images`, `annotations` and `categories`, {missing} not found.")
    for key in LISTS:
        if not isinstance(contents[key], list):
            raise ValueError(f"{path}: `{key}` must be a list, got {excerpt(contents[key])}.")
    return contents


def by_unique_id(entries: list[Any], path: Path, name: str) -> dict[Any, dict[str, Any]]:
    """Entries of `images` or `annotations` by the image's id.

    Args:
        entries: all of them, or the first.
        path: of the file.
        name: of the list.

    Raises:
        ValueError: if an entry lacks something, or two have the same id.
    """
    key, keys = ("id", IMAGE_KEYS) if name == "images" else ("image_id", ANNOTATION_KEYS)
    found: dict[Any, dict[str, Any]] = {}
    for index, entry in enumerate(entries):
        problem = entry_problem(entry, keys)
        if problem:
            raise ValueError(f"{path}, `{name}`, entry {index}: {problem}.")
        if entry[key] in found:
            raise ValueError(f"{path}: expected each `{key}` once, got {entry[key]!r} twice.")
        found[entry[key]] = entry
    return found


def entry_problem(entry: Any, keys: Mapping[str, tuple[type, ...]]) -> str | None:
    """What keeps an entry of a JSON file from being read: a key that is missing, or a value of another type."""
    if not isinstance(entry, Mapping):
        return f"expected an object, got {type(entry).__name__}"
    for key, types in keys.items():
        value = entry.get(key)
        if not isinstance(value, types) or isinstance(value, bool):
            expected = " or ".join(TYPE_NAMES[kind] for kind in types)
            return f"`{key}` must be {expected}, got {excerpt(value)}"
    return None


def _measure_missing(record: Record) -> Record:
    ids = segmentation_ids(opened(record["segmentation"]))
    return {**record, "segments_info": fill_measures(ids, record["segments_info"])}


def _segment(entry: Any, categories: Categories, where: str) -> dict[str, Any]:
    missing = [key for key in SEGMENT_KEYS if key not in entry] if isinstance(entry, Mapping) else []
    if missing:
        raise ValueError(f"{where}: a segment must have `id` and `category_id`, {missing} not found in {entry}.")
    problem = entry_problem(entry, SEGMENT_KEYS)
    if problem:
        raise ValueError(f"{where}, `segments_info`: {problem}.")
    where = f"{where}, segment {entry['id']}"
    if not VOID_ID < entry["id"] <= MAX_ID:
        raise ValueError(f"{where}: `id` must be from 1 to {MAX_ID}.")
    try:
        label_id = categories.label_id(entry["category_id"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return {
        "id": entry["id"],
        "label_id": label_id,
        "iscrowd": crowd_flag(entry, where),
        "area": whole(entry.get("area"), f"{where}: `area`"),
        "bbox": whole_box(entry.get("bbox"), f"{where}: `bbox`"),
    }


def crowd_flag(entry: Mapping[str, Any], where: str) -> int:
    """`iscrowd` of an entry, 0 if it does not say.

    Raises:
        ValueError: it is neither 0 nor 1.
    """
    flag = entry.get("iscrowd") or 0
    if flag not in (0, 1):
        raise ValueError(f"{where}: `iscrowd` must be 0 or 1, got {excerpt(flag)}.")
    return int(flag)


def whole(value: Any, where: str) -> int | None:
    """A whole number, such as one of pixels, or None.

    Raises:
        ValueError: it is something else, or larger than any picture.
    """
    if value is None:
        return None
    if not isinstance(value, int | float) or not abs(value) <= MAX_WHOLE or int(value) != value:  # NaN is not, either
        raise ValueError(f"{where} must be in whole pixels, got {excerpt(value)}.")
    return int(value)


def whole_box(box: Any, where: str) -> list[int | None] | None:
    """A box [x, y, width, height] in whole pixels, or None.

    Raises:
        ValueError: it is something else.
    """
    if box is None:
        return None
    if not isinstance(box, list | tuple) or len(box) != BOX_LENGTH:
        raise ValueError(f"{where} must be [x, y, width, height], got {excerpt(box)}.")
    return [whole(value, where) for value in box]
