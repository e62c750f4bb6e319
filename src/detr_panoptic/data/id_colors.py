"""Writes segment ids as colors (COCO's panoptic PNG format, id = R + 256 G + 256² B)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..segment_ids import MAX_ID, VOID_ID

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def ids_to_rgb(ids: ArrayLike) -> NDArray[np.uint8]:
    """Writes segment ids as colors, the inverse of `rgb_to_ids`.

    Args:
        ids: (H, W) integers, array or CPU tensor.

    Returns:
        (H, W, 3) uint8, a new array.

    Raises:
        ValueError: the ids are not integers or do not fit into three bytes.
    """
    values: NDArray[Any] = np.asarray(ids)
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"`ids` must be integers, got {values.dtype}.")
    if values.size and (values.min() < VOID_ID or values.max() > MAX_ID):
        raise ValueError(f"`ids` must lie in [0, {MAX_ID}], got {values.min()} to {values.max()}.")
    return np.stack([values >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)
