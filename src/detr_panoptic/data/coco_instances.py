"""Reader of COCO instances, polygons and RLE, alone or over a map of stuff; pycocotools decodes the masks.

Instances may overlap, segments of a panoptic map do not. Where they do, the smaller instance is on top, as it is
often a part of what the larger one is or holds; of two alike, the one that is listed first. Crowds lie beneath all
other instances, stuff beneath crowds. Each picture with pixels in dispute gets a line in the log. What is covered by
nothing is void, all that the instances leave if there is no stuff.
"""

import itertools
import json
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value

from .categories import Categories
from .coco import (
    KEY,
    by_unique_id,
    crowd_flag,
    entry_problem,
    image_dir_candidates,
    json_candidates,
    read_coco_json,
    splits_hint,
    whole,
)
from .contained_paths import file_inside
from .folders import CATEGORIES_FILE, excerpt, first_existing, named_categories, read_categories
from .label_maps import MAP_FEATURES, VOID_VALUES
from .lazy_records import RawRecords, check_size, image_id_of, make_record, name_of, opened, upright_size
from .records import Record, measure_segments

ROBOFLOW_FILE = "_annotations.coco.json"  # its exports have the pictures beside the file
OTHER_CATEGORY = 183  # of COCO's stuff maps: "there is a thing here"
FURTHEST = 4  # sides of the picture that a point of a polygon may lie away from its corner
RLE_ZERO, RLE_CODES, RLE_GOES_ON = ord("0"), 64, 0x20  # of compressed RLE
MIN_POLYGON = 6  # numbers; of four, pycocotools would make a box
INSTANCE_KEYS = {"image_id": KEY, "category_id": (int,)}
MASK_KEYS = ("id", "category_id", "segmentation", "iscrowd")
FEATURES = Features(
    {**MAP_FEATURES, "width": Value("int64"), "height": Value("int64"), "annotations": Value("string")}
)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InstancePaths:
    """Where the parts lie; `stuff_dir` is None without stuff, `categories_path` without a file for all classes."""

    json_path: Path
    image_dir: Path
    stuff_dir: Path | None
    categories_path: Path | None


def find_coco_instances(folder: Path, *, split: str | None) -> InstancePaths:
    """Find `instances.json` and `images/`, or COCO's own layout, or a Roboflow export; and what there is of stuff.

    Raises:
        ValueError: a part is missing; the message names the paths looked for.
    """
    inner = folder if split is None else folder / split
    json_paths = [*json_candidates(folder, split, "instances"), inner / ROBOFLOW_FILE]
    json_path = first_existing(json_paths, hint=splits_hint(folder, "instances") if split is None else "")
    image_dirs = [inner] if json_path.name == ROBOFLOW_FILE else image_dir_candidates(folder, split)
    stuff_dirs, category_paths = [inner / "stuff"], [inner / CATEGORIES_FILE, folder / CATEGORIES_FILE]
    if split is not None:
        name = f"stuff_{split}_pixelmaps"
        stuff_dirs += [folder / "annotations" / name, folder / name]
        category_paths.append(folder / "annotations" / f"stuff_{split}.json")
    return InstancePaths(
        json_path,
        first_existing(image_dirs),
        next((path for path in stuff_dirs if path.is_dir()), None),
        next((path for path in category_paths if path.is_file()), None),
    )


