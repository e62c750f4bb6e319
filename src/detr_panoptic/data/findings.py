"""What can be wrong with a dataset.

Each format has one validator, its reader, which reports findings to a function: that of `read_panoptic` raises the
first error (`raising`), that of `check_data` collects all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..segment_ids import VOID_ID

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
