"""Reader and validator of COCO panoptic folders, and what it shares with COCO instances.

Images and annotations are matched by `image_id`: their order differs, also in the official files.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..segment_ids import MAX_ID, VOID_ID
from .categories import Categories
from .contained_paths import path_inside
from .findings import Report, raising
from .folders import excerpt, first_existing, read_json
from .lazy_records import RawRecords, ReadOptions, dataset_of, image_id_of, opened
from .records import Record, fill_measures, panoptic_features, segmentation_ids

BOX_LENGTH = 4
MAX_WHOLE = 2**53  # JSON readers with floats for numbers still read it exactly
KEY = (int, str)  # image ids may be either
IMAGE_KEYS = {"id": KEY, "file_name": (str,)}
ANNOTATION_KEYS = {"image_id": KEY, "file_name": (str,), "segments_info": (list,)}
LISTS = ("images", "annotations", "categories")
TYPE_NAMES = {int: "an integer", str: "a string", list: "a list"}


def find_coco_panoptic(folder: Path, *, split: str | None = None) -> tuple[Path, Path, Path]:
    """Returns the JSON file and the folders of images and maps; raises ValueError with the paths that were tried."""
    return (
        first_existing(
            annotation_paths(folder, split, "panoptic", ".json"), hint=splits_hint(folder, split, "panoptic")
        ),
        first_existing(image_folders(folder, split)),
        first_existing(annotation_paths(folder, split, "panoptic")),
    )


def annotation_paths(folder: Path, split: str | None, kind: str, ending: str = "") -> list[Path]:
    """Returns where a file or folder of annotations may lie, such as `panoptic.json` of the `kind` "panoptic"."""
    if split is None:
        return [folder / f"{kind}{ending}"]
    official = f"{kind}_{split}{ending}"
    return [folder / split / f"{kind}{ending}", folder / "annotations" / official, folder / official]


def image_folders(folder: Path, split: str | None) -> list[Path]:
    """Returns where the images of a split may lie."""
    if split is None:
        return [folder / "images"]
    return [folder / split / "images", folder / "images" / split, folder / split]


def splits_hint(folder: Path, split: str | None, kind: str) -> str:
    """Returns the end of an error message that lists the splits of a folder if none was named."""
    names = {path.stem.removeprefix(f"{kind}_") for path in folder.glob(f"annotations/{kind}_*.json")}
    names |= {path.parent.name for path in folder.glob(f"*/{kind}.json")}
    return f" There are splits, name one with `split`: {', '.join(sorted(names))}." if names and not split else ""


def raw_coco_panoptic(folder: Path, options: ReadOptions) -> RawRecords:
    """Reads a dataset in the order of `annotations`; missing areas and boxes are measured when a row is used.

    If the options collect findings, invalid entries are left out and nothing is measured.
    """
    json_path, image_dir, map_dir = find_coco_panoptic(folder, split=options.split)
    file = CocoFile.read(json_path, options)
    categories = checked_categories(file.contents["categories"], file.name, file.report)
    images = file.images()
    rows: list[Record] = []
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
        row = {
            "image": file.path(image_dir, name, name, "unreadable-image"),
            "image_id": image_id_of(image_id),
            "file_name": name,
            "segmentation": file.path(map_dir, annotation["file_name"], name, "unreadable-map"),
            "segments_info": checked_segments(annotation["segments_info"], categories, name, file.report),
        }
        rows.append(row)
    if options.limit is None:
        for image_id in [image_id for image_id in images if image_id not in seen]:
            file.report("unannotated-image", images[image_id]["file_name"], f"image {image_id!r}")
    entries = [segment for row in rows for segment in row["segments_info"]]
    decode = None if options.report or all(None not in segment.values() for segment in entries) else _measure_missing
    features = panoptic_features(categories, with_scores=any("score" in segment for segment in entries))
    return RawRecords(dataset_of(rows, features), categories, decode)


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
            found = contents.get(key, "nothing") if isinstance(contents, dict) else contents
            if found is contents or not isinstance(found, list):
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
            name = f"{entry.get('name')} ({entry['id']})"
            kept.setdefault(entry["id"], {"id": entry["id"], "name": name, "isthing": bool(entry.get("isthing", 1))})
    return Categories.from_coco(kept.values())


def checked_segments(
    entries: Iterable[Any], categories: Categories, where: str, report: Report
) -> list[dict[str, Any]]:
    """Returns the entries of `segments_info` that can be used, with the keys of a canonical record.

    They have `id`, `category_id` or `label_id`, and maybe `iscrowd`, `area` and `bbox`. The latter two may stay None,
    and `label_id` is None for an unknown category.
    """
    segments = [_checked_segment(entry, categories, where, report) for entry in entries]
    return [segment for segment in segments if segment is not None]


def _checked_segment(entry: Any, categories: Categories, where: str, report: Report) -> dict[str, Any] | None:
    labeled = isinstance(entry, Mapping) and entry.get("label_id") is not None
    category_key = "label_id" if labeled else "category_id"
    problem = entry_problem(entry, {"id": (int,), category_key: (int,)})
    if problem:
        report("broken-entry", where, f"`segments_info`: {problem}")
        return None
    place, category = f"segment {entry['id']}", entry[category_key]
    try:
        measures = {"iscrowd": crowd_flag(entry), "area": whole(entry.get("area"), "area"), "bbox": _whole_box(entry)}
    except ValueError as error:
        report("broken-entry", where, f"{place}: {error}")
        return None
    if not VOID_ID < entry["id"] <= MAX_ID:
        report("impossible-id", where, f"{place}: `id` must be from 1 to {MAX_ID}")
        return None
    labels = {label: label for label in range(len(categories))} if labeled else categories.label_ids
    if category not in labels:
        report("unknown-category", where, f"{place}: `{category_key}` {category} is unknown")
    score = {"score": float(entry["score"])} if isinstance(entry.get("score"), int | float) else {}
    return {"id": entry["id"], "label_id": labels.get(category), **measures, **score}


def crowd_flag(entry: Mapping[str, Any]) -> int:
    """Returns `iscrowd` of an entry, 0 by default; raises ValueError unless it is 0 or 1."""
    flag = entry.get("iscrowd") or 0
    if flag not in (0, 1):
        raise ValueError(f"`iscrowd` must be 0 or 1, got {excerpt(flag)}")
    return int(flag)


def whole(value: Any, key: str) -> int | None:
    """Returns a number of pixels, or None; raises ValueError for fractions and other values."""
    if value is None:
        return None
    if not isinstance(value, int | float) or not abs(value) <= MAX_WHOLE or int(value) != value:  # NaN is not, either
        raise ValueError(f"`{key}` must be in whole pixels, got {excerpt(value)}")
    return int(value)


def _whole_box(entry: Mapping[str, Any]) -> list[int | None] | None:
    box = entry.get("bbox")
    if box is None:
        return None
    if not isinstance(box, list | tuple) or len(box) != BOX_LENGTH or None in box:
        raise ValueError(f"`bbox` must be [x, y, width, height], got {excerpt(box)}")
    return [whole(value, "bbox") for value in box]


def _measure_missing(record: Record) -> Record:
    ids = segmentation_ids(opened(record["segmentation"]))
    return {**record, "segments_info": fill_measures(ids, record["segments_info"])}
