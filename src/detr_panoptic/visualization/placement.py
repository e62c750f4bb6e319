"""Positions of the labels of a segmentation: inside their segments, without overlap."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

Box = tuple[int, int, int, int]
WORKING_SIZE = 640  # pixels: longer side of the map on which positions are searched
GAP = 2  # pixels of that map around a label
MIN_COVERED_AREA = 0.4  # a segment smaller than this share of its label gets none, because the label would hide it


def place_labels(
    segmentation: np.ndarray, segment_ids: Sequence[int], label_sizes: Sequence[tuple[int, int]]
) -> list[Box | None]:
    """Finds a position for each label, at the visual center of its segment or as near to it as other labels allow.

    The visual center is the point farthest from the segment's border. Labels are wide and low, so vertical distances
    are weighted with the root of the label's aspect ratio; with the whole ratio, labels would move from the middle to
    any wide end. Large segments come first.

    Args:
        segmentation: (H, W) integers, the segment of each pixel.
        segment_ids: N ids of the segments with a label.
        label_sizes: N pairs (width, height) in pixels.

    Returns:
        N boxes (left, top, right, bottom) in pixels, without overlap; None where there is no room.
    """
    stride = -(-max(segmentation.shape) // WORKING_SIZE)
    height, width = segmentation.shape
    # The last few rows and columns are left out: each pixel of the small map is a whole square of the picture.
    small_map = segmentation[: height - height % stride : stride, : width - width % stride : stride]
    masks = [small_map == segment_id for segment_id in segment_ids]
    boxes: list[Box | None] = [None] * len(masks)
    # Sizes in pixels of the small map are rounded up: labels that do not overlap there do not in the picture.
    sizes = [(-(-width // stride), -(-height // stride)) for width, height in label_sizes]
    for index in sorted(range(len(masks)), key=lambda i: -masks[i].sum()):
        taken = [box for box in boxes if box is not None]
        boxes[index] = _place(masks[index], sizes[index], taken)
    return [
        None if box is None else (box[0] * stride, box[1] * stride, box[0] * stride + width, box[1] * stride + height)
        for box, (width, height) in zip(boxes, label_sizes, strict=True)
    ]


def _place(mask: np.ndarray, size: tuple[int, int], taken: Sequence[Box]) -> Box | None:
    """Returns the best free box of (width, height) centered inside an (H, W) bool mask, or None."""
    width, height = size
    if mask.sum() < MIN_COVERED_AREA * width * height:
        return None
    # The padding makes the picture's edge a border as well.
    distance = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=((width / height) ** 0.5, 1))[1:-1, 1:-1]
    left_half, top_half = width // 2, height // 2
    free = np.zeros_like(mask)
    bottom_half, right_half = height - top_half, width - left_half
    free[top_half : mask.shape[0] - bottom_half + 1, left_half : mask.shape[1] - right_half + 1] = True
    for left, top, right, bottom in taken:
        # All centers whose box would touch this one.
        rows = slice(max(0, top - GAP - bottom_half + 1), bottom + GAP + top_half)
        columns = slice(max(0, left - GAP - right_half + 1), right + GAP + left_half)
        free[rows, columns] = False
    score = np.where(free, distance, 0)
    row, column = np.unravel_index(score.argmax(), score.shape)
    if not score[row, column]:
        return None
    left, top = int(column) - left_half, int(row) - top_half
    return left, top, left + width, top + height
