"""What can be wrong between an image, its id map and its segments, and counts of what a dataset consists of."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..segment_ids import VOID_ID, SegmentExtents, segment_extents
from .findings import MOSTLY_VOID_SHARE, TINY_AREA, Finding

BOX_TOLERANCE = 1  # pixels; tools differ in whether a box ends at its last pixel or after it
LISTED_IDS = 6  # in a message
DAMAGED_IDS = 16  # more unlisted ids, and more than twice as many as listed ones, are not a slip of an annotator


@dataclass(frozen=True)
class AnnotatedMap:
    """One annotated image, as far as its files could be read.

    Args:
        where: file name of the image.
        image_size: (H, W) of the upright image; None: unreadable.
        ids: (H, W) int32; None: unreadable.
        segments: entries with `id` and `label_id` (None: unknown category), and maybe `area`, `bbox` and `iscrowd`.
        is_thing: of each label.
    """

    where: str
    image_size: tuple[int, int] | None
    ids: np.ndarray | None
    segments: Sequence[Mapping[str, Any]]
    is_thing: Sequence[bool]

    @cached_property
    def extents(self) -> SegmentExtents:
        """Ids, areas and boxes of the map without void."""
        found = segment_extents(np.zeros((0, 0), dtype=np.int32) if self.ids is None else self.ids)
        return SegmentExtents(*(values[found.ids != VOID_ID] for values in found))

    @cached_property
    def measured(self) -> dict[int, tuple[int, list[int]]]:
        """Area and box of each id in the map except void."""
        found = self.extents
        return dict(zip(found.ids.tolist(), zip(found.areas.tolist(), found.boxes.tolist(), strict=True), strict=True))

    @cached_property
    def known(self) -> list[Mapping[str, Any]]:
        """Segments with a known label."""
        labels = range(len(self.is_thing))
        return [segment for segment in self.segments if segment["label_id"] in labels]


def check_annotation(annotation: AnnotatedMap, *, num_queries: int) -> list[Finding]:
    """Returns everything that is wrong between a map, its image and its entries.

    Args:
        annotation: as its files have it.
        num_queries: of the model that will be trained.
    """
    found = [*_check_entries(annotation, num_queries)]
    if annotation.ids is not None:
        found += [*_check_map(annotation, annotation.ids), *_check_measures(annotation)]
    return [Finding(kind, annotation.where, message) for kind, message in found]


Found = Iterator[tuple[str, str]]
"""Kinds and messages: at most one per kind and image, so that counts are counts of images."""


def _check_entries(annotation: AnnotatedMap, num_queries: int) -> Found:
    segments, is_thing = annotation.segments, annotation.is_thing
    listed = Counter(segment["id"] for segment in segments)
    if repeated := [segment_id for segment_id, count in listed.items() if count > 1]:
        yield "repeated-id", f"`segments_info` lists {_listing(repeated)} more than once"
    unknown = [s for s in segments if s["label_id"] is not None and not 0 <= s["label_id"] < len(is_thing)]
    if unknown:
        yield "unknown-category", _listing([f"`label_id` {s['label_id']} (segment {s['id']})" for s in unknown])
    labels = Counter(segment["label_id"] for segment in annotation.known)
    if several := [label for label, count in labels.items() if count > 1 and not is_thing[label]]:
        yield "repeated-stuff", f"several segments of label {_listing(several)}"
    if crowds := [segment["id"] for segment in segments if segment.get("iscrowd")]:
        yield "crowd", f"{len(crowds)} of {len(segments)} segments: {_listing(crowds)}"
    if len(segments) > num_queries:
        yield "many-segments", f"{len(segments)} segments for {num_queries} queries"
    if not segments:
        yield "no-segments", "`segments_info` is empty"


def _check_map(annotation: AnnotatedMap, ids: np.ndarray) -> Found:
    size, measured = annotation.image_size, annotation.measured
    listed = {segment["id"] for segment in annotation.segments}
    if size is not None and ids.shape != size:
        yield "size-mismatch", f"the image has {size[1]}x{size[0]} pixels, its map {ids.shape[1]}x{ids.shape[0]}"
    unlisted = [segment_id for segment_id in measured if segment_id not in listed]
    if len(unlisted) > max(DAMAGED_IDS, 2 * len(listed)):
        yield "damaged-map", f"{len(unlisted)} ids that are not listed, and {len(listed)} that are"
    elif unlisted:
        areas = [f"{segment_id} ({measured[segment_id][0]} pixels)" for segment_id in unlisted]
        yield "unlisted-id", f"`segments_info` must list {_listing(areas)}"
    if empty := sorted(listed - measured.keys()):
        yield "empty-segment", f"the map has no pixel of {_listing(empty)}"
    tiny = [f"{i} ({area} pixels)" for i, (area, _) in measured.items() if area <= TINY_AREA and i in listed]
    if tiny:
        yield "tiny-segment", _listing(tiny)
    share = 1 - int(annotation.extents.areas.sum()) / max(ids.size, 1)
    if share > MOSTLY_VOID_SHARE:
        yield "mostly-void", f"{share:.0%} of the pixels"


def _check_measures(annotation: AnnotatedMap) -> Found:
    present = [segment for segment in annotation.segments if segment["id"] in annotation.measured]
    areas, boxes = [], []
    for segment in present:
        area, box = annotation.measured[segment["id"]]
        given_area, given_box = segment.get("area"), segment.get("bbox")
        if given_area != area:
            areas.append(f"{segment['id']}: {given_area} instead of {area}")
        if given_box is None or any(abs(a - b) > BOX_TOLERANCE for a, b in zip(given_box, box, strict=True)):
            boxes.append(f"{segment['id']}: {given_box} instead of {box}")
    if areas:
        yield "area-mismatch", f"{len(areas)} of {len(present)} segments; {_listing(areas, limit=2)}"
    if boxes:
        yield "box-mismatch", f"{len(boxes)} of {len(present)} segments; {_listing(boxes, limit=2)}"


@dataclass(frozen=True)
class DataCounts:
    """What a dataset consists of, as sums that add.

    Args:
        images: number of images whose map could be read.
        pixels: of their maps.
        void: pixels that belong to no segment.
        crowds: number of crowd segments.
        class_images: (K,) images with a segment of each label.
        class_segments: (K,) segments of each label.
        class_pixels: (K,) pixels of each label.
    """

    images: int
    pixels: int
    void: int
    crowds: int
    class_images: np.ndarray
    class_segments: np.ndarray
    class_pixels: np.ndarray

    @classmethod
    def zeros(cls, num_labels: int) -> "DataCounts":
        """Returns the counts of no image."""
        return cls(0, 0, 0, 0, *(np.zeros(num_labels, dtype=np.int64) for _ in range(3)))

    @classmethod
    def of(cls, annotation: AnnotatedMap) -> "DataCounts":
        """Returns the counts of one image; a segment counts if it has pixels and a known label."""
        num_labels = len(annotation.is_thing)
        if annotation.ids is None:
            return cls.zeros(num_labels)
        known = {segment["id"]: segment for segment in annotation.known}
        seen = [(known[i], area) for i, (area, _) in annotation.measured.items() if i in known]
        labels = np.array([segment["label_id"] for segment, _ in seen], dtype=np.int64)
        segments = np.bincount(labels, minlength=num_labels)
        pixels = np.zeros(num_labels, dtype=np.int64)
        np.add.at(pixels, labels, [area for _, area in seen])
        return cls(
            images=1,
            pixels=annotation.ids.size,
            void=annotation.ids.size - int(annotation.extents.areas.sum()),
            crowds=sum(bool(segment.get("iscrowd")) for segment, _ in seen),
            class_images=(segments > 0).astype(np.int64),
            class_segments=segments,
            class_pixels=pixels,
        )

    def __add__(self, other: "DataCounts") -> "DataCounts":
        """Returns the counts of both."""
        return DataCounts(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def _listing(values: Sequence[Any], *, limit: int = LISTED_IDS) -> str:
    """Returns the first values and how many more there are."""
    more = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(str(value) for value in values[:limit]) + more
