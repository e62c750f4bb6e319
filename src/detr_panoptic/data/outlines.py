"""Masks as polygons and run lengths that pycocotools decodes to the same pixels."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Point = tuple[int, int]  # x, y of a corner of pixels


def mask_polygons(mask: NDArray[np.bool_]) -> list[list[float]]:
    """Returns polygons [x, y, x, y, ...] along the borders of pixels whose union is a mask (H, W).

    Polygons have no holes. A region with holes is cut through them into several.

    Examples:
        >>> mask_polygons(np.array([[True, True], [True, False]]))
        [[0.0, 0.0, 2.0, 0.0, 2.0, 1.0, 1.0, 1.0, 1.0, 2.0, 0.0, 2.0]]
    """
    return [[float(value) for point in loop for value in point] for loop in _loops(mask)]


def _loops(mask: NDArray[np.bool_]) -> Iterator[list[Point]]:
    """Yields outlines of the regions of a mask."""
    pending = [(mask, (0, 0))]  # parts of the mask and their corners in it
    while pending:
        part, (left, top) = pending.pop()
        regions, _ = ndimage.label(part)  # neighbors share a side
        for number, (rows, columns) in enumerate(ndimage.find_objects(regions), start=1):
            region = regions[rows, columns] == number
            corner = left + columns.start, top + rows.start
            holes = ndimage.binary_fill_holes(region) & ~region
            if holes.any():
                cut = int(np.flatnonzero(holes.any(0))[0]) + 1  # through the leftmost hole, behind its first column
                pending += [(region[:, cut:], (corner[0] + cut, corner[1])), (region[:, :cut], corner)]
            else:
                (loop,) = _traced(region)
                yield [(x + corner[0], y + corner[1]) for x, y in loop]


def _traced(region: NDArray[np.bool_]) -> list[list[Point]]:
    """Returns the closed outlines of a region, clockwise around it; where two pixels share a corner only, it turns."""
    height, width = region.shape
    padded = np.pad(region, 1)
    inside = padded[1:-1, 1:-1]
    ends: dict[Point, list[Point]] = {}
    for (row, column), (x0, y0), (x1, y1) in (
        ((-1, 0), (0, 0), (1, 0)),  # the side above, from left to right
        ((0, 1), (1, 0), (1, 1)),  # to the right, downwards
        ((1, 0), (1, 1), (0, 1)),  # below, from right to left
        ((0, -1), (0, 1), (0, 0)),  # to the left, upwards
    ):
        outside = padded[1 + row : 1 + row + height, 1 + column : 1 + column + width]
        for y, x in np.argwhere(inside & ~outside).tolist():
            ends.setdefault((x + x0, y + y0), []).append((x + x1, y + y1))
    loops = []
    while ends:
        start = next(iter(ends))
        loops.append(_follow(ends, start))
    return loops


def _follow(ends: dict[Point, list[Point]], start: Point) -> list[Point]:
    """Takes the sides of one outline from `ends`, and returns the points where it turns."""
    point, direction = start, (0, 0)
    corners: list[Point] = []
    while point in ends:
        x, y = point
        right_turn = x - direction[1], y + direction[0]
        options = ends[point]
        following = right_turn if right_turn in options else options[0]
        options.remove(following)
        if not options:
            del ends[point]
        step = following[0] - x, following[1] - y
        if step != direction:
            corners.append(point)
        point, direction = following, step
    first = corners[1][0] - corners[0][0], corners[1][1] - corners[0][1]
    straight = direction[0] * first[1] == direction[1] * first[0]  # the start is no corner
    return corners[1:] if straight else corners


def mask_runs(mask: NDArray[np.bool_]) -> dict[str, list[int]]:
    """Returns the uncompressed run-length encoding of a mask (H, W), column by column, beginning with what is outside.

    Examples:
        >>> mask_runs(np.array([[True, False], [True, False]]))
        {'counts': [0, 2, 2], 'size': [2, 2]}
    """
    values = mask.ravel(order="F")
    changes = np.flatnonzero(values[1:] != values[:-1]) + 1
    edges = [0, *changes.tolist(), values.size]
    counts = [end - begin for begin, end in pairwise(edges)]
    return {"counts": [0, *counts] if values[0] else counts, "size": list(mask.shape)}
