"""Filling the void of an annotation with the segments that a model predicts there."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

import numpy as np

from ..data.findings import TINY_AREA
from ..data.records import measure_segments
from ..segment_ids import VOID_ID, segment_extents
from .classes import LabelMatch

MIN_VISIBLE_SHARE = 0.5  # of a thing; otherwise it is mostly an annotated thing that the model takes for another class


class Filled(NamedTuple):
    """A map (H, W) whose void was filled, its segments, the new pixels by label, and the sum of their scores."""

    ids: np.ndarray
    segments_info: list[dict[str, Any]]
    added: dict[int, int]
    score_sum: float


def fill_void(
    ids: np.ndarray,
    segments_info: Sequence[Mapping[str, Any]],
    seen: np.ndarray,
    seen_segments: Sequence[Mapping[str, Any]],
    match: LabelMatch,
) -> Filled:
    """Fills the void of a map.

    Annotated pixels stay. Stuff that is annotated in a part of the image grows, since stuff has one segment per class;
    everything else becomes a new segment, with the mean score of its parts. Tiny segments, and things of which less
    than half is visible, are left out.

    Args:
        ids: (H, W) annotated map.
        segments_info: its segments, as in records.
        seen: (H, W) map of the model's segments, 0 where there is none or where the model is not sure.
        seen_segments: their `id`, `label_id` (the model's) and `score` (1 by default).
        match: labels that may be added.
    """
    free = np.where(ids == VOID_ID, seen, VOID_ID)
    stuff = {s["label_id"]: s["id"] for s in segments_info if not match.categories.is_thing[s["label_id"]]}
    taken = {segment["id"] for segment in segments_info}
    unused = (new_id for new_id in count(1) if new_id not in taken)
    scores = {segment["id"]: segment.get("score", 1.0) for segment in seen_segments}
    sums = Counter[int]()  # of pixels times score, by new id
    new_ids: dict[int, int] = {}
    new_segments = []
    added: dict[int, int] = {}
    for seen_id, label, area in _fitting(seen, free, seen_segments, match):
        is_thing = match.categories.is_thing[label]
        if is_thing or label not in stuff:
            new_segments.append({"id": next(unused), "label_id": label, "iscrowd": 0})
            new_ids[seen_id] = new_segments[-1]["id"]
            stuff |= {} if is_thing else {label: new_ids[seen_id]}
        else:
            new_ids[seen_id] = stuff[label]
        sums[new_ids[seen_id]] += area * scores[seen_id]
        added[label] = added.get(label, 0) + area
    result = ids.copy()
    for seen_id, new_id in new_ids.items():
        result[free == seen_id] = new_id
    grown = set(new_ids.values())
    old = [measure_segments(result, [s])[0] if s["id"] in grown else dict(s) for s in segments_info]
    new = [{**s, "score": round(sums[s["id"]] / s["area"], 6)} for s in measure_segments(result, new_segments)]
    return Filled(result, old + new, added, sum(sums.values()))


def _fitting(
    seen: np.ndarray, free: np.ndarray, seen_segments: Sequence[Mapping[str, Any]], match: LabelMatch
) -> Iterator[tuple[int, int, int]]:
    """Yields id, new label and free pixels of the segments that may be added."""
    whole, fitting = (
        dict(zip(found.ids.tolist(), found.areas.tolist(), strict=True))
        for found in map(segment_extents, (seen, free))
    )
    for segment in seen_segments:
        label = match.labels.get(segment["label_id"])
        area = fitting.get(segment["id"], 0)
        if label is None or area <= TINY_AREA:
            continue
        if not match.categories.is_thing[label] or area >= MIN_VISIBLE_SHARE * whole[segment["id"]]:
            yield segment["id"], label, area
