"""Reader and validator of COCO panoptic folders, and what it shares with COCO instances.

Images and annotations are matched by `image_id`: their order differs, also in the official files.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset

from ..segment_ids import MAX_ID, VOID_ID
from .categories import Categories
from .contained_paths import path_inside
from .findings import Report, raising
from .folders import excerpt, first_existing, read_json
from .lazy_records import RawRecords, ReadOptions, image_id_of, opened
from .records import Record, fill_measures, panoptic_features, segmentation_ids

BOX_LENGTH = 4
MAX_WHOLE = 2**53  # JSON readers with floats for numbers still read it exactly
KEY = (int, str)  # image ids may be either
IMAGE_KEYS = {"id": KEY, "file_name": (str,)}
ANNOTATION_KEYS = {"image_id": KEY, "file_name": (str,), "segments_info": (list,)}
LISTS = ("images", "annotations", "categories")
TYPE_NAMES = {int: "an integer", str: "a string", list: "a list"}


class CocoPanopticPaths(NamedTuple):
    """The three parts of a COCO panoptic dataset."""

    json_path: Path
    image_dir: Path
    segmentation_dir: Path


def find_coco_panoptic(folder: str | Path, *, split: str | None = None) -> CocoPanopticPaths:
    """Finds `panoptic.json`, `images/` and `panoptic/`, or the parts of a split in the official layout.

    Raises:
        ValueError: a part is missing; names the paths that were tried.
    """
    folder = Path(folder)
    map_dirs = [folder / "panoptic"]
    if split is not None:
        map_dirs = [
            folder / split / "panoptic",
            folder / f"annotations/panoptic_{split}",
            folder / f"panoptic_{split}",
        ]
    hint = splits_hint(folder, "panoptic") if split is None else ""
    return CocoPanopticPaths(
        first_existing(json_candidates(folder, split, "panoptic"), hint=hint),
        first_existing(image_dir_candidates(folder, split)),
        first_existing(map_dirs),
    )


def json_candidates(folder: Path, split: str | None, kind: str) -> list[Path]:
    """Returns where the annotations of a split may lie; `kind` is "panoptic" or "instances"."""
    if split is None:
        return [folder / f"{kind}.json"]
    names = (f"{split}/{kind}.json", f"annotations/{kind}_{split}.json", f"{kind}_{split}.json")
    return [folder / name for name in names]


def image_dir_candidates(folder: Path, split: str | None) -> list[Path]:
    """Returns where the images of a split may lie."""
    if split is None:
        return [folder / "images"]
    return [folder / split / "images", folder / "images" / split, folder / split]


def splits_hint(folder: Path, kind: str) -> str:
    """Returns the end of an error message that lists the splits of a folder, if there are any."""
    names = {path.stem.removeprefix(f"{kind}_") for path in folder.glob(f"annotations/{kind}_*.json")}
    names |= {path.parent.name for path in folder.glob(f"*/{kind}.json")}
    return f" There are splits, name one with `split`: {', '.join(sorted(names))}." if names else ""


def raw_coco_panoptic(folder: Path, options: ReadOptions) -> RawRecords:
    """Reads a dataset in the order of `annotations`; missing areas and boxes are measured when a row is used.

    If the options collect findings, invalid entries are left out and nothing is measured.
    """
    paths = find_coco_panoptic(folder, split=options.split)
    file = CocoFile.read(paths.json_path, options)
    categories = checked_categories(file.contents["categories"], file.name, file.report)
    images = file.images()
    columns: dict[str, list[Any]] = {name: [] for name in panoptic_features()}
    seen: set[int | str] = set()
    for place, annotation in file.entries("annotations", ANNOTATION_KEYS, limit=options.limit):
        image_id = annotation["image_id"]
        if image_id not in images:
            file.report("unknown-image", file.name, f"{place}: image {image_id!r} is not among {len(images)} images")
            continue
        if image_id in seen:
            file.report("repeated-annotation", file.name, f"{place}: image {image_id!r}")
            continue
        seen.add(image_id)
        name = images[image_id]["file_name"]
        image = file.path(paths.image_dir, name, name, "unreadable-image")
        segmentation = file.path(paths.segmentation_dir, annotation["file_name"], name, "unreadable-map")
        segments = [checked_segment(entry, categories, name, file.report) for entry in annotation["segments_info"]]
        columns["image"].append(image)
        columns["image_id"].append(image_id_of(image_id))
        columns["file_name"].append(name)
        columns["segmentation"].append(segmentation)
        columns["segments_info"].append([segment for segment in segments if segment is not None])
    if options.limit is None:
        for image_id in [image_id for image_id in images if image_id not in seen]:
            file.report("unannotated-image", images[image_id]["file_name"], f"image {image_id!r}")
    rows = Dataset.from_dict(columns, features=panoptic_features(categories))
    complete = all(None not in segment.values() for segments in columns["segments_info"] for segment in segments)
    return RawRecords(rows, categories, None if complete or options.report else _measure_missing)


class CocoFile(NamedTuple):
    """The contents of a COCO file and where its findings go."""

    contents: dict[str, list[Any]]
    name: str
    report: Report
    files_may_be_missing: bool

    @classmethod
    def read(cls, path: Path, options: ReadOptions) -> "CocoFile":
        """Reads a file; raises ValueError if it is not JSON or lacks one of its three lists."""
        contents = read_json(path)
        for key in LISTS:
            if not isinstance(contents, dict) or not isinstance(contents.get(key), list):
                found = contents if not isinstance(contents, dict) else contents.get(key, "nothing")
                raise ValueError(f"{path} must hold an object with the list `{key}`, got {excerpt(found)}.")
        report = options.report or raising(path)
        return cls(contents, path.name, report, options.files_may_be_missing or options.report is not None)

    def entries(
        self, name: str, keys: Mapping[str, tuple[type, ...]], *, limit: int | None = None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields the place and contents of each valid entry of a list."""
        for index, entry in enumerate(self.contents[name][:limit]):
            place = f"`{name}`, entry {index}"
            problem = entry_problem(entry, keys)
            if problem:
                self.report("broken-entry", self.name, f"{place}: {problem}")
            else:
                yield place, entry

    def images(self) -> dict[int | str, dict[str, Any]]:
        """Returns the entries of `images` by id."""
        images: dict[int | str, dict[str, Any]] = {}
        for place, entry in self.entries("images", IMAGE_KEYS):
            if entry["id"] in images:
                self.report("repeated-image", self.name, f"{place}: id {entry['id']!r} occurs twice")
            images.setdefault(entry["id"], entry)
        return images

    def path(self, folder: Path, file_name: str, where: str, kind: str) -> str | None:
        """Returns the path of a file; None after reporting that the name is unsafe or, as `kind`, the file missing."""
        try:
            path = path_inside(folder, file_name)
        except ValueError as error:
            self.report("unsafe-path", where, str(error))
            return None
        if not self.files_may_be_missing and not path.is_file():
            self.report(kind, where, f"expected the file {path}, which does not exist")
            return None
        return str(path)


