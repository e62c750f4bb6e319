"""The paper's merging as a graph over a batch: `merge_paper` of `panoptic_merging.py` without lists and Python loops.

The steps and their order are the same, at the processed size, so the map is the same except where two masks are
equal to rounding: keep queries above the threshold, resize mask logits bilinearly, take one argmax per pixel, fuse
stuff into the first query of its class, drop segments of up to `MIN_SEGMENT_AREA` pixels, and repeat until none is
dropped. The repetition is a `while_loop` (ONNX's Loop). All images of a batch repeat until the last one has settled,
since another pass does not change a settled image.

Legend: B images, N queries with a mask, K labels, (h, w) map of the masks, (H, W) canvas.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..panoptic_merging import MIN_SEGMENT_AREA, is_above

MASK_STRIDE = 4  # canvas pixels per mask cell
NO_SEGMENT = -1  # label id of empty table entries


class SegmentTables(NamedTuple):
    """The map of each image and tables of its segments. Entry i of a table describes the segment with id i + 1."""

    segmentation: Tensor  # (B, H, W) int32, 0 is void and padding, ids start at 1
    label_ids: Tensor  # (B, N) int64, -1 where there is no segment
    scores: Tensor  # (B, N) float32, 0 where there is none
    areas: Tensor  # (B, N) int64, in pixels


def merge_batch(
    logits: Tensor,
    masks: Tensor,
    pixel_mask: Tensor,
    *,
    threshold: float | Sequence[float],
    stuff_label_ids: Collection[int],
) -> SegmentTables:
    """Merges the masks of each image at its processed size.

    Args:
        logits: (B, N, K + 1), the last class is "no object".
        masks: (B, N, h, w) mask logits of the canvas, stride 4.
        pixel_mask: (B, H, W), 1 on the image, which is at the top left.
        threshold: a query is kept if its best class is not "no object" and its probability is above this, or above
            the threshold of that class.
        stuff_label_ids: labels with at most one segment per image.
    """
    scores, labels = logits.softmax(-1).max(-1)  # (B, N)
    kept = (labels != logits.shape[-1] - 1) & is_above(scores, labels, threshold)
    is_stuff = torch.tensor([label in stuff_label_ids for label in range(logits.shape[-1])], device=labels.device)[
        labels
    ]
    values = _resized_to_image(masks, pixel_mask)
    inside = pixel_mask.bool()
    owner, kept, areas = _settle(values, inside, kept, labels, is_stuff)
    number = torch.where(kept, kept.long().cumsum(1), 0)  # (B, N) segment id of each query
    segmentation = torch.where(inside, _of_owner(number, owner), 0).int()
    return SegmentTables(segmentation, *_tables(kept, labels, scores, areas))


def _settle(
    values: Tensor, inside: Tensor, kept: Tensor, labels: Tensor, is_stuff: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Assigns pixels to queries until no segment is too small.

    Takes resized mask logits (B, H, W, N), where the image is (B, H, W), and of each query (B, N) whether it is above
    the threshold, its label and whether that is stuff. Returns the owner of each pixel (B, H, W), the queries that are
    left (B, N), and their areas (B, N).
    """
    own = torch.arange(labels.shape[1], device=labels.device)
    same_stuff = is_stuff[:, :, None] & (labels[:, :, None] == labels[:, None])  # (B, N, N)
    counted = inside.long().flatten(1)

    def unsettled(_owner: Tensor, _areas: Tensor, _kept: Tensor, changed: Tensor) -> Tensor:
        return changed.clone()  # `while_loop` refuses to return an input

    def assign(_owner: Tensor, _areas: Tensor, kept: Tensor, _changed: Tensor) -> tuple[Tensor, ...]:
        owner = values.masked_fill(~kept[:, None, None], float("-inf")).argmax(-1)
        first = (same_stuff & kept[:, None]).long().argmax(-1)
        owner = _of_owner(torch.where(is_stuff, first, own), owner)
        areas = torch.zeros_like(labels).scatter_add(1, owner.flatten(1), counted)
        large = kept & (areas > MIN_SEGMENT_AREA)
        return owner, areas, large, (large != kept).any()

    # The first pass is in the loop, too: OpenVINO 2026.4 returns garbage from a loop that never runs.
    start = (
        torch.zeros_like(inside, dtype=torch.int64),
        torch.zeros_like(labels),
        kept,
        torch.ones((), dtype=torch.bool),
    )
    owner, areas, kept, _ = torch.while_loop(unsettled, assign, start)
    return owner, kept, areas


def _tables(kept: Tensor, labels: Tensor, scores: Tensor, areas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Moves label ids, scores and areas (B, N) of the remaining queries to the front, in order."""
    count = kept.shape[1]
    place = torch.arange(count, device=kept.device)
    # Distinct keys: runtimes sort equal ones differently.
    order = torch.where(kept, place, place + count).topk(count, dim=1, largest=False).indices
    label_ids = torch.where(kept, labels, NO_SEGMENT)
    return tuple(  # type: ignore[return-value]  # three, as there are three here
        torch.where(kept, table, empty).gather(1, order)
        for table, empty in ((label_ids, NO_SEGMENT), (scores, 0.0), (areas, 0))
    )


def _of_owner(table: Tensor, owner: Tensor) -> Tensor:
    """Looks up each pixel's owner: (B, N) and (B, H, W) to (B, H, W)."""
    return table.gather(1, owner.flatten(1)).view_as(owner)


def _resized_to_image(masks: Tensor, pixel_mask: Tensor) -> Tensor:
    """Resizes mask logits (B, N, h, w) to each image's own pixels, (B, H, W, N). Values on padding are undefined.

    Only the part of the map that shows the image is resized, as in `merge_paper`.
    """
    batch, num_queries, height, width = masks.shape
    real = pixel_mask.bool()
    top, bottom, row_weight = _taps(real.any(2).sum(1), pixel_mask.shape[1])
    left, right, column_weight = _taps(real.any(1).sum(1), pixel_mask.shape[2])
    first_row = torch.arange(batch, device=masks.device)[:, None] * height
    # Queries last, so that gathering copies contiguous runs.
    maps = masks.permute(0, 2, 3, 1).reshape(batch * height, width * num_queries)
    tall = _mix(maps, first_row + top, first_row + bottom, row_weight)  # (B, H, w * N)
    first_cell = torch.arange(batch * pixel_mask.shape[1], device=masks.device).view(batch, -1, 1) * width
    low, high = first_cell + left[:, None], first_cell + right[:, None]  # (B, H, W)
    return _mix(tall.reshape(-1, num_queries), low, high, column_weight[:, None])


def _taps(processed: Tensor, canvas: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns indices (B, n) of two cells and the weight of the second, for images `processed` (B,) pixels long."""
    cells = (processed + MASK_STRIDE - 1) // MASK_STRIDE
    centers = torch.arange(canvas, device=processed.device).float() + 0.5
    source = (centers * cells[:, None].float() / processed[:, None].float() - 0.5).clamp(min=0)
    last = cells[:, None] - 1
    low = torch.minimum(source.long(), last)
    return low, torch.minimum(low + 1, last), source - low.float()


def _mix(cells: Tensor, low: Tensor, high: Tensor, weight: Tensor) -> Tensor:
    """Returns cells[low] * (1 - weight) + cells[high] * weight for rows (n, C) of cells."""
    weight = weight[..., None]
    return cells[low] * (1 - weight) + cells[high] * weight
