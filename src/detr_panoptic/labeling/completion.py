"""Filling what an annotation leaves void with what a model sees there."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, NamedTuple

import numpy as np

from ..data.categories import Categories
from ..data.findings import TINY_AREA
from ..data.records import measure_segments
from ..segment_ids import VOID_ID, segment_extents

MIN_VISIBLE_SHARE = 0.5  # of a thing; less is mostly an annotated one that the model takes for another class


class LabelMatch(NamedTuple):
    """Which of a model's labels may be added to data, and as what.

    Args:
        categories: of the completed data: its own first, then new ones.
        labels: label of the completed data for each label of the model that may be added.
    """

    categories: Categories
    labels: dict[int, int]


class Completed(NamedTuple):
    """A map whose void was filled.

    Args:
        ids: (H, W).
        segments_info: its segments.
        added: pixels that each label got.
    """

    ids: np.ndarray
    segments_info: list[dict[str, Any]]
    added: dict[int, int]


def match_labels(data: Categories, model: Categories, *, with_things: bool) -> LabelMatch:
    """Which of a model's labels may be added, and as what; classes are the same if their names are.

    Stuff may be added, with `with_things` also things of classes that the data does not have: of those that it has,
    every one is annotated. What the data has as things is never added as stuff.

    Args:
        data: labels of the data.
        model: labels of the model.
        with_things: whether things may be added.

    Returns:
        A new class keeps the model's category id, unless the data has another class of that id: then it gets one
        that neither has.
    """
    taken = {*data.category_ids, *model.category_ids}
    completed, labels = data, {}
    for label, (name, is_thing) in enumerate(zip(model.names, model.is_thing, strict=True)):
        if name in data.names:
            own = data.names.index(name)
            if not is_thing and not data.is_thing[own]:
                labels[label] = own
            continue
        if is_thing and not with_things:
            continue
        category_id = model.category_ids[label]
        if category_id in data.category_ids:
            category_id = max(taken) + 1
            taken.add(category_id)
        labels[label] = len(completed)
        completed = replace(
            completed,
            names=(*completed.names, name),
            is_thing=(*completed.is_thing, is_thing),
            category_ids=(*completed.category_ids, category_id),
        )
    return LabelMatch(completed, labels)


def fill_void(
    ids: np.ndarray,
    segments_info: Sequence[Mapping[str, Any]],
    seen: np.ndarray,
    seen_segments: Sequence[Mapping[str, Any]],
    match: LabelMatch,
) -> Completed:
    """Fill the void of a map.

    Every annotated pixel stays what it is. Stuff that is annotated in a part of the image grows, since stuff has one
    segment; anything else becomes a new one. Left out are segments that would be tiny, and things of which less than
    half would be seen.

    Args:
        ids: (H, W) annotated map.
        segments_info: its entries, as records have them.
        seen: (H, W) map of what the model sees, 0 where it sees nothing or is not sure.
        seen_segments: its entries: `id` and the model's `label_id`.
        match: of the model's labels to those of the result.
    """
    free = np.where(ids == VOID_ID, seen, VOID_ID)
    stuff = {s["label_id"]: s["id"] for s in segments_info if not match.categories.is_thing[s["label_id"]]}
    taken = {segment["id"] for segment in segments_info}
    unused = (new_id for new_id in count(1) if new_id not in taken)
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
        added[label] = added.get(label, 0) + area
    result = ids.copy()
    for seen_id, new_id in new_ids.items():
        result[free == seen_id] = new_id
    grown = set(new_ids.values())
    old = [measure_segments(result, [s])[0] if s["id"] in grown else dict(s) for s in segments_info]
    return Completed(result, old + measure_segments(result, new_segments), added)


def _fitting(
    seen: np.ndarray, free: np.ndarray, seen_segments: Sequence[Mapping[str, Any]], match: LabelMatch
) -> Iterator[tuple[int, int, int]]:
    """Id, new label and free pixels of what may be added."""
    whole, fitting = _areas(seen), _areas(free)
    for segment in seen_segments:
        label = match.labels.get(segment["label_id"])
        area = fitting.get(segment["id"], 0)
        if label is None or area <= TINY_AREA:
            continue
        if not match.categories.is_thing[label] or area >= MIN_VISIBLE_SHARE * whole[segment["id"]]:
            yield segment["id"], label, area


def _areas(ids: np.ndarray) -> dict[int, int]:
    found = segment_extents(ids)
    return dict(zip(found.ids.tolist(), found.areas.tolist(), strict=True))
