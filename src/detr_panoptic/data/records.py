"""The canonical record: what every reader returns and the image processor takes.

`image` is an RGB image, `segmentation` its id map as an RGB image of the same size (id = R + 256 G + 256^2 B, 0 is
void), and `segments_info` has one entry per segment. `image_id` is an integer, `file_name` the name of the image in
its source, or None.

The features of a dataset carry its categories, so they survive `save_to_disk`, `to_parquet` and `push_to_hub`: names
as those of a `ClassLabel`, which the Hub shows; things and category ids as JSON in its `id`.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from datasets import ClassLabel, Features, Image, List, Value
from numpy.typing import ArrayLike, NDArray
from PIL import Image as PILImage

from ..segment_ids import MAX_ID, VOID_ID, segment_extents
from .categories import Categories

Record = dict[str, Any]


def panoptic_features(categories: Categories | None = None, *, with_scores: bool = False) -> Features:
    """Returns the columns of the canonical record for `datasets`; with scores, segments have a `score`."""
    segment = {
        "id": Value("int64"),
        "label_id": Value("int64") if categories is None else _label_feature(categories),
        "iscrowd": Value("int64"),
        "area": Value("int64"),
        "bbox": List(Value("int64"), length=4),
        **({"score": Value("float32")} if with_scores else {}),
    }
    columns = {
        "image": Image(mode="RGB"),  # grayscale photographs exist in COCO
        "image_id": Value("int64"),
        "file_name": Value("string"),
        "segmentation": Image(mode="RGB"),
        "segments_info": List(segment),
    }
    return Features(columns)


def has_scores(features: Features | None) -> bool:
    """Returns whether the segments of records have a `score`."""
    segments = (features or {}).get("segments_info")
    return isinstance(segments, List) and "score" in segments.feature


def _label_feature(categories: Categories) -> ClassLabel:
    kinds = {"is_thing": [int(thing) for thing in categories.is_thing], "category_ids": list(categories.category_ids)}
    return ClassLabel(names=list(categories.names), id=json.dumps(kinds))


def categories_of(features: Features | None) -> Categories | None:
    """Returns the categories that `panoptic_features` stored in the features of a dataset, or None."""
    segments = (features or {}).get("segments_info")
    entry = segments.feature if isinstance(segments, List) else None
    label = entry.get("label_id") if isinstance(entry, dict) else None
    if not isinstance(label, ClassLabel) or not label.id:
        return None
    kinds = json.loads(label.id)
    return Categories(tuple(label.names), tuple(map(bool, kinds["is_thing"])), tuple(kinds["category_ids"]))


def segmentation_ids(segmentation: PILImage.Image | np.ndarray) -> np.ndarray:
    """Returns the id map (H, W) of a record's `segmentation`: int32 of an RGB image, int64 of an array."""
    if isinstance(segmentation, PILImage.Image):
        # As Pillow keeps RGB in memory, in a sixth of the time of `rgb_to_ids`.
        packed = np.frombuffer(segmentation.convert("RGB").tobytes("raw", "RGBX"), "<i4")
        return packed.reshape(segmentation.size[::-1]) & MAX_ID
    ids = np.asarray(segmentation)
    return ids if ids.dtype == np.int32 else ids.astype(np.int64, copy=False)


def truth_ids(record: Mapping[str, Any]) -> np.ndarray:
    """Returns the (H, W) integer id map of a canonical record; 0 is void."""
    return segmentation_ids(record["segmentation"])


def measure_segments(ids: np.ndarray, segments_info: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Measures `area` and `bbox` [x, y, width, height], in pixels, of segments in an (H, W) map of integers.

    Returns new entries in the same order, without those that have no pixel; keys other than `id` are kept.

    Examples:
        >>> measure_segments(np.array([[0, 7, 7]]), [{"id": 7}, {"id": 8}])
        [{'id': 7, 'area': 2, 'bbox': [1, 0, 2, 1]}]
    """
    found = segment_extents(ids)
    places = {segment_id: place for place, segment_id in enumerate(found.ids.tolist())}
    areas, boxes = found.areas.tolist(), found.boxes.tolist()
    kept = [(segment, places[segment["id"]]) for segment in segments_info if segment["id"] in places]
    return [{**segment, "area": areas[place], "bbox": boxes[place]} for segment, place in kept]


def fill_measures(ids: np.ndarray, segments_info: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Measures the `area` and `bbox` that are missing or None; others stay as they are.

    A segment without pixels is kept with an area of 0; `check_data` reports it.
    """
    entries = [{**segment, "area": segment.get("area"), "bbox": segment.get("bbox")} for segment in segments_info]
    if all(None not in (entry["area"], entry["bbox"]) for entry in entries):
        return entries
    measured = {entry["id"]: entry for entry in measure_segments(ids, entries)}
    nothing = {"area": 0, "bbox": [0, 0, 0, 0]}
    found = [measured.get(entry["id"], nothing) for entry in entries]
    for entry, measures in zip(entries, found, strict=True):
        entry.update({key: measures[key] for key in nothing if entry[key] is None})
    return entries


def ids_to_rgb(ids: ArrayLike) -> NDArray[np.uint8]:
    """Returns (H, W) integer segment ids as colors (H, W, 3) uint8, the inverse of `rgb_to_ids`.

    Raises:
        ValueError: the ids are not integers or do not fit into three bytes.
    """
    values: NDArray[Any] = np.asarray(ids)
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"`ids` must be integers, got {values.dtype}.")
    if values.size and (values.min() < VOID_ID or values.max() > MAX_ID):
        raise ValueError(f"`ids` must lie in [0, {MAX_ID}], got {values.min()} to {values.max()}.")
    return np.stack([values >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)
