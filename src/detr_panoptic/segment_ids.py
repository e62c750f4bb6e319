"""Reads segment ids from colors (COCO's panoptic PNG format, id = R + 256 G + 256² B), and measures segments."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

VOID_ID = 0  # reserved by the COCO panoptic PNG format: a pixel of no segment
MAX_ID = 256**3 - 1  # three bytes


class SegmentExtents(NamedTuple):
    """Areas and boxes of the ids of a map, void included."""

    ids: NDArray[Any]  # (S,) ascending
    areas: NDArray[np.int64]  # (S,) pixels
    boxes: NDArray[np.int64]  # (S, 4), [x, y, width, height] in pixels


def rgb_to_ids(rgb: ArrayLike | Image.Image) -> NDArray[np.int32]:
    """Reads segment ids (H, W) int32 from colors (H, W, 3) uint8, also of a PIL image; ValueError for others."""
    colors = np.asarray(rgb)
    if colors.ndim != 3 or colors.shape[-1] != 3 or colors.dtype != np.uint8:
        raise ValueError(f"`rgb` must be uint8 of shape (H, W, 3), got {colors.dtype} of shape {colors.shape}.")
    red, green, blue = np.moveaxis(colors.astype(np.int32), -1, 0)
    return red | green << 8 | blue << 16


def segment_extents(ids: NDArray[Any]) -> SegmentExtents:
    """Measures areas and boxes of all ids of an (H, W) map of integers, in one pass over runs of equal pixels."""
    starts_run = np.ones(ids.shape, dtype=bool)
    np.not_equal(ids[:, 1:], ids[:, :-1], out=starts_run[:, 1:])
    starts = np.flatnonzero(starts_run)
    if not starts.size:
        return SegmentExtents(ids.reshape(-1), starts, starts.reshape(0, 4))
    ends = np.append(starts[1:], ids.size)
    run_ids = ids.reshape(-1)[starts]
    order = run_ids.argsort(kind="stable")  # stable: within a segment, runs stay in the order of rows
    run_ids, starts, ends = run_ids[order], starts[order], ends[order]
    first = np.flatnonzero(np.append(True, run_ids[1:] != run_ids[:-1]))
    rows, columns = np.divmod(starts, ids.shape[1])
    top, bottom = rows[first], rows[np.append(first[1:], len(run_ids)) - 1] + 1
    left, right = np.minimum.reduceat(columns, first), np.maximum.reduceat(columns + ends - starts, first)
    boxes = np.stack((left, top, right - left, bottom - top), axis=-1)
    return SegmentExtents(run_ids[first], np.add.reduceat(ends - starts, first), boxes)


def nearest_positions(length: int, resized_length: int) -> NDArray[np.int64]:
    """Returns which of `length` pixels has its center nearest to that of each new one, to resize an id map."""
    return ((np.arange(resized_length) + 0.5) * (length / resized_length)).astype(np.int64)
