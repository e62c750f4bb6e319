"""Reader and validator of COCO instances, polygons or RLE, optionally with a map of stuff.

Instances may overlap, segments of a panoptic map do not. Where instances overlap, the smaller one is on top, as it is
often a part of the larger one; of two equal ones, the first in the file. Crowds lie below all other instances, stuff
below crowds, a map of stuff below everything. Images with overlaps are logged. Pixels that nothing covers are void.

Exports of annotation tools are such files too. CVAT writes `annotations/instances_default.json`, and `iscrowd` 1 for
every mask that was painted; Label Studio `result.json`, with `images/` in its file names; Roboflow
`_annotations.coco.json` beside the images, with a category that only groups the others.
"""

import itertools
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Features, Value

from .categories import Categories, match_labels
from .coco import KEY, CocoFile, annotation_paths, checked_categories, crowd_flag, image_folders, splits_hint, whole
from .folders import CATEGORIES_FILE, excerpt, first_existing, read_categories
from .label_maps import MAP_FEATURES, VOID_VALUES
from .lazy_records import (
    RawRecords,
    ReadOptions,
    check_size,
    dataset_of,
    image_id_of,
    make_record,
    name_of,
    opened,
    row_error,
    upright_size,
)
from .records import Record, measure_segments

ROBOFLOW_FILE, LABEL_STUDIO_FILE = "_annotations.coco.json", "result.json"  # file names are relative to the file
CVAT_SPLIT = "default"
STUFF, CROWD, INSTANCE = range(3)  # from below
OTHER_CATEGORY = 183  # of COCO's stuff maps: "there is a thing here"
FURTHEST = 4  # sides of the image that a point of a polygon may lie away from its corner
RLE_ZERO, RLE_CODES, RLE_GOES_ON = ord("0"), 64, 0x20  # of compressed RLE
MIN_POLYGON = 6  # numbers; of four, pycocotools would make a box
INSTANCE_KEYS = {"image_id": KEY, "category_id": (int,)}
MASK_KEYS = ("id", "category_id", "segmentation")
FEATURES = Features(
    {**MAP_FEATURES, "width": Value("int64"), "height": Value("int64"), "annotations": Value("string")}
)

_logger = logging.getLogger(__name__)


def instance_files(folder: Path, split: str | None) -> list[Path]:
    """Returns where the annotations may lie: `instances.json`, the official layout, or an export of a tool."""
    exports = [folder / (split or "") / name for name in (ROBOFLOW_FILE, LABEL_STUDIO_FILE)]
    cvat = [] if split else [folder / "annotations" / f"instances_{CVAT_SPLIT}.json"]
    return [*annotation_paths(folder, split, "instances", ".json"), *exports, *cvat]


def raw_coco_instances(folder: Path, options: ReadOptions) -> RawRecords:
    """Reads the images in the order of `images`, including those without instances."""
    split = options.split
    json_path = first_existing(instance_files(folder, split), hint=splits_hint(folder, split, "instances"))
    image_dir = _image_folder(json_path, folder, split)
    stuff_dirs = [folder / (split or "") / "stuff", *annotation_paths(folder, split, "stuff", "_pixelmaps")]
    stuff_dir = next((path for path in stuff_dirs if path.is_dir()), None)
    file = CocoFile.read(json_path, options)
    categories = _categories(file, folder, options, stuff_dir)
    images = file.images()
    annotations = _annotations_by_image(file, categories, images)
    rows: list[Record] = []
    for image_id, entry in list(images.items())[: options.limit]:
        name = entry["file_name"].replace("\\", "/")  # Label Studio on Windows
        image, stuff = file.path(image_dir, name, name, "unreadable-image"), None
        if stuff_dir is not None:
            stuff = file.path(stuff_dir, str(Path(name).with_suffix(".png")), name, "unreadable-map")
        try:
            sides = {side: whole(entry.get(side), side) for side in ("width", "height")}
        except ValueError as error:
            file.report("broken-entry", name, str(error))
            continue
        if image is None or (stuff is None and stuff_dir is not None):
            continue
        row = {"image": image, "image_id": image_id_of(image_id), "file_name": name, "segmentation": stuff, **sides}
        rows.append({**row, "annotations": json.dumps(annotations[image_id])})
    return RawRecords(dataset_of(rows, FEATURES), categories, partial(decode_instances, categories))


def _image_folder(json_path: Path, folder: Path, split: str | None) -> Path:
    if json_path.name in (ROBOFLOW_FILE, LABEL_STUDIO_FILE):
        return json_path.parent
    if split is None and json_path.stem.endswith(f"_{CVAT_SPLIT}"):
        return first_existing([folder / "images" / CVAT_SPLIT, folder / "images"])
    return first_existing(image_folders(folder, split))