def raw_coco_instances(
    paths: InstancePaths, *, limit: int | None = None, files_may_be_missing: bool = False
) -> RawRecords:
    """The pictures in the order of `images`, those without instances among them.

    Args:
        paths: of annotations, pictures and maps of stuff.
        limit: number of pictures, from the first.
        files_may_be_missing: as of `read_panoptic`.

    Raises:
        ValueError: a file is missing, a name leaves its folder, or an annotation names an unknown image or category.
    """
    contents = read_coco_json(paths.json_path)
    categories = _categories(contents["categories"], paths)
    images = by_unique_id(contents["images"], paths.json_path, "images")
    annotations: dict[Any, list[dict[str, Any]]] = {image_id: [] for image_id in images}
    for index, annotation in enumerate(contents["annotations"]):
        problem = entry_problem(annotation, INSTANCE_KEYS)
        if problem:
            raise ValueError(f"{paths.json_path}, `annotations`, entry {index}: {problem}.")
        where = f"{paths.json_path}, annotation {annotation.get('id')}"
        if annotation["image_id"] not in annotations:
            raise ValueError(f"{where}: `images` must hold the id {annotation['image_id']!r}.")
        try:
            categories.label_id(annotation["category_id"])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        shape = {key: annotation.get(key) for key in MASK_KEYS} | {"iscrowd": crowd_flag(annotation, where)}
        annotations[annotation["image_id"]].append(shape)
    columns: dict[str, list[Any]] = {name: [] for name in FEATURES}
    existing = partial(file_inside, may_be_missing=files_may_be_missing)
    for image_id, image in list(images.items())[:limit]:
        where, file_name = f"{paths.json_path}, image {image_id}", image["file_name"]
        columns["image"].append(str(existing(paths.image_dir, file_name, where)))
        columns["image_id"].append(image_id_of(image_id))
        columns["file_name"].append(file_name)
        stuff_name = str(Path(file_name).with_suffix(".png"))
        stuff = None if paths.stuff_dir is None else str(existing(paths.stuff_dir, stuff_name, where))
        columns["segmentation"].append(stuff)
        for side in ("width", "height"):
            columns[side].append(whole(image.get(side), f"{where}: `{side}`"))
        columns["annotations"].append(json.dumps(annotations[image_id]))
    rows = Dataset.from_dict(columns, features=FEATURES)
    return RawRecords(rows, categories, InstanceDecoder(categories))


def _categories(instance_categories: list[dict[str, Any]], paths: InstancePaths) -> Categories:
    """All classes: those of the instances are things, those of a map of stuff must be told."""
    are_objects = all(isinstance(category, dict) for category in instance_categories)  # else the error says so
    entries = [{**category, "isthing": 1} for category in instance_categories] if are_objects else instance_categories
    things = named_categories(entries, paths.json_path)
    if paths.stuff_dir is None:
        return things
    if paths.categories_path is None:
        raise ValueError(
            f"{paths.stuff_dir}: the classes of its maps are not known, expected {CATEGORIES_FILE} beside it with a "
            "list of {id, name, isthing}."
        )
    stuff = read_categories(paths.categories_path, kind_needed=False).to_coco()
    added = [entry for entry in stuff if entry["id"] not in (*things.category_ids, OTHER_CATEGORY)]
    return Categories.from_coco([*things.to_coco(), *({**entry, "isthing": 0} for entry in added)])


