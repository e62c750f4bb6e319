"""Panoptic quality (Kirillov et al., arXiv 1801.00868), equal to cocodataset/panopticapi's to the last bit.

Letter: K classes, in the order of `category_ids`.

Kept from the official evaluator: a pair matches above an IoU of 0.5; the union leaves out void; crowds are neither
found nor missed; a prediction that lies by more than half in void, or in the crowd of its class, is not counted as
wrong; where a class has several crowds in an image, only the last listed one excuses; a true segment's area is the
listed one.

Differences:
  * statistics are values that add, so that images, shards and processes combine;
  * intersections are counted over runs of equal pixels: a row of a map is some ten runs, not some 600 pixels;
  * no class at all gives 0, not a division by zero;
  * an unknown category of a true segment is an error too, and errors are ValueError.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import reduce
from numbers import Real
from operator import add
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..segment_ids import VOID_ID

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import ArrayLike

MATCH_IOU = 0.5  # two matches of one segment cannot both exceed it, so matching needs no assignment
IGNORED_SHARE = 0.5  # of a wrong prediction's area in void or crowd, above which it is not counted


@dataclass(frozen=True, eq=False)
class PanopticStats:
    """Per-class sums behind PQ; they add. Counts are exact in any order, `iou` up to float64 rounding."""

    iou: Tensor  # (K,) float64, summed over matches
    tp: Tensor  # (K,) int64
    fp: Tensor  # (K,) int64
    fn: Tensor  # (K,) int64

    @classmethod
    def zeros(cls, num_classes: int) -> PanopticStats:
        """Nothing seen yet: the start of a sum."""
        return cls.from_tensor(torch.zeros(4, num_classes, dtype=torch.float64))

    @classmethod
    def from_tensor(cls, sums: Tensor) -> PanopticStats:
        """The inverse of `to_tensor`."""
        iou, *counts = sums.cpu().unbind()
        tp, fp, fn = (count.round().long() for count in counts)
        return cls(iou, tp, fp, fn)

    def to_tensor(self) -> Tensor:
        """All sums as (4, K) float64, to be added up over processes."""
        return torch.stack([self.iou, self.tp.double(), self.fp.double(), self.fn.double()])

    def __add__(self, other: PanopticStats) -> PanopticStats:
        """Statistics of both sets of images."""
        return PanopticStats(self.iou + other.iou, self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)

    def pq(self) -> Tensor:
        """(K,) float64 panoptic quality; NaN for a class that never occurs."""
        return self.iou / (self.tp + 0.5 * self.fp.double() + 0.5 * self.fn.double())

    def sq(self) -> Tensor:
        """(K,) float64 segmentation quality, the mean IoU of matches; NaN for a class without any."""
        return self.iou / self.tp

    def rq(self) -> Tensor:
        """(K,) float64 recognition quality, the F1 score; NaN for a class that never occurs."""
        return self.tp / (self.tp + 0.5 * self.fp.double() + 0.5 * self.fn.double())


class _Segment(NamedTuple):
    """One listed segment."""

    class_index: int
    area: int
    is_crowd: bool


class ImageCounts(NamedTuple):
    """What one image adds: (class, IoU) of each match, and the classes of wrong predictions and missed segments."""

    matches: list[tuple[int, float]]
    wrong: list[int]
    missed: list[int]


def panoptic_stats(
    truth_map: ArrayLike,
    truth_segments: Sequence[Mapping[str, Any]],
    prediction_map: ArrayLike,
    prediction_segments: Sequence[Mapping[str, Any]],
    category_ids: Sequence[int],
) -> PanopticStats:
    """Compare the two maps of one image.

    Args:
        truth_map: (H, W) integer ids, array or CPU tensor; 0 is void, ids below 2³¹.
        truth_segments: {id, category_id or label_id, iscrowd, area} each; `iscrowd` is 0 and `area` is counted in the
            map where they are missing.
        prediction_map: as `truth_map`.
        prediction_segments: {id, category_id or label_id} each.
        category_ids: the category id of each class; a label id is an index into them.

    Raises:
        ValueError: if shapes differ, a category is unknown, or the prediction's map and segments differ in their ids.
    """
    counts = count_image(truth_map, truth_segments, prediction_map, prediction_segments, category_ids)
    return _add_matches([counts], len(category_ids))


def panoptic_quality(
    stats: PanopticStats, *, category_ids: Sequence[int], is_thing: Sequence[bool]
) -> dict[str, dict[Any, Any]]:
    """Average over classes, as the official evaluator returns it.

    Args:
        stats: sums over images, K classes.
        category_ids: K category ids.
        is_thing: K flags.

    Returns:
        `All`, `Things` and `Stuff`, each {pq, sq, rq, n} with n the number of classes that occur; `per_class`
        {category_id: {pq, sq, rq}}, 0 for those that do not. All in [0, 1].
    """
    columns = [torch.nan_to_num(column, nan=0.0).tolist() for column in (stats.pq(), stats.sq(), stats.rq())]
    per_class = [dict(zip(("pq", "sq", "rq"), values, strict=True)) for values in zip(*columns, strict=True)]
    occurs = (stats.tp + stats.fp + stats.fn > 0).tolist()

    def average(wanted: Sequence[bool]) -> dict[str, float]:
        rows = [row for row, occurring, chosen in zip(per_class, occurs, wanted, strict=True) if occurring and chosen]
        # Not sum(): from Python 3.12 on it compensates rounding, which the official evaluator does not.
        sums = {key: reduce(add, (row[key] for row in rows), 0.0) for key in ("pq", "sq", "rq")}
        return {key: value / max(len(rows), 1) for key, value in sums.items()} | {"n": len(rows)}

    return {
        "All": average([True] * len(per_class)),
        "per_class": dict(zip(category_ids, per_class, strict=True)),
        "Things": average(is_thing),
        "Stuff": average([not thing for thing in is_thing]),
    }


def count_image(
    truth_map: ArrayLike,
    truth_segments: Sequence[Mapping[str, Any]],
    prediction_map: ArrayLike,
    prediction_segments: Sequence[Mapping[str, Any]],
    category_ids: Sequence[int],
) -> ImageCounts:
    """Find matches, wrong predictions and missed segments of one image; all else as in `panoptic_stats`."""
    overlaps = _overlaps(truth_map, prediction_map)
    truth_areas: Counter[int] = Counter()
    prediction_areas: Counter[int] = Counter()
    for (truth_id, prediction_id), overlap in overlaps.items():
        truth_areas[truth_id] += overlap
        prediction_areas[prediction_id] += overlap
    class_of = {category_id: index for index, category_id in enumerate(category_ids)}
    truth = {
        segment["id"]: _Segment(
            _class_index(segment, class_of),
            _listed_area(segment, truth_areas[segment["id"]]),
            segment.get("iscrowd", 0) == 1,
        )
        for segment in truth_segments
    }
    prediction = {
        segment["id"]: _Segment(_class_index(segment, class_of), prediction_areas[segment["id"]], is_crowd=False)
        for segment in prediction_segments
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


def _listed_area(segment: Mapping[str, Any], counted: int) -> Any:
    """The area that a true segment says it has, which the official evaluator believes; else the counted one."""
    area: Any = segment.get("area", counted)
    if not isinstance(area, Real) or area < min(counted, 1):
        raise ValueError(f"Segment {segment['id']} must have a number of pixels as its area, got {area!r}.")
    return area


def _overlaps(truth_map: ArrayLike, prediction_map: ArrayLike) -> dict[tuple[int, int], int]:
    """Pixels that each pair of (truth id, prediction id) shares, in ascending order of the pairs."""
    shapes = (np.shape(truth_map), np.shape(prediction_map))
    if shapes[0] != shapes[1]:
        raise ValueError(f"`truth_map` and `prediction_map` must have one shape, got {shapes[0]} and {shapes[1]}.")
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


def _match(
    truth: Mapping[int, _Segment],
    prediction: Mapping[int, _Segment],
    overlaps: Mapping[tuple[int, int], int],
) -> dict[tuple[int, int], float]:
    """IoU of each matched pair of (truth id, prediction id)."""
    ious = {}
    for (i, j), overlap in overlaps.items():
        if i not in truth or j not in prediction:
            continue
        if truth[i].is_crowd or truth[i].class_index != prediction[j].class_index:
            continue
        union = prediction[j].area + truth[i].area - overlap - overlaps.get((VOID_ID, j), 0)
        if union <= 0:
            raise ValueError(
                f"Segment {i} says that its area is {truth[i].area}, and shares {overlap} pixels with {j}."
            )
        if overlap / union > MATCH_IOU:
            ious[i, j] = overlap / union
    return ious


def add_up(images: Sequence[ImageCounts], *, num_classes: int) -> PanopticStats:
    """Statistics of images, to the last bit those of the official evaluator for the same order of images.

    It adds match by match in each process and then the processes, so its last digits depend on the number of cores:
    two, whatever the machine, is what the goldens were made with.
    """
    half = -(-len(images) // 2)
    return _add_matches(images[:half], num_classes) + _add_matches(images[half:], num_classes)


def _add_matches(images: Sequence[ImageCounts], num_classes: int) -> PanopticStats:
    """Statistics of images, IoUs added match by match."""
    iou = [0.0] * num_classes
    tp, fp, fn = ([0] * num_classes for _ in range(3))
    for image in images:
        for index, value in image.matches:
            iou[index] += value
            tp[index] += 1
        for index in image.wrong:
            fp[index] += 1
        for index in image.missed:
            fn[index] += 1
    counts = (torch.tensor(count, dtype=torch.int64) for count in (tp, fp, fn))
    return PanopticStats(torch.tensor(iou, dtype=torch.float64), *counts)


def _class_index(segment: Mapping[str, Any], class_of: Mapping[int, int]) -> int:
    """The class of an entry that has a category id or a label id."""
    if "category_id" not in segment and "label_id" in segment and 0 <= segment["label_id"] < len(class_of):
        return int(segment["label_id"])
    if segment.get("category_id") not in class_of:
        name = "category_id" if "category_id" in segment else "label_id"
        raise ValueError(f"Segment {segment['id']} has the unknown `{name}` {segment.get(name)}.")
    return class_of[segment["category_id"]]


def _check_same_ids(in_map: Collection[int], listed: Collection[int]) -> None:
    """Raise ValueError unless a prediction's map and entries hold the same ids."""
    if unlisted := sorted(set(in_map) - set(listed) - {VOID_ID}):
        raise ValueError(f"Segments {unlisted} are in the prediction's map and not in its `segments_info`.")
    if unseen := sorted(set(listed) - set(in_map)):
        raise ValueError(f"Segments {unseen} are in the prediction's `segments_info` and not in its map.")
