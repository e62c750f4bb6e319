"""Segment ids and their colors: the one home of COCO's panoptic PNG format, id = R + 256 G + 256² B."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

VOID_ID = 0  # reserved by the COCO panoptic PNG format: a pixel of no segment
MAX_ID = 256**3 - 1  # three bytes


def rgb_to_ids(rgb: ArrayLike) -> NDArray[np.int32]:
    """Read segment ids from colors.

    Args:
        rgb: (H, W, 3) uint8, or what NumPy reads as such: a PIL image of mode RGB, too.

    Returns:
        (H, W) int32 ids in 0 … 256³ - 1.

    Raises:
        ValueError: if the colors are not (H, W, 3) uint8.
    """
    colors = np.asarray(rgb)
    if colors.ndim != 3 or colors.shape[-1] != 3 or colors.dtype != np.uint8:
        raise ValueError(f"`rgb` must be uint8 of shape (H, W, 3), got {colors.dtype} of shape {colors.shape}.")
    ids = colors[..., 2].astype(np.int32)
    for channel in (1, 0):
        ids <<= 8
        ids |= colors[..., channel]
    return ids


def ids_to_rgb(ids: ArrayLike) -> NDArray[np.uint8]:
    """Write segment ids as colors, the inverse of `rgb_to_ids`.

    Args:
        ids: (H, W) integers, array or CPU tensor.

    Returns:
        (H, W, 3) uint8, a new array.

    Raises:
        ValueError: if the ids are not integers or do not fit into three bytes.
    """
    values: NDArray[Any] = np.asarray(ids)
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"`ids` must be integers, got {values.dtype}.")
    if values.size and (values.min() < VOID_ID or values.max() > MAX_ID):
        raise ValueError(f"`ids` must lie in [0, {MAX_ID}], got {values.min()} to {values.max()}.")
    return np.stack([values >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)
