"""What can be wrong with a dataset, its counts, and what can be wrong between an image, its id map and its segments.

Each format has one validator, its reader, which reports findings to a function: that of `read_panoptic` raises the
first error (`raising`), that of `check_data` collects all of them.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..segment_ids import VOID_ID, segment_extents
from .plain_text import listing

ERROR, WARNING, NOTE = SEVERITIES = ("error", "warning", "note")
TINY_AREA = 4  # pixels; DETR drops segments of this size or smaller after merging
MOSTLY_VOID_SHARE = 0.5  # of the image


class Kind(NamedTuple):
    """A kind of finding: an "error" stops training or makes it wrong, a "warning" costs quality, a "note" does not."""

    severity: str
    meaning: str


KINDS = {
    "bad-categories": Kind(ERROR, "`categories` lacks a key, or repeats a name or an id"),
    "broken-entry": Kind(ERROR, "an entry of the annotation file lacks a key or has a value of a wrong type"),
    "repeated-image": Kind(ERROR, "two entries of `images` have the same id"),
    "repeated-annotation": Kind(ERROR, "an image is annotated twice"),
    "unknown-image": Kind(ERROR, "an annotation names an image that is not in `images`"),
    "unsafe-path": Kind(ERROR, "a file name leads out of its folder"),
    "unreadable-image": Kind(ERROR, "the image is missing, broken or truncated"),
    "unreadable-map": Kind(ERROR, "the id map is missing, broken or truncated"),
    "unreadable-record": Kind(ERROR, "the files of an image do not follow the format"),
    "size-mismatch": Kind(ERROR, "image and map differ in size"),
    "damaged-map": Kind(ERROR, "the map was compressed with loss, or resized with interpolation: its ids are lost"),
    "unlisted-id": Kind(ERROR, "pixels have an id that `segments_info` does not list"),
    "empty-segment": Kind(ERROR, "`segments_info` lists an id of which the map has no pixel"),
    "repeated-id": Kind(ERROR, "`segments_info` lists an id twice"),
    "impossible-id": Kind(ERROR, f"a segment id is {VOID_ID}, which means void, or does not fit into three bytes"),
    "unknown-category": Kind(ERROR, "a segment has an unknown category"),
    "map-mode": Kind(WARNING, "the map is not an RGB image (palette, gray, alpha, ...): its colors are read as ids"),
    "area-mismatch": Kind(WARNING, "`area` is missing or differs from the map; the map counts"),
    "box-mismatch": Kind(WARNING, "`bbox` is missing or differs from the map; the map counts"),
    "tiny-segment": Kind(WARNING, f"a segment has at most {TINY_AREA} pixels: no model finds it"),
    "repeated-stuff": Kind(WARNING, "a stuff class has several segments in an image; it should have one"),
    "many-segments": Kind(WARNING, "an image has more segments than the model has queries"),
    "mostly-void": Kind(WARNING, f"more than {MOSTLY_VOID_SHARE:.0%} of an image is void"),
    "no-segments": Kind(WARNING, "an image has no segment"),
    "crowd": Kind(NOTE, "an image has crowd segments, which evaluation ignores"),
    "turned-image": Kind(NOTE, "an EXIF tag rotates the image; the map must match the rotated image"),
    "unannotated-image": Kind(NOTE, "`images` has an image without annotation: it is left out"),
    "unused-category": Kind(NOTE, "a class has no segment"),
}


@dataclass(frozen=True)
class Finding:
    """One problem of one image, or of the annotation file."""

    kind: str  # a key of `KINDS`
    where: str  # file name
    message: str  # what was found

    @property
    def severity(self) -> str:
        """One of `SEVERITIES`."""
        return KINDS[self.kind].severity


class DataError(ValueError):
    """A finding as an error; its text begins with the path of the annotation file, if there is one."""

    def __init__(self, kind: str, where: str, message: str, *, path: Path | None = None) -> None:
        place = where if path is None else str(path) if path.name == where else f"{path}, {where}"
        super().__init__(f"{place}: {message}.")
        self.finding = Finding(kind, where, message)


Report = Callable[[str, str, str], None]
"""Takes the kind, place and message of a finding."""


def raising(path: Path | None = None) -> Report:
    """Returns a report function that raises DataError for the first error and ignores warnings and notes."""

    def report(kind: str, where: str, message: str) -> None:
        if KINDS[kind].severity == ERROR:
            raise DataError(kind, where, message, path=path)

    return report


BOX_TOLERANCE = 1  # pixels; tools differ in whether a box ends at its last pixel or after it
DAMAGED_IDS = 16  # more unlisted ids, and more than twice as many as listed ones, are not a slip of an annotator


@dataclass(frozen=True)
class DataCounts:
    """What a dataset consists of, as sums that add."""

    images: int  # number of images whose map could be read
    pixels: int  # of their maps
    void: int  # pixels that belong to no segment
    crowds: int  # number of crowd segments
    class_images: np.ndarray  # (K,) images with a segment of each label
    class_segments: np.ndarray  # (K,) segments of each label
    class_pixels: np.ndarray  # (K,) pixels of each label

    @classmethod
    def zeros(cls, num_labels: int) -> "DataCounts":
        """Returns the counts of no image."""
        return cls(0, 0, 0, 0, *(np.zeros(num_labels, dtype=np.int64) for _ in range(3)))

    def __add__(self, other: "DataCounts") -> "DataCounts":
        """Returns the counts of both."""
        return DataCounts(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class AnnotatedMap:
    """One annotated image, as far as its files could be read."""

    where: str  # file name of the image
    image_size: tuple[int, int] | None  # (H, W) of the upright image; None: unreadable
    ids: np.ndarray | None  # (H, W) int32; None: unreadable
    segments: Sequence[Mapping[str, Any]]  # with `id`, `label_id` (None: unknown), maybe `area`, `bbox`, `iscrowd`
    is_thing: Sequence[bool]  # of each label

    @cached_property
    def measured(self) -> dict[int, tuple[int, list[int]]]:
        """Area and box of each id in the map except void."""
        if self.ids is None:
            return {}
        found = segment_extents(self.ids)
        measures = zip(found.ids.tolist(), found.areas.tolist(), found.boxes.tolist(), strict=True)
        return {segment_id: (area, box) for segment_id, area, box in measures if segment_id != VOID_ID}

    @cached_property
    def known(self) -> list[Mapping[str, Any]]:
        """Segments with a known label."""
        return [segment for segment in self.segments if segment["label_id"] in range(len(self.is_thing))]

    @property
    def void(self) -> int:
        """Number of void pixels."""
        return (0 if self.ids is None else self.ids.size) - sum(area for area, _ in self.measured.values())

    def findings(self, num_queries: int) -> list[Finding]:
        """Returns everything that is wrong: at most one finding per kind, so that counts are counts of images."""
        found = [*self._check_entries(num_queries), *self._check_map(), *self._check_measures()]
        return [Finding(kind, self.where, message) for kind, message in found]

    def counts(self) -> DataCounts:
        """Counts the image; a segment counts if it has pixels and a known label."""
        counts = DataCounts.zeros(len(self.is_thing))
        if self.ids is None:
            return counts
        seen = [segment for segment in {s["id"]: s for s in self.known}.values() if segment["id"] in self.measured]
        for segment in seen:
            counts.class_segments[segment["label_id"]] += 1
            counts.class_pixels[segment["label_id"]] += self.measured[segment["id"]][0]
        counts.class_images[counts.class_segments > 0] = 1
        crowds = sum(bool(segment.get("iscrowd")) for segment in seen)
        return replace(counts, images=1, pixels=self.ids.size, void=self.void, crowds=crowds)

    def _check_entries(self, num_queries: int) -> Iterator[tuple[str, str]]:
        segments, is_thing = self.segments, self.is_thing
        if repeated := [i for i, count in Counter(s["id"] for s in segments).items() if count > 1]:
            yield "repeated-id", f"`segments_info` lists {listing(repeated)} more than once"
        if unknown := [s for s in segments if s["label_id"] is not None and s not in self.known]:
            yield "unknown-category", listing([f"`label_id` {s['label_id']} (segment {s['id']})" for s in unknown])
        labels = Counter(segment["label_id"] for segment in self.known)
        if several := [label for label, count in labels.items() if count > 1 and not is_thing[label]]:
            yield "repeated-stuff", f"several segments of label {listing(several)}"
        if crowds := [segment["id"] for segment in segments if segment.get("iscrowd")]:
            yield "crowd", f"{len(crowds)} of {len(segments)} segments: {listing(crowds)}"
        if len(segments) > num_queries:
            yield "many-segments", f"{len(segments)} segments for {num_queries} queries"
        if not segments:
            yield "no-segments", "`segments_info` is empty"

    def _check_map(self) -> Iterator[tuple[str, str]]:
        if self.ids is None:
            return
        (height, width), size, measured = self.ids.shape, self.image_size, self.measured
        listed = {segment["id"] for segment in self.segments}
        if size not in (None, (height, width)):
            yield "size-mismatch", f"the image has {size[1]}x{size[0]} pixels, its map {width}x{height}"
        unlisted = [segment_id for segment_id in measured if segment_id not in listed]
        if len(unlisted) > max(DAMAGED_IDS, 2 * len(listed)):
            yield "damaged-map", f"{len(unlisted)} ids that are not listed, and {len(listed)} that are"
        elif unlisted:
            areas = [f"{segment_id} ({measured[segment_id][0]} pixels)" for segment_id in unlisted]
            yield "unlisted-id", f"`segments_info` must list {listing(areas)}"
        if empty := sorted(listed - measured.keys()):
            yield "empty-segment", f"the map has no pixel of {listing(empty)}"
        if tiny := [f"{i} ({area} pixels)" for i, (area, _) in measured.items() if area <= TINY_AREA and i in listed]:
            yield "tiny-segment", listing(tiny)
        if self.void > MOSTLY_VOID_SHARE * self.ids.size:
            yield "mostly-void", f"{self.void / self.ids.size:.0%} of the pixels"

    def _check_measures(self) -> Iterator[tuple[str, str]]:
        present = [segment for segment in self.segments if segment["id"] in self.measured]
        areas, boxes = [], []
        for segment in present:
            area, box = self.measured[segment["id"]]
            given_area, given_box = segment.get("area"), segment.get("bbox")
            if given_area != area:
                areas.append(f"{segment['id']}: {given_area} instead of {area}")
            if given_box is None or any(abs(a - b) > BOX_TOLERANCE for a, b in zip(given_box, box, strict=True)):
                boxes.append(f"{segment['id']}: {given_box} instead of {box}")
        for kind, wrong in (("area-mismatch", areas), ("box-mismatch", boxes)):
            if wrong:
                yield kind, f"{len(wrong)} of {len(present)} segments; {listing(wrong, limit=2)}"