def _annotations_by_image(
    file: CocoFile, categories: Categories, images: dict[int | str, Any]
) -> dict[int | str, list[dict[str, Any]]]:
    """Returns the valid annotations of each image."""
    found: dict[int | str, list[dict[str, Any]]] = {image_id: [] for image_id in images}
    for place, entry in file.entries("annotations", INSTANCE_KEYS):
        if entry["image_id"] not in found:
            file.report("unknown-image", file.name, f"{place}: image {entry['image_id']!r} is not in `images`")
        elif entry["category_id"] not in categories.category_ids:
            file.report("unknown-category", file.name, f"{place}: `category_id` {entry['category_id']} is unknown")
        else:
            try:
                own = entry.get("attributes")  # of CVAT, whose `iscrowd` only says that a mask is run lengths
                flags = {"iscrowd": own.get("is_crowd")} if isinstance(own, dict) else entry
                shape = {key: entry.get(key) for key in MASK_KEYS} | {"iscrowd": crowd_flag(flags)}
                found[entry["image_id"]].append(shape)
            except ValueError as error:
                file.report("broken-entry", file.name, f"{place}: {error}")
    return found


def _categories(file: CocoFile, folder: Path, options: ReadOptions, stuff_dir: Path | None) -> Categories:
    """Returns all classes: those of the instances are things unless the file or the options say otherwise.

    The classes of stuff maps come from a file beside them.
    """
    split = options.split
    entries = [{"isthing": 1, **entry} if isinstance(entry, dict) else entry for entry in _used_categories(file)]
    things = checked_categories(entries, file.name, file.report)
    if options.stuff is not None:
        named = match_labels(dict(enumerate(options.stuff)), things)
        if lacking := [name for place, name in enumerate(options.stuff) if place not in named.values()]:
            known = ", ".join(things.names[:40])
            raise ValueError(f"`stuff` names {lacking[0]!r}, which is not a class of {file.name}: {known}.")
        things = replace(things, is_thing=tuple(label not in named for label in range(len(things))))
    if stuff_dir is None:
        return things
    paths = [folder / (split or "") / CATEGORIES_FILE, folder / CATEGORIES_FILE]
    paths += annotation_paths(folder, split, "stuff", ".json")
    hint = f" The classes of {stuff_dir} are unknown: expected {CATEGORIES_FILE} beside it, a list of {{id, name}}."
    path = first_existing(paths, hint=hint)
    added = [
        {**entry, "isthing": 0}
        for entry in read_categories(path, kind_needed=False).to_coco()
        if entry["id"] not in (*things.category_ids, OTHER_CATEGORY)
    ]
    return Categories.from_coco([*things.to_coco(), *added])


def _used_categories(file: CocoFile) -> list[Any]:
    """Returns the categories without those that only group others, which Roboflow writes."""
    entries = file.contents["categories"]
    grouped = [e for e in entries if isinstance(e, dict) and e.get("supercategory") != e.get("name")]
    groups = {str(entry.get("supercategory", "")) for entry in grouped}
    used = {str(entry.get("category_id")) for entry in file.contents["annotations"] if isinstance(entry, dict)}
    return [
        entry
        for entry in entries
        if not isinstance(entry, dict) or str(entry.get("name")) not in groups or str(entry.get("id")) in used
    ]


def decode_instances(categories: Categories, row: Record) -> Record:
    """Makes a record of an image, its instances and its map of stuff, whose values are category ids.

    Ids run from 1, first the instances in the order of their annotations, then stuff.
    """
    width, height = upright_size(row["image"])
    if row["width"] is not None and row["height"] is not None:
        check_size(row, (row["width"], row["height"]))  # the polygons are in these coordinates
    annotations = json.loads(row["annotations"])
    masks = [_mask(annotation, height, width, row) for annotation in annotations]
    labels = [categories.label_id(entry["category_id"]) for entry in annotations]
    levels = [
        (CROWD if entry["iscrowd"] else INSTANCE) if categories.is_thing[label] else STUFF
        for label, entry in zip(labels, annotations, strict=True)
    ]
    ids = paint_instances(masks, levels, (height, width))
    _log_overlaps(masks, ids, row)
    segments: list[dict[str, Any]] = []
    first_of: dict[int, int] = {}  # the id of the segment that all of a stuff class becomes
    for index, (label, entry) in enumerate(zip(labels, annotations, strict=True), start=1):
        if not categories.is_thing[label] and label in first_of:
            ids[ids == index] = first_of[label]
        else:
            first_of[label] = index
            segments.append({"id": index, "label_id": label, "iscrowd": entry["iscrowd"]})
    if row["segmentation"] is not None:
        ids, stuff = _add_stuff(ids, categories, row, first_of, first_id=len(annotations) + 1)
        segments += stuff
    return make_record(row, ids, measure_segments(ids, segments))


