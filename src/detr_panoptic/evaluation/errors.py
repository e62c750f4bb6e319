"""What went wrong: the missed and wrong segments of panoptic quality, split by their cause.

A true segment without a match is one error; a wrong prediction that belongs to it is part of that error, another one
is an error of its own. The kinds follow TIDE (arXiv 2008.08115), which splits the errors of boxes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nlargest
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .matching import MATCH_IOU, SegmentPairs
from .tables import format_table

if TYPE_CHECKING:
    from PIL import Image

KINDS = {
    "missed": "nothing was found there",
    "poor mask": "the right class, but an IoU of 0.5 or less",
    "wrong class": "an IoU above 0.5, but another class",
    "merged": "covered by a prediction that covers a neighbor of its class, too",
    "split": "found in several parts",
    "duplicate": "predicted within a segment that was found already",
    "background": "predicted where there is nothing of the kind",
}
LEAST_IOU = 0.1  # of a poor mask that lies mostly elsewhere; below it, the truth is missed
MOST = 0.5  # the share of a segment that counts as most of it
EXTRA = ("duplicate", "background")  # predictions that belong to no true segment
NOTHING = "nothing"
NUM_EXAMPLES = 4  # of each kind
SHOWN_CONFUSIONS = 10


class SegmentError(NamedTuple):
    """One error; labels are None and ids empty where there is no such segment."""

    kind: str
    true_label: int | None
    found_label: int | None
    true_ids: tuple[int, ...]
    found_ids: tuple[int, ...]
    area: int  # pixels of the true segment, or of the wrong prediction


def find_errors(pairs: SegmentPairs) -> list[SegmentError]:
    """Splits the missed and wrong segments of one image by cause, in the order of `KINDS` where several fit."""
    wrong, errors = set(pairs.wrong()), []
    missed = sorted(pairs.missed(), key=lambda i: -pairs.true[i].area)
    for i in missed:
        kind, found_ids = _cause(pairs, i, wrong)
        wrong -= set(found_ids)
        found_label = pairs.found[found_ids[0]].label if found_ids else None
        errors.append(SegmentError(kind, pairs.true[i].label, found_label, (i,), found_ids, int(pairs.true[i].area)))
    for j in sorted(wrong):
        segment = pairs.found[j]
        around = [i for i, k in pairs.ious if pairs.true[i].label == segment.label and _share(pairs, i, j) > MOST]
        kind = "duplicate" if around else "background"
        errors.append(SegmentError(kind, None, segment.label, tuple(around[:1]), (j,), segment.area))
    return errors


def _cause(pairs: SegmentPairs, i: int, wrong: set[int]) -> tuple[str, tuple[int, ...]]:
    """Returns the kind of error of a missed true segment, and the predictions that belong to it."""
    true = pairs.true[i]
    ious = {j: _iou(pairs, i, j) for j in wrong}
    for j, iou in ious.items():
        if iou > MATCH_IOU:  # its class is another, or it would be a match
            return "wrong class", (j,)
    same = [j for j, segment in pairs.found.items() if segment.label == true.label]
    for j in same:
        most = {k: MOST * other.area for k, other in pairs.true.items() if other.label == true.label}
        covered = [k for k, area in most.items() if pairs.overlaps.get((k, j), 0) > area]
        if i in covered and len(covered) > 1:
            return "merged", (j,)
    parts = tuple(j for j in same if j in wrong and _share(pairs, i, j) > MOST)
    if len(parts) > 1:
        return "split", parts
    near = max((j for j in same if j in wrong), key=lambda j: ious[j], default=None)
    if near is not None and (ious[near] >= LEAST_IOU or parts):
        return "poor mask", (near,)
    return "missed", ()


def _share(pairs: SegmentPairs, i: int, j: int) -> float:
    """Returns the share of a found segment that lies in a true one."""
    return pairs.overlaps.get((i, j), 0) / pairs.found[j].area


def _iou(pairs: SegmentPairs, i: int, j: int) -> float:
    overlap = pairs.overlaps.get((i, j), 0)
    return overlap / (pairs.true[i].area + pairs.found[j].area - overlap - pairs.overlaps.get((0, j), 0))


class ErrorExample(NamedTuple):
    """A part of an image with one error; truth and prediction have only the segments of the error."""

    title: str
    image: Image.Image
    truth: Mapping[str, Any]
    prediction: Mapping[str, Any]


@dataclass(frozen=True)
class ErrorAnalysis:
    """The errors of all images by cause; prints as tables.

    Args:
        counts: number of errors by kind, in the order of `KINDS`, which explains them.
        confusion: number of segments by the names of the true and the found class, matches included; "nothing" stands
            for a segment that was missed or is not there.
        examples: the largest errors of each kind.

    Examples:
        >>> from detr_panoptic import evaluate
        >>> from detr_panoptic.checkpoints import BUNDLED
        >>> errors = evaluate(BUNDLED, "scenes", limit=4, average_precision=False, progress=False).errors
        >>> list(errors.counts)[:3]
        ['missed', 'poor mask', 'wrong class']
    """

    counts: dict[str, int]
    confusion: dict[tuple[str, str], int]
    examples: dict[str, list[ErrorExample]] = field(default_factory=dict, repr=False)

    def confusions(self) -> list[tuple[str, str, int]]:
        """Returns pairs of a true and another found class with their number, the most frequent first."""
        pairs = [(*pair, n) for pair, n in self.confusion.items() if pair[0] != pair[1] and NOTHING not in pair]
        return sorted(pairs, key=lambda pair: (-pair[2], pair))

    def tables(self) -> list[tuple[Sequence[str], list[list[str]]]]:
        """Returns header and rows of the kinds of errors, and of the classes that are most often confused."""
        kinds = [[f"{kind}: {KINDS[kind]}", str(number)] for kind, number in self.counts.items()]
        pairs = [[true, found, str(number)] for true, found, number in self.confusions()[:SHOWN_CONFUSIONS]]
        tables: list[tuple[Sequence[str], list[list[str]]]] = [(("error", "number"), kinds)]
        return [*tables, (("true class", "found class", "number"), pairs)] if pairs else tables

    def __str__(self) -> str:
        """Returns the tables."""
        return "\n\n".join(format_table(header, rows) for header, rows in self.tables())


@dataclass
class ErrorCounts:
    """Counts errors image by image; counts of several processes can be added."""

    kinds: Counter[str] = field(default_factory=Counter)
    labels: Counter[tuple[int | None, int | None]] = field(default_factory=Counter)
    largest: list[tuple[int, int, SegmentError, ErrorExample]] = field(default_factory=list)

    def add(
        self, index: int, pairs: SegmentPairs, record: Mapping[str, Any], sides: Sequence[Mapping[str, Any]]
    ) -> None:
        """Adds an image: its number, its matched segments, its record, and truth and prediction."""
        self.labels.update((pairs.true[i].label, pairs.found[j].label) for i, j in pairs.ious)
        kept = {kind: [item[:2] for item in self.largest if item[2].kind == kind] for kind in KINDS}
        for error in find_errors(pairs):
            self.kinds[error.kind] += 1
            found = error.found_label if error.kind in ("wrong class", *EXTRA) else None
            self.labels[error.true_label, found] += 1
            if len(kept[error.kind]) < NUM_EXAMPLES or (error.area, -index) > min(kept[error.kind]):
                self.largest.append((error.area, -index, error, _example(error, record, sides)))
        self._keep_largest()

    def __iadd__(self, other: ErrorCounts) -> ErrorCounts:
        """Adds the counts of other images."""
        self.kinds += other.kinds
        self.labels += other.labels
        self.largest += other.largest
        self._keep_largest()
        return self

    def _keep_largest(self) -> None:
        by_kind = [[item for item in self.largest if item[2].kind == kind] for kind in KINDS]
        self.largest = [item for items in by_kind for item in nlargest(NUM_EXAMPLES, items, key=lambda i: i[:2])]

    def compute(self, names: Sequence[str]) -> ErrorAnalysis:
        """Returns the errors with the names of the labels."""

        def name(label: int | None) -> str:
            return NOTHING if label is None else names[label]

        by_label = sorted(self.labels.items(), key=lambda item: [(label is None, label or 0) for label in item[0]])
        examples: dict[str, list[ErrorExample]] = {kind: [] for kind in KINDS}
        for _, _, error, example in self.largest:
            labels = " for ".join({name(x): 0 for x in (error.found_label, error.true_label) if x is not None})
            examples[error.kind].append(example._replace(title=f"{labels}: {example.title}"))
        return ErrorAnalysis(
            counts={kind: self.kinds[kind] for kind in KINDS},
            confusion={(name(true), name(found)): number for (true, found), number in by_label},
            examples=examples,
        )


def _example(error: SegmentError, record: Mapping[str, Any], sides: Sequence[Mapping[str, Any]]) -> ErrorExample:
    """Cuts the surroundings of an error out of its image."""
    ids = (error.true_ids, error.found_ids)
    masks = [np.isin(side["segmentation"], wanted) for side, wanted in zip(sides, ids, strict=True)]
    shown = masks[0] | masks[1]  # nothing of a true segment without a pixel: then the whole image
    rows, columns = (np.flatnonzero((shown if shown.any() else ~shown).any(axis)) for axis in (1, 0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    margin = max(bottom - top, right - left) // 2 + 8
    height, width = masks[0].shape
    top, left = max(0, top - margin), max(0, left - margin)
    bottom, right = min(height, bottom + margin), min(width, right + margin)
    cut = []
    for side, mask, wanted in zip(sides, masks, ids, strict=True):
        segmentation = np.where(mask, side["segmentation"], 0)[top:bottom, left:right]
        cut.append(
            {"segmentation": segmentation, "segments_info": [s for s in side["segments_info"] if s["id"] in wanted]}
        )
    image = record["image"].crop((left, top, right, bottom))
    return ErrorExample(str(record.get("file_name") or record["image_id"]), image, *cut)