def entry_problem(entry: Any, keys: Mapping[str, tuple[type, ...]]) -> str | None:
    """Returns what is wrong with an entry of a JSON file: a missing key or a value of another type."""
    if not isinstance(entry, Mapping):
        return f"expected an object, got {excerpt(entry)}"
    for key, types in keys.items():
        value = entry.get(key)
        if not isinstance(value, types) or isinstance(value, bool):
            expected = " or ".join(TYPE_NAMES[kind] for kind in types)
            return f"`{key}` must be {expected}, got {excerpt(value)}"
    return None


def checked_categories(entries: list[Any], where: str, report: Report) -> Categories:
    """Returns the categories of a COCO file; after reporting a problem, those that can be told apart."""
    try:
        return Categories.from_coco(entries)
    except ValueError as error:
        report("bad-categories", where, str(error).rstrip("."))
    kept: dict[int, dict[str, Any]] = {}
    for entry in entries:
        if isinstance(entry, Mapping) and isinstance(entry.get("id"), int):
            name = str(entry.get("name"))
            name = f"{name} ({entry['id']})" if name in [other["name"] for other in kept.values()] else name
            kept.setdefault(entry["id"], {"id": entry["id"], "name": name, "isthing": bool(entry.get("isthing", 1))})
    return Categories.from_coco(kept.values())


def checked_segment(entry: Any, categories: Categories, where: str, report: Report) -> dict[str, Any] | None:
    """Returns an entry of `segments_info` with the keys of a canonical record, or None if it cannot be used.

    It has `id`, `category_id` or `label_id`, and maybe `iscrowd`, `area` and `bbox`. The latter two may stay None, and
    `label_id` is None for an unknown category.
    """
    labeled = isinstance(entry, Mapping) and entry.get("label_id") is not None
    category_key = "label_id" if labeled else "category_id"
    problem = entry_problem(entry, {"id": (int,), category_key: (int,)})
    if problem:
        report("broken-entry", where, f"`segments_info`: {problem}")
        return None
    place = f"segment {entry['id']}"
    try:
        segment = {"iscrowd": crowd_flag(entry), "area": whole(entry, "area"), "bbox": whole_box(entry)}
    except ValueError as error:
        report("broken-entry", where, f"{place}: {error}")
        return None
    if not VOID_ID < entry["id"] <= MAX_ID:
        report("impossible-id", where, f"{place}: `id` must be from 1 to {MAX_ID}")
        return None
    known = range(len(categories)) if labeled else categories.category_ids
    label_id = None
    if entry[category_key] not in known:
        report("unknown-category", where, f"{place}: `{category_key}` {entry[category_key]} is unknown")
    else:
        label_id = entry["label_id"] if labeled else categories.label_id(entry["category_id"])
    return {"id": entry["id"], "label_id": label_id, **segment}


def crowd_flag(entry: Mapping[str, Any]) -> int:
    """Returns `iscrowd` of an entry, 0 by default; raises ValueError unless it is 0 or 1."""
    flag = entry.get("iscrowd") or 0
    if flag not in (0, 1):
        raise ValueError(f"`iscrowd` must be 0 or 1, got {excerpt(flag)}")
    return int(flag)


def whole(entry: Mapping[str, Any], key: str) -> int | None:
    """Returns a number of pixels of an entry, or None; raises ValueError for fractions and other values."""
    value = entry.get(key)
    return None if value is None else _whole(value, key)


def whole_box(entry: Mapping[str, Any]) -> list[int] | None:
    """Returns `bbox` [x, y, width, height] of an entry in pixels, or None; raises ValueError for other values."""
    box = entry.get("bbox")
    if box is None:
        return None
    if not isinstance(box, list | tuple) or len(box) != BOX_LENGTH:
        raise ValueError(f"`bbox` must be [x, y, width, height], got {excerpt(box)}")
    return [_whole(value, "bbox") for value in box]


def _whole(value: Any, key: str) -> int:
    if not isinstance(value, int | float) or not abs(value) <= MAX_WHOLE or int(value) != value:  # NaN is not, either
        raise ValueError(f"`{key}` must be in whole pixels, got {excerpt(value)}")
    return int(value)


def _measure_missing(record: Record) -> Record:
    ids = segmentation_ids(opened(record["segmentation"]))
    return {**record, "segments_info": fill_measures(ids, record["segments_info"])}
