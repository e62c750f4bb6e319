"""Large images: predicted in overlapping tiles, whose segments are joined."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..panoptic_merging import MIN_SEGMENT_AREA

if TYPE_CHECKING:
    from PIL import Image

    from .prediction import Prediction, Segment

MATCHING_IOU = 0.5  # above it, a segment has at most one match, as in panoptic quality
STRIP = 256  # rows that are renumbered at once


class Tiling(NamedTuple):
    """How images are cut: the side of a tile and the least overlap of two neighbors, in pixels."""

    size: int
    overlap: int

    def check(self) -> None:
        """Raises ValueError unless tiles are larger than their overlap."""
        if self.overlap < 2:
            raise ValueError(f"`overlap` must be at least 2 pixels, got {self.overlap}.")
        if self.size <= self.overlap:
            raise ValueError(f"`tile` must be larger than `overlap`, {self.overlap} pixels, got {self.size}.")

    def spans(self, length: int) -> list[tuple[int, int]]:
        """Returns start and end of each tile along an axis of `length` pixels, spread evenly."""
        if length <= self.size:
            return [(0, length)]
        last = length - self.size
        steps = -(-last // (self.size - self.overlap))
        return [(start, start + self.size) for start in (last * step // steps for step in range(steps + 1))]


def predict_tiles(
    image: Image.Image, tiling: Tiling, predict: Callable[[Image.Image], Prediction]
) -> tuple[NDArray[np.int32], list[dict[str, Any]]]:
    """Segments an image tile by tile.

    Two neighbors both predict the pixels in which they overlap. Things of one label are the same thing where their
    masks agree there (IoU above 0.5); stuff is one segment for each label. The border between two tiles lies in the
    middle of the overlap, so that no tile decides about the pixels at its own border. Memory beyond the image and the
    result does not grow with the image.

    Returns:
        What `describe_segments` takes: the segmentation (H, W), and an entry for each id with the best score of its
        parts.
    """
    stitching = _Stitching(np.zeros((image.height, image.width), dtype=np.int32))
    for rows, row_seam in _with_seams(tiling.spans(image.height)):
        for columns, column_seam in _with_seams(tiling.spans(image.width)):
            prediction = predict(image.crop((columns[0], rows[0], columns[1], rows[1])))
            ids = stitching.add(prediction.segments)[prediction.segmentation]
            tile = stitching.canvas[slice(*rows), slice(*columns)]
            above, left = row_seam.end - rows[0], column_seam.end - columns[0]
            stitching.join(ids[:above], tile[:above])
            stitching.join(ids[above:, :left], tile[above:, :left])
            own = np.s_[row_seam.middle - rows[0] :, column_seam.middle - columns[0] :]
            tile[own] = ids[own]
    return stitching.finish()


class _Seam(NamedTuple):
    """Where the overlap with the tile before has its middle, and where it ends."""

    middle: int
    end: int


def _with_seams(spans: list[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], _Seam]]:
    yield spans[0], _Seam(0, 0)
    for (_, end), span in pairwise(spans):
        yield span, _Seam((span[0] + end) // 2, end)


class _Stitching:
    """The map so far, and which of its ids are the same segment.

    `canvas` is (H, W) and holds temporary ids; `parents[i]` leads to the id that i was joined with, or is i.
    """

    def __init__(self, canvas: NDArray[np.int32]) -> None:
        self.canvas = canvas
        self.parents, self.label_ids, self.fused = [0], [-1], [False]
        self.scores: list[float | None] = [None]
        self._stuff: dict[int, int] = {}  # label to id

    def add(self, segments: list[Segment]) -> NDArray[np.int32]:
        """Registers the segments of a tile, and returns the new id of each of theirs; 0 stays 0."""
        new = np.zeros(len(segments) + 1, dtype=np.int32)
        for segment in segments:
            # A semantic map, which has no scores, has one segment for each label, things too.
            is_one = not segment.is_thing or segment.score is None
            index = len(self.parents)
            new[segment.id] = self._stuff.setdefault(segment.label_id, index) if is_one else index
            if new[segment.id] == index:
                self.parents.append(index)
                self.label_ids.append(segment.label_id)
                self.scores.append(segment.score)
                self.fused.append(is_one)
            else:
                self._raise_score(new[segment.id], segment.score)
        return new

    def root(self, index: int) -> int:
        """Returns the first of the ids that are the same segment as `index`."""
        while self.parents[index] != index:
            index = self.parents[index]
        return index

    def join(self, new: NDArray[np.int32], old: NDArray[np.int32]) -> None:
        """Joins things that agree in an overlap, two maps of the same (h, w)."""
        ids, inverse = np.unique(old, return_inverse=True)
        roots = np.array([self.root(index) for index in ids], dtype=np.int64)[inverse]
        width = len(self.parents)
        pairs, counts = np.unique(new.ravel() * np.int64(width) + roots.ravel(), return_counts=True)
        firsts, seconds = np.divmod(pairs, width)
        first_areas, second_areas = (np.bincount(values, counts, width) for values in (firsts, seconds))
        for first, second, common in zip(firsts, seconds, counts, strict=True):
            same = self.label_ids[first] == self.label_ids[second] and not self.fused[first]
            union = first_areas[first] + second_areas[second] - common
            if first and second and same and common / union > MATCHING_IOU:
                kept, joined = sorted((self.root(first), self.root(second)))
                self.parents[joined] = kept
                self._raise_score(kept, self.scores[joined])

    def _raise_score(self, index: int, score: float | None) -> None:
        best = self.scores[index]
        self.scores[index] = score if best is None or score is None else max(best, score)

    def finish(self) -> tuple[NDArray[np.int32], list[dict[str, Any]]]:
        """Numbers the segments from 1, without those that hardly show, and describes them."""
        roots = np.array([self.root(index) for index in range(len(self.parents))], dtype=np.int32)
        strips = [self.canvas[row : row + STRIP] for row in range(0, len(self.canvas), STRIP)]
        areas = np.zeros(len(roots), dtype=np.int64)
        for strip in strips:
            areas += np.bincount(roots[strip].ravel(), minlength=len(roots))
        areas[0] = 0
        kept = np.flatnonzero(areas > MIN_SEGMENT_AREA)
        numbers = np.zeros(len(roots), dtype=np.int32)
        numbers[kept] = np.arange(1, len(kept) + 1)
        numbers = numbers[roots]
        for strip in strips:
            strip[:] = numbers[strip]
        info = [
            {
                "id": number,
                "label_id": self.label_ids[index],
                "score": self.scores[index],
                "area": int(areas[index]),
                "was_fused": self.fused[index],
            }
            for number, index in enumerate(kept, start=1)
        ]
        return self.canvas, info