@dataclass(frozen=True)
class InstanceDecoder:
    """Makes a record of a picture, its instances and its map of stuff.

    Args:
        categories: of both; their category ids are the values of the map.
    """

    categories: Categories

    def __call__(self, row: Record) -> Record:
        """Make the record: ids run from 1, first the instances in the order of their annotations, then stuff.

        Raises:
            ValueError: a mask cannot be decoded or has another size, or the map has an unknown class.
        """
        width, height = upright_size(row["image"])
        if row["width"] is not None and row["height"] is not None:
            check_size(row, (row["width"], row["height"]))  # the polygons are in these coordinates
        annotations = json.loads(row["annotations"])
        masks = [_mask(annotation, height, width, row) for annotation in annotations]
        ids = paint_instances(masks, [bool(entry["iscrowd"]) for entry in annotations], (height, width))
        _log_disputes(masks, ids, row)
        segments = [
            {
                "id": index,
                "label_id": self.categories.label_id(annotation["category_id"]),
                "iscrowd": annotation["iscrowd"],
            }
            for index, annotation in enumerate(annotations, start=1)
        ]
        if row["segmentation"] is not None:
            ids, stuff = self._add_stuff(ids, row, first_id=len(segments) + 1)
            segments += stuff
        return make_record(row, ids, measure_segments(ids, segments))

    def _add_stuff(self, ids: np.ndarray, row: Record, *, first_id: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
        picture = opened(row["segmentation"])
        values = np.asarray(picture)
        if values.shape != ids.shape or values.dtype.kind not in "iu":
            raise ValueError(
                f"{name_of(row)}: the map of stuff must have one channel of {ids.shape[::-1]} pixels, got mode "
                f"{picture.mode} of {picture.size}."
            )
        ids = ids.copy()
        segments: list[dict[str, Any]] = []
        for value in np.unique(values[ids == 0]).tolist():
            if value in self.categories.category_ids:
                label_id = self.categories.label_id(value)
                if self.categories.is_thing[label_id]:
                    continue  # a thing that no instance claims
            elif value in (*VOID_VALUES, OTHER_CATEGORY):
                continue
            else:
                raise ValueError(
                    f"{name_of(row)}: the map of stuff has the class {value}, expected one of "
                    f"{[self.categories.category_ids[label] for label in self.categories.stuff_label_ids][:40]}."
                )
            segment_id = first_id + len(segments)
            ids[(ids == 0) & (values == value)] = segment_id
            segments.append({"id": segment_id, "label_id": label_id, "iscrowd": 0})
        return ids, segments


def paint_instances(masks: list[np.ndarray], is_crowd: list[bool], size: tuple[int, int]) -> np.ndarray:
    """One map of overlapping masks, by the rule of this module.

    Args:
        masks: bool, each of `size`.
        is_crowd: of each mask.
        size: (H, W).

    Returns:
        (H, W) int64: the mask's index from 1, 0 where there is none.
    """
    ids = np.zeros(size, dtype=np.int64)
    areas = [int(np.count_nonzero(mask)) for mask in masks]
    # Painted first what lies lowest.
    order = sorted(range(len(masks)), key=lambda i: (not is_crowd[i], -areas[i], -i))
    for index in order:
        ids[masks[index]] = index + 1
    return ids


def _mask(annotation: dict[str, Any], height: int, width: int, row: Record) -> np.ndarray:
    """Mask (H, W) bool of polygons, or of RLE, compressed or not."""
    from pycocotools import mask as coco_mask

    shape = annotation["segmentation"]
    where = f"{name_of(row)}, annotation {annotation['id']}"
    if isinstance(shape, list):
        _check_polygons(shape, height, width, where)
        rle = coco_mask.merge(coco_mask.frPyObjects(shape, height, width))
    elif isinstance(shape, dict) and {"counts", "size"} <= set(shape):
        if shape["size"] != [height, width]:
            raise ValueError(
                f"{where}: `size` of the RLE must be the picture's, {[height, width]}, got {excerpt(shape['size'])}."
            )
        _check_counts(shape["counts"], height * width, where)
        rle = coco_mask.frPyObjects(shape, height, width) if isinstance(shape["counts"], list) else shape
    else:
        raise ValueError(f"{where}: `segmentation` must be polygons or RLE, got {excerpt(shape)}.")
    try:
        return coco_mask.decode(rle).astype(bool)
    except ValueError as error:
        raise ValueError(f"{where}: `segmentation` is no RLE of the picture: {error}") from error


def _check_polygons(polygons: list[Any], height: int, width: int, where: str) -> None:
    """Raises ValueError for what pycocotools cannot draw; it takes memory in proportion to a line's length."""
    if not polygons or any(not isinstance(p, list) or len(p) < MIN_POLYGON or len(p) % 2 for p in polygons):
        raise ValueError(
            f"{where}: `segmentation` must be RLE or polygons of three points or more, got {excerpt(polygons)}; "
            "a box alone is no mask."
        )
    furthest = FURTHEST * max(height, width)
    for number in itertools.chain.from_iterable(polygons):
        if not isinstance(number, int | float) or not abs(number) <= furthest:  # NaN is not, either
            raise ValueError(
                f"{where}: points of a polygon must be near the picture of {width}x{height}, got {excerpt(number)}."
            )


def _check_counts(counts: Any, num_pixels: int, where: str) -> None:
    """Raises ValueError for counts with which pycocotools would leave its memory."""
    if isinstance(counts, list):
        is_good = all(isinstance(count, int) and 0 <= count <= num_pixels for count in counts)
    else:  # six bits a letter, of which the highest says that the number goes on
        codes = [ord(letter) - RLE_ZERO for letter in counts] if isinstance(counts, str) else []
        is_good = bool(codes) and all(0 <= code < RLE_CODES for code in codes) and not codes[-1] & RLE_GOES_ON
    if not is_good:
        raise ValueError(
            f"{where}: `counts` must be the lengths of runs of {num_pixels} pixels, got {excerpt(counts)}."
        )


def _log_disputes(masks: list[np.ndarray], ids: np.ndarray, row: Record) -> None:
    claims = np.zeros(ids.shape, dtype=np.int32)
    for mask in masks:
        claims += mask
    disputed = int(np.count_nonzero(claims > 1))
    if disputed:
        covered = len(masks) - len(np.unique(ids[ids > 0]))
        _logger.info(
            "%s: %d pixels lie in several instances; %d instances are covered whole or empty.",
            name_of(row),
            disputed,
            covered,
            extra={"disputed_pixels": disputed, "covered_instances": covered},
        )
