"""Matches of the true and the found segments of one image, as panoptic quality counts them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data.records import truth_ids
from ..segment_ids import VOID_ID

MATCH_IOU = 0.5  # two matches of one segment cannot both exceed it, so matching needs no assignment
IGNORED_SHARE = 0.5  # of a wrong prediction's area in void or crowd, above which it does not count


class Segment(NamedTuple):
    """One listed segment."""

    label: int
    area: int
    is_crowd: bool = False


class SegmentPairs(NamedTuple):
    """The segments of an image by id, true and found ones, and how they overlap.

    `overlaps` counts the pixels of each (true id, found id), void included; `ious` are those of matches.
    """

    true: dict[int, Segment]
    found: dict[int, Segment]
    overlaps: Mapping[tuple[int, int], int]
    ious: Mapping[tuple[int, int], float]

    def missed(self) -> list[int]:
        """Returns the true ids without a match, apart from crowds."""
        matched = {true_id for true_id, _ in self.ious}
        return [i for i, segment in self.true.items() if i not in matched and not segment.is_crowd]

    def wrong(self) -> list[int]:
        """Returns the found ids without a match, apart from those that lie in void or in a crowd of their class."""
        matched = {found_id for _, found_id in self.ious}
        crowd_of = {segment.label: i for i, segment in self.true.items() if segment.is_crowd}
        ids = []
        for j, segment in self.found.items():
            excused = self.overlaps.get((VOID_ID, j), 0) + self.overlaps.get((crowd_of.get(segment.label, -1), j), 0)
            if j not in matched and excused / segment.area <= IGNORED_SHARE:
                ids.append(j)
        return ids


def pair_segments(
    truth: Mapping[str, Any], prediction: Mapping[str, Any], category_ids: Sequence[int]
) -> SegmentPairs:
    """Matches the segments of one image; arguments and errors as in `PanopticQuality.update`."""
    overlaps = _overlaps(truth_ids(truth), truth_ids(prediction))
    true_areas, areas = Counter[int](), Counter[int]()
    for (true_id, found_id), overlap in overlaps.items():
        true_areas[true_id] += overlap
        areas[found_id] += overlap
    label_of = {category_id: label for label, category_id in enumerate(category_ids)}
    true = {
        s["id"]: Segment(_label(s, label_of), _area(s, true_areas[s["id"]]), s.get("iscrowd", 0) == 1)
        for s in truth["segments_info"]
    }
    found = {s["id"]: Segment(_label(s, label_of), areas[s["id"]]) for s in prediction["segments_info"]}
    _check_same_ids(areas, found)
    return SegmentPairs(true, found, overlaps, _match(true, found, overlaps))


def _overlaps(true_ids: NDArray[Any], found_ids: NDArray[Any]) -> dict[tuple[int, int], int]:
    """Counts the pixels that each (true id, predicted id) shares, in ascending order of the pairs."""
    if true_ids.shape != found_ids.shape:
        raise ValueError(f"Truth and prediction must have the same shape, got {true_ids.shape} and {found_ids.shape}.")
    true_ids, found_ids = true_ids.ravel(), found_ids.ravel()
    starts_run = np.ones(true_ids.size, dtype=bool)
    starts_run[1:] = (true_ids[1:] != true_ids[:-1]) | (found_ids[1:] != found_ids[:-1])
    starts = np.flatnonzero(starts_run)
    pairs, run_pairs = np.unique(true_ids[starts].astype(np.int64) << 32 | found_ids[starts], return_inverse=True)
    areas = np.bincount(run_pairs, np.diff(starts, append=true_ids.size)).astype(int)
    return {(pair >> 32, pair & 0xFFFFFFFF): area for pair, area in zip(pairs.tolist(), areas.tolist(), strict=True)}


def _match(
    true: dict[int, Segment], found: dict[int, Segment], overlaps: Mapping[tuple[int, int], int]
) -> dict[tuple[int, int], float]:
    """Returns the IoU of each matched (true id, predicted id)."""
    ious = {}
    for (i, j), overlap in overlaps.items():
        if i not in true or j not in found or true[i].is_crowd or true[i].label != found[j].label:
            continue
        union = found[j].area + true[i].area - overlap - overlaps.get((VOID_ID, j), 0)
        if union <= 0:
            raise ValueError(
                f"Segment {i} has the `area` {true[i].area} but shares {overlap} pixels with segment {j}."
            )
        if overlap / union > MATCH_IOU:
            ious[i, j] = overlap / union
    return ious


def _area(segment: Mapping[str, Any], counted: int) -> Any:
    """Returns the listed area of a true segment, as the official evaluator uses it, else the counted one."""
    area: Any = segment.get("area", counted)
    if not isinstance(area, Real) or area < min(counted, 1):
        raise ValueError(f"Segment {segment['id']} must have a number of pixels as its `area`, got {area!r}.")
    return area


def _label(segment: Mapping[str, Any], label_of: Mapping[int, int]) -> int:
    """Returns the label of an entry that has a category id or a label id."""
    if "category_id" not in segment and "label_id" in segment and 0 <= segment["label_id"] < len(label_of):
        return int(segment["label_id"])
    if segment.get("category_id") not in label_of:
        name = "category_id" if "category_id" in segment else "label_id"
        raise ValueError(f"Segment {segment['id']} has the unknown `{name}` {segment.get(name)}.")
    return label_of[segment["category_id"]]


def _check_same_ids(in_map: Collection[int], listed: Collection[int]) -> None:
    """Raises ValueError unless a prediction's map and entries have the same ids."""
    if unlisted := sorted(set(in_map) - set(listed) - {VOID_ID}):
        raise ValueError(f"Segments {unlisted} are in the prediction's map but not in its `segments_info`.")
    if unseen := sorted(set(listed) - set(in_map)):
        raise ValueError(f"Segments {unseen} are in the prediction's `segments_info` but not in its map.")
