"""What can be wrong with panoptic annotations, as findings; nothing is repaired and nothing is refused.

An annotation comes as its files have it (`check_sources.py` opens them), so that a list of all problems is made where
a reader stops at the first.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ..segment_ids import MAX_ID, VOID_ID, SegmentExtents, segment_extents
from .categories import Categories

ERROR, WARNING, NOTE = SEVERITIES = ("error", "warning", "note")
TINY_AREA = 4  # pixels; DETR drops segments of this size or smaller after merging
MOSTLY_VOID_SHARE = 0.5  # of the image
BOX_TOLERANCE = 1  # pixels; tools differ in whether a box ends at its last pixel or after it
LISTED_IDS = 6  # in a message
DAMAGED_IDS = 16  # so many unlisted ids, and more than twice as many as listed ones, are no slip of an annotator
ALLOWED_PER_STUFF_CLASS = 1  # segments in an image; COCO's format has no instances of stuff


class Kind(NamedTuple):
    """How bad it is (an "error" makes training wrong or stops it), and what it is."""

    severity: str
    meaning: str


KINDS = {
    "bad-categories": Kind(ERROR, "`categories` lacks a key, or repeats a name or an id"),
    "broken-entry": Kind(ERROR, "an entry of the annotation file lacks a key or has a value of a wrong type"),
    "repeated-image": Kind(ERROR, "two entries of `images` have one id"),
    "repeated-annotation": Kind(ERROR, "an image is annotated twice"),
    "unknown-image": Kind(ERROR, "an annotation names an image that `images` does not hold"),
    "unsafe-path": Kind(ERROR, "a file name leads out of its folder"),
    "unreadable-image": Kind(ERROR, "the image is missing, broken or cut short"),
    "unreadable-record": Kind(ERROR, "the reader of the format cannot make a record of what it finds"),
    "unreadable-map": Kind(ERROR, "the map is missing, broken or cut short"),
    "size-mismatch": Kind(ERROR, "image and map differ in size"),
    "damaged-map": Kind(ERROR, "the map was compressed with loss, or resized with interpolation: its ids are gone"),
    "unlisted-id": Kind(ERROR, "pixels have an id that `segments_info` does not list"),
    "empty-segment": Kind(ERROR, "`segments_info` lists an id of which the map has no pixel"),
    "repeated-id": Kind(ERROR, "`segments_info` lists an id twice"),
    "impossible-id": Kind(ERROR, f"an id is {VOID_ID}, which means void, or does not fit into three bytes"),
    "unknown-category": Kind(ERROR, "a segment's category is out of range"),
    "map-mode": Kind(WARNING, "the map is no RGB picture (palette, gray, alpha, ...): its colors are read as ids"),
    "area-mismatch": Kind(WARNING, "`area` is missing or not what the map has; the map counts"),
    "box-mismatch": Kind(WARNING, "`bbox` is missing or not what the map has; the map counts"),
    "tiny-segment": Kind(WARNING, f"a segment has at most {TINY_AREA} pixels: no model finds it"),
    "repeated-stuff": Kind(WARNING, "a stuff class has several segments in an image; it should have one"),
    "many-segments": Kind(WARNING, "an image has more segments than the model has queries: some are never learned"),
    "mostly-void": Kind(WARNING, f"more than {MOSTLY_VOID_SHARE:.0%} of an image is void"),
    "no-segments": Kind(WARNING, "an image has no segment at all"),
    "crowd": Kind(NOTE, "an image has crowd segments, which evaluation ignores"),
    "turned-image": Kind(NOTE, "a rotation tag turns the image; the map must be of the turned one"),
    "unannotated-image": Kind(NOTE, "`images` holds an image without annotation: it is left out"),
    "unused-category": Kind(NOTE, "a class has no segment"),
}


@dataclass(frozen=True)
class Finding:
    """One problem of one image, or of the annotation file.

    Args:
        kind: a key of `KINDS`.
        where: file name.
        message: what was found.
    """

    kind: str
    where: str
    message: str

    @property
    def severity(self) -> str:
        """One of `SEVERITIES`."""
        return KINDS[self.kind].severity


@dataclass(frozen=True)
class AnnotatedMap:
    """One annotated image, as far as its files could be read.

    Args:
        where: file name of the image.
        image_size: (H, W) of the upright image; None: unreadable.
        ids: (H, W) int32; None: unreadable.
        segments: entries with integer `id`, and `label_id`, which is None for an unknown `category_id`; `area`,
            `bbox` and `iscrowd` if they are there.
        is_thing: of each label.
    """

    where: str
    image_size: tuple[int, int] | None
    ids: np.ndarray | None
    segments: Sequence[Mapping[str, Any]]
    is_thing: Sequence[bool]

    @cached_property
    def extents(self) -> SegmentExtents:
        """Of all ids but void."""
        found = segment_extents(np.zeros((0, 0), dtype=np.int32) if self.ids is None else self.ids)
        return SegmentExtents(*(values[found.ids != VOID_ID] for values in found))

    @cached_property
    def measured(self) -> dict[int, tuple[int, list[int]]]:
        """Area and box of each id in the map but void."""
        found = self.extents
        return dict(zip(found.ids.tolist(), zip(found.areas.tolist(), found.boxes.tolist(), strict=True), strict=True))

    @cached_property
    def listed(self) -> Counter[int]:
        """How often `segments` lists each id."""
        return Counter(segment["id"] for segment in self.segments)


def check_annotation(annotation: AnnotatedMap, *, num_queries: int) -> list[Finding]:
    """All that is wrong between a map, its image and its entries.

    Args:
        annotation: as its files have it.
        num_queries: of the model that is to be trained.
    """
    found = [
        *(finding for check in ENTRY_CHECKS for finding in check(annotation)),
        *_check_count(annotation, num_queries),
    ]
    if annotation.ids is not None:
        found += [finding for check in MAP_CHECKS for finding in check(annotation)]
    return [Finding(kind, annotation.where, message) for kind, message in found]


Found = Iterator[tuple[str, str]]
"""Kinds and messages: at most one per kind and image, so that counts are counts of images."""


def _check_ids(annotation: AnnotatedMap) -> Found:
    repeated = [segment_id for segment_id, count in annotation.listed.items() if count > 1]
    if repeated:
        yield "repeated-id", f"`segments_info` lists {_listing(repeated)} more than once"
    impossible = [segment_id for segment_id in annotation.listed if not VOID_ID < segment_id <= MAX_ID]
    if impossible:
        yield "impossible-id", f"ids must be from 1 to {MAX_ID}, got {_listing(impossible)}"


def _check_categories(annotation: AnnotatedMap) -> Found:
    num_labels = len(annotation.is_thing)
    unknown = [segment for segment in annotation.segments if not _has_label(segment, num_labels)]
    if unknown:
        named = [f"{_category_of(segment)} (segment {segment['id']})" for segment in unknown]
        yield "unknown-category", f"unknown: {_listing(named)}"


def _check_stuff(annotation: AnnotatedMap) -> Found:
    is_thing = annotation.is_thing
    labels = Counter(s["label_id"] for s in annotation.segments if _has_label(s, len(is_thing)))
    repeated = [label for label, n in labels.items() if n > ALLOWED_PER_STUFF_CLASS and not is_thing[label]]
    if repeated:
        yield "repeated-stuff", f"several segments of label {_listing(repeated)}"


def _check_crowds(annotation: AnnotatedMap) -> Found:
    crowds = [segment["id"] for segment in annotation.segments if segment.get("iscrowd")]
    if crowds:
        yield "crowd", f"{len(crowds)} of {len(annotation.segments)} segments: {_listing(crowds)}"


def _check_count(annotation: AnnotatedMap, num_queries: int) -> Found:
    count = len(annotation.segments)
    if count > num_queries:
        yield "many-segments", f"{count} segments for {num_queries} queries"
    if not count:
        yield "no-segments", "`segments_info` is empty"


def _check_size(annotation: AnnotatedMap) -> Found:
    size = annotation.image_size
    if annotation.ids is not None and size is not None and annotation.ids.shape != size:
        height, width = annotation.ids.shape
        yield "size-mismatch", f"the image has {size[1]}x{size[0]} pixels, its map {width}x{height}"


def _check_agreement(annotation: AnnotatedMap) -> Found:
    unlisted = [segment_id for segment_id in annotation.measured if segment_id not in annotation.listed]
    if len(unlisted) > max(DAMAGED_IDS, 2 * len(annotation.listed)):
        yield "damaged-map", f"{len(unlisted)} ids that are not listed, beside {len(annotation.listed)} that are"
    elif unlisted:
        areas = [f"{segment_id} ({annotation.measured[segment_id][0]} pixels)" for segment_id in unlisted]
        yield "unlisted-id", f"`segments_info` must list {_listing(areas)}"
    empty = [segment_id for segment_id in annotation.listed if segment_id not in annotation.measured]
    if empty:
        yield "empty-segment", f"the map has no pixel of {_listing(empty)}"


def _check_measures(annotation: AnnotatedMap) -> Found:
    present = [segment for segment in annotation.segments if segment["id"] in annotation.measured]
    areas, boxes = [], []
    for segment in present:
        area, box = annotation.measured[segment["id"]]
        if not _is_close([segment.get("area")], [area], tolerance=0.5):
            areas.append(f"{segment['id']}: {segment.get('area')} instead of {area}")
        if not _is_close(segment.get("bbox"), box, tolerance=BOX_TOLERANCE):
            boxes.append(f"{segment['id']}: {segment.get('bbox')} instead of {box}")
    if areas:
        yield "area-mismatch", f"{len(areas)} of {len(present)} segments; {_listing(areas, limit=2)}"
    if boxes:
        yield "box-mismatch", f"{len(boxes)} of {len(present)} segments; {_listing(boxes, limit=2)}"


def _check_tiny(annotation: AnnotatedMap) -> Found:
    tiny = [
        f"{segment_id} ({area} pixels)"
        for segment_id, (area, _) in annotation.measured.items()
        if area <= TINY_AREA and segment_id in annotation.listed
    ]
    if tiny:
        yield "tiny-segment", _listing(tiny)


def _check_void(annotation: AnnotatedMap) -> Found:
    if annotation.ids is not None and annotation.ids.size:
        share = 1 - int(annotation.extents.areas.sum()) / annotation.ids.size
        if share > MOSTLY_VOID_SHARE:
            yield "mostly-void", f"{share:.0%} of the pixels"


ENTRY_CHECKS: tuple[Callable[[AnnotatedMap], Found], ...] = (
    _check_ids,
    _check_categories,
    _check_stuff,
    _check_crowds,
)
MAP_CHECKS: tuple[Callable[[AnnotatedMap], Found], ...] = (
    _check_size,
    _check_agreement,
    _check_measures,
    _check_tiny,
    _check_void,
)


@dataclass(frozen=True)
class DataCounts:
    """What a dataset consists of, as sums that add.

    Args:
        images: number of images whose map could be read.
        pixels: of their maps.
        void: pixels of them that belong to no segment.
        crowds: segments that are crowds.
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
        """Of no image."""
        return cls(0, 0, 0, 0, *(np.zeros(num_labels, dtype=np.int64) for _ in range(3)))

    @classmethod
    def of(cls, annotation: AnnotatedMap) -> "DataCounts":
        """Of one image; a segment counts if it has pixels and a known label."""
        num_labels = len(annotation.is_thing)
        if annotation.ids is None:
            return cls.zeros(num_labels)
        known = {s["id"]: s for s in annotation.segments if _has_label(s, num_labels)}
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
        """Of both."""
        return DataCounts(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def unused_categories(counts: DataCounts, categories: Categories, where: str) -> list[Finding]:
    """A finding that names the classes without a segment, if there are any."""
    unused = [name for name, count in zip(categories.names, counts.class_segments, strict=True) if not count]
    if not unused:
        return []
    message = f"{len(unused)} of {len(categories)} classes: {_listing(unused, limit=2 * LISTED_IDS)}"
    return [Finding("unused-category", where, message)]


def _has_label(segment: Mapping[str, Any], num_labels: int) -> bool:
    label = segment.get("label_id")
    return label is not None and 0 <= label < num_labels


def _category_of(segment: Mapping[str, Any]) -> str:
    key = "label_id" if segment.get("category_id") is None else "category_id"
    return f"`{key}` {segment.get(key)}"


def _is_close(values: Any, expected: Sequence[int], *, tolerance: float) -> bool:
    """Whether a list from a file holds these numbers; it may hold anything."""
    if not isinstance(values, Sequence) or len(values) != len(expected):
        return False
    numbers = all(isinstance(value, (int, float)) for value in values)
    return numbers and all(abs(value - other) <= tolerance for value, other in zip(values, expected, strict=True))


def _listing(values: Sequence[Any], *, limit: int = LISTED_IDS) -> str:
    """The first values, and how many more there are."""
    more = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(str(value) for value in values[:limit]) + more