def _add_stuff(
    ids: np.ndarray, categories: Categories, row: Record, first_of: Mapping[int, int], *, first_id: int
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Returns the ids with the classes of the map of stuff on void pixels, and the entries of new segments.

    A class that has a segment already (`first_of`) gets no second one.
    """
    picture = opened(row["segmentation"])
    values = np.asarray(picture)
    if values.shape != ids.shape or values.dtype.kind not in "iu":
        expected = f"one channel of {ids.shape[::-1]} pixels"
        raise row_error(row, f"the map of stuff must have {expected}, got mode {picture.mode} of {picture.size}")
    void, ids = ids == 0, ids.copy()
    segments: list[dict[str, Any]] = []
    for value in np.unique(values[void]).tolist():
        label_id = categories.label_ids.get(value)
        if label_id is None and value not in (*VOID_VALUES, OTHER_CATEGORY):
            known = [categories.category_ids[label] for label in categories.stuff_label_ids]
            message = f"the map of stuff has the class {value}, expected one of {known[:40]}"
            raise row_error(row, message, kind="unknown-category")
        if label_id is not None and not categories.is_thing[label_id]:  # not a thing that no instance claims
            segment_id = first_of.get(label_id, first_id + len(segments))
            ids[void & (values == value)] = segment_id
            if label_id not in first_of:
                segments.append({"id": segment_id, "label_id": label_id, "iscrowd": 0})
    return ids, segments


def paint_instances(masks: list[np.ndarray], levels: list[int], size: tuple[int, int]) -> np.ndarray:
    """Makes one map (H, W) int64 of overlapping masks: the index of the mask plus 1, or 0; higher levels cover."""
    ids = np.zeros(size, dtype=np.int64)
    areas = [int(np.count_nonzero(mask)) for mask in masks]
    # The lowest is painted first.
    order = sorted(range(len(masks)), key=lambda i: (levels[i], -areas[i], -i))
    for index in order:
        ids[masks[index]] = index + 1
    return ids


def _mask(annotation: dict[str, Any], height: int, width: int, row: Record) -> np.ndarray:
    """Decodes the mask (H, W) bool of polygons or RLE."""
    from pycocotools import mask as coco_mask

    shape = annotation["segmentation"]
    try:
        if isinstance(shape, list):
            _check_polygons(shape, height, width)
            return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(shape, height, width))).astype(bool)
        if not isinstance(shape, dict) or not {"counts", "size"} <= set(shape):
            raise ValueError(f"expected polygons or RLE, got {excerpt(shape)}")
        if shape["size"] != [height, width]:
            raise ValueError(f"`size` of the RLE must be the image's {[height, width]}, got {excerpt(shape['size'])}")
        _check_counts(shape["counts"], height * width)
        rle = coco_mask.frPyObjects(shape, height, width) if isinstance(shape["counts"], list) else shape
        return coco_mask.decode(rle).astype(bool)
    except ValueError as error:
        raise row_error(row, f"annotation {annotation['id']}, `segmentation`: {error}") from error


def _check_polygons(polygons: list[Any], height: int, width: int) -> None:
    """Raises ValueError for what pycocotools cannot draw; it takes memory in proportion to a line's length."""
    if not polygons or any(not isinstance(p, list) or len(p) < MIN_POLYGON or len(p) % 2 for p in polygons):
        raise ValueError(
            f"expected RLE or polygons of at least three points, got {excerpt(polygons)}; a box alone is not a mask"
        )
    furthest = FURTHEST * max(height, width)
    for number in itertools.chain.from_iterable(polygons):
        if not isinstance(number, int | float) or not abs(number) <= furthest:  # NaN is not, either
            raise ValueError(f"points of a polygon must be near the {width}x{height} image, got {excerpt(number)}")


def _check_counts(counts: Any, num_pixels: int) -> None:
    """Raises ValueError for counts with which pycocotools would write beyond the mask, or leave a part unset."""
    if isinstance(counts, list):
        is_good = all(isinstance(count, int) and count >= 0 for count in counts) and sum(counts) == num_pixels
    else:  # six bits per character, the highest of which says that the number goes on
        codes = [ord(letter) - RLE_ZERO for letter in counts] if isinstance(counts, str) else []
        is_good = bool(codes) and all(0 <= code < RLE_CODES for code in codes) and not codes[-1] & RLE_GOES_ON
    if not is_good:
        raise ValueError(f"`counts` must be the lengths of runs of {num_pixels} pixels, got {excerpt(counts)}")


def _log_overlaps(masks: list[np.ndarray], ids: np.ndarray, row: Record) -> None:
    overlapping = int(np.count_nonzero(np.sum(masks, axis=0, dtype=np.int32) > 1))
    if overlapping:
        hidden = len(masks) - len(np.unique(ids[ids > 0]))
        message = "%s: %d pixels lie in several instances; %d instances are hidden or empty."
        _logger.info(message, name_of(row), overlapping, hidden)
