"""Matches, wrong predictions and missed segments of one image: what panoptic quality adds up."""

from __future__ import annotations

from collections import Counter
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..segment_ids import VOID_ID

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import ArrayLike

MATCH_IOU = 0.5  # two matches of one segment cannot both exceed it, so matching needs no assignment
IGNORED_SHARE = 0.5  # of a wrong prediction's area in void or crowd, above which it does not count


class _Segment(NamedTuple):
    """One listed segment."""

    class_index: int
    area: int
    is_crowd: bool


_Segments = dict[int, _Segment]


class ImageCounts(NamedTuple):
    """The (class, IoU) of each match in one image, and the classes of wrong predictions and missed segments."""

    matches: list[tuple[int, float]]
    wrong: list[int]
    missed: list[int]


def count_image(
    truth_map: ArrayLike,
    truth_segments: Sequence[Mapping[str, Any]],
    prediction_map: ArrayLike,
    prediction_segments: Sequence[Mapping[str, Any]],
    category_ids: Sequence[int],
) -> ImageCounts:
    """Finds matches, wrong predictions and missed segments of one image, see `PanopticQuality.update`."""
    overlaps = _overlaps(truth_map, prediction_map)
    truth_areas, prediction_areas = Counter[int](), Counter[int]()
    for (truth_id, prediction_id), overlap in overlaps.items():
        truth_areas[truth_id] += overlap
        prediction_areas[prediction_id] += overlap
    class_of = {category_id: index for index, category_id in enumerate(category_ids)}
    truth = {
        s["id"]: _Segment(_class_index(s, class_of), _area(s, truth_areas[s["id"]]), s.get("iscrowd", 0) == 1)
        for s in truth_segments
    }
    prediction = {
        s["id"]: _Segment(_class_index(s, class_of), prediction_areas[s["id"]], is_crowd=False)
        for s in prediction_segments
    }
    _check_same_ids(prediction_areas, prediction)
    ious = _match(truth, prediction, overlaps)
    matched_truth, matched_prediction = ({pair[side] for pair in ious} for side in (0, 1))
    crowd_of_class = {segment.class_index: i for i, segment in truth.items() if segment.is_crowd}
    wrong = []
    for i, segment in prediction.items():
        crowd = crowd_of_class.get(segment.class_index)
        excused = overlaps.get((VOID_ID, i), 0) + (0 if crowd is None else overlaps.get((crowd, i), 0))
        if i not in matched_prediction and excused / segment.area <= IGNORED_SHARE:
            wrong.append(segment.class_index)
    missed = [segment.class_index for i, segment in truth.items() if i not in matched_truth and not segment.is_crowd]
    return ImageCounts([(truth[i].class_index, iou) for (i, _), iou in ious.items()], wrong, missed)


def _area(segment: Mapping[str, Any], counted: int) -> Any:
    """Returns the listed area of a true segment, as the official evaluator uses it, else the counted one."""
    area: Any = segment.get("area", counted)
    if not isinstance(area, Real) or area < min(counted, 1):
        raise ValueError(f"Segment {segment['id']} must have a number of pixels as its `area`, got {area!r}.")
    return area


def _overlaps(truth_map: ArrayLike, prediction_map: ArrayLike) -> dict[tuple[int, int], int]:
    """Counts the pixels that each (truth id, prediction id) shares, in ascending order of the pairs."""
    shapes = (np.shape(truth_map), np.shape(prediction_map))
    if shapes[0] != shapes[1]:
        raise ValueError(f"Truth and prediction must have the same shape, got {shapes[0]} and {shapes[1]}.")
    truth, prediction = (np.asarray(ids).ravel() for ids in (truth_map, prediction_map))
    if not truth.size:
        return {}
    is_start = np.ones(len(truth), dtype=bool)
    np.not_equal(truth[1:], truth[:-1], out=is_start[1:])
    is_start[1:] |= prediction[1:] != prediction[:-1]
    starts = np.flatnonzero(is_start)
    run_lengths = np.diff(starts, append=len(truth))
    pairs = truth[starts].astype(np.int64) << 32 | prediction[starts].astype(np.int64)
    order = pairs.argsort()
    pairs = pairs[order]
    first = np.flatnonzero(np.append(True, pairs[1:] != pairs[:-1]))
    areas = np.add.reduceat(run_lengths[order], first).tolist()
    truth_ids, prediction_ids = (pairs[first] >> 32).tolist(), (pairs[first] & 0xFFFFFFFF).tolist()
    return dict(zip(zip(truth_ids, prediction_ids, strict=True), areas, strict=True))


def _match(truth: _Segments, prediction: _Segments, overlaps: Mapping[tuple[int, int], int]) -> dict[Any, float]:
    """Returns the IoU of each matched (truth id, prediction id)."""
    ious = {}
    for (i, j), overlap in overlaps.items():
        if i not in truth or j not in prediction:
            continue
        if truth[i].is_crowd or truth[i].class_index != prediction[j].class_index:
            continue
        union = prediction[j].area + truth[i].area - overlap - overlaps.get((VOID_ID, j), 0)
        if union <= 0:
            raise ValueError(
                f"Segment {i} has the `area` {truth[i].area} but shares {overlap} pixels with segment {j}."
            )
        if overlap / union > MATCH_IOU:
            ious[i, j] = overlap / union
    return ious


def _class_index(segment: Mapping[str, Any], class_of: Mapping[int, int]) -> int:
    """Returns the class of an entry that has a category id or a label id."""
    if "category_id" not in segment and "label_id" in segment and 0 <= segment["label_id"] < len(class_of):
        return int(segment["label_id"])
    if segment.get("category_id") not in class_of:
        name = "category_id" if "category_id" in segment else "label_id"
        raise ValueError(f"Segment {segment['id']} has the unknown `{name}` {segment.get(name)}.")
    return class_of[segment["category_id"]]


def _check_same_ids(in_map: Collection[int], listed: Collection[int]) -> None:
    """Raises ValueError unless a prediction's map and entries have the same ids."""
    if unlisted := sorted(set(in_map) - set(listed) - {VOID_ID}):
        raise ValueError(f"Segments {unlisted} are in the prediction's map but not in its `segments_info`.")
    if unseen := sorted(set(listed) - set(in_map)):
        raise ValueError(f"Segments {unseen} are in the prediction's `segments_info` but not in its map.")
