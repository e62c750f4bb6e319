"""The paper's merging as a graph over a batch: `merge_paper` of `panoptic_merging.py` without lists and Python loops.

The same steps in the same order, at the processed size, and so the same map, to rounding where two masks are equal:
queries above the threshold, mask logits resized bilinearly, one argmax per pixel, stuff fused into the first query of
its class, segments of up to `MIN_SEGMENT_AREA` pixels dropped and everything again until none is dropped. That last
loop is a `while_loop`, which ONNX has as Loop; as a pass over an image that has settled changes nothing, all images of
a batch go on until the last has settled.

Legend: B images, N queries with a mask, K labels, (h, w) map of the masks, (H, W) canvas.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from ..panoptic_merging import MIN_SEGMENT_AREA

if TYPE_CHECKING:
    from collections.abc import Collection

    from torch import Tensor

MASK_STRIDE = 4  # pixels of the canvas per cell of a mask
NO_SEGMENT = -1  # label id of the table's empty places


class SegmentTables(NamedTuple):
    """A map of each image, and what its segments are; place i of a table tells of id i + 1.

    Args:
        segmentation: (B, H, W) int32, 0 is void (padding included), ids from 1.
        label_ids: (B, N) int64, -1 where there is no segment.
        scores: (B, N) float32, 0 where there is none.
        areas: (B, N) int64, pixels of the map.
    """

    segmentation: Tensor
    label_ids: Tensor
    scores: Tensor
    areas: Tensor


def merge_batch(
    logits: Tensor, masks: Tensor, pixel_mask: Tensor, *, threshold: float, stuff_label_ids: Collection[int]
) -> SegmentTables:
    """Merges the masks of each image, at the size at which the model saw it.

    Args:
        logits: (B, N, K + 1), the last class is "no object".
        masks: (B, N, h, w) mask logits of the canvas, of stride 4.
        pixel_mask: (B, H, W), 1 on the image, which is at the upper left.
        threshold: a query is kept if its best class is not "no object" and its probability is above this.
        stuff_label_ids: labels of which an image has at most one segment.
    """
    scores, labels = logits.softmax(-1).max(-1)  # (B, N)
    kept = (labels != logits.shape[-1] - 1) & (scores > threshold)
    is_stuff = torch.tensor([label in stuff_label_ids for label in range(logits.shape[-1])], device=labels.device)[
        labels
    ]
    values = _resized_to_image(masks, pixel_mask)
    inside = pixel_mask.bool()
    owner, kept, areas = _settle(values, inside, kept, labels, is_stuff)
    number = torch.where(kept, kept.long().cumsum(1), 0)  # (B, N), the id of each query's segment
    segmentation = torch.where(inside, _of_owner(number, owner), 0).int()
    return SegmentTables(segmentation, *_tables(kept, labels, scores, areas))


def _settle(
    values: Tensor, inside: Tensor, kept: Tensor, labels: Tensor, is_stuff: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Assigns pixels until no segment is too small: the owner of each pixel, who is left, and their areas.

    Args:
        values: (B, H, W, N) resized mask logits.
        inside: (B, H, W) bool, True on the image.
        kept: (B, N) bool, queries above the threshold.
        labels: (B, N) int64.
        is_stuff: (B, N) bool.
    """
    own = torch.arange(labels.shape[1], device=labels.device)
    same_stuff = is_stuff[:, :, None] & (labels[:, :, None] == labels[:, None])  # (B, N, N)
    counted = inside.long().flatten(1)

    def unsettled(_owner: Tensor, _areas: Tensor, _kept: Tensor, changed: Tensor) -> Tensor:
        return changed.clone()  # what goes in may not come out, says `while_loop`

    def assign(_owner: Tensor, _areas: Tensor, kept: Tensor, _changed: Tensor) -> tuple[Tensor, ...]:
        owner = values.masked_fill(~kept[:, None, None], float("-inf")).argmax(-1)
        first = (same_stuff & kept[:, None]).long().argmax(-1)
        owner = _of_owner(torch.where(is_stuff, first, own), owner)
        areas = torch.zeros_like(labels).scatter_add(1, owner.flatten(1), counted)
        large = kept & (areas > MIN_SEGMENT_AREA)
        return owner, areas, large, (large != kept).any()

    # The first pass is in the loop as well: OpenVINO 2026.4 returns garbage from a loop that does not run once.
    start = (
        torch.zeros_like(inside, dtype=torch.int64),
        torch.zeros_like(labels),
        kept,
        torch.ones((), dtype=torch.bool),
    )
    owner, areas, kept, _ = torch.while_loop(unsettled, assign, start)
    return owner, kept, areas


def _tables(kept: Tensor, labels: Tensor, scores: Tensor, areas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Label ids, scores and areas (B, N) of the queries that are left, in their order, at the front."""
    count = kept.shape[1]
    place = torch.arange(count, device=kept.device)
    # Different numbers, so that the order does not hang on how a runtime sorts equal ones.
    order = torch.where(kept, place, place + count).topk(count, dim=1, largest=False).indices
    label_ids = torch.where(kept, labels, NO_SEGMENT)
    return tuple(  # type: ignore[return-value]  # three, as there are three here
        torch.where(kept, table, empty).gather(1, order)
        for table, empty in ((label_ids, NO_SEGMENT), (scores, 0.0), (areas, 0))
    )


def _of_owner(table: Tensor, owner: Tensor) -> Tensor:
    """The entry of each pixel's owner: (B, N) and (B, H, W) to (B, H, W)."""
    return table.gather(1, owner.flatten(1)).view_as(owner)


def _resized_to_image(masks: Tensor, pixel_mask: Tensor) -> Tensor:
    """Mask logits (B, N, h, w) at each image's own pixels, (B, H, W, N); on its padding they mean nothing.

    The part of the map that shows the image alone is resized to the image, as `merge_paper` does it.
    """
    batch, num_queries, height, width = masks.shape
    real = pixel_mask.bool()
    rows = _taps(real.any(2).sum(1), pixel_mask.shape[1])
    columns = _taps(real.any(1).sum(1), pixel_mask.shape[2])
    first_row = torch.arange(batch, device=masks.device)[:, None] * height
    # Queries last: what is copied are whole runs of them.
    maps = masks.permute(0, 2, 3, 1).reshape(batch * height, width * num_queries)
    tall = _mix(maps, first_row + rows.low, first_row + rows.high, rows.weight)  # (B, H, w * N)
    first_cell = torch.arange(batch * pixel_mask.shape[1], device=masks.device).view(batch, -1, 1) * width
    low, high = first_cell + columns.low[:, None], first_cell + columns.high[:, None]  # (B, H, W)
    return _mix(tall.reshape(-1, num_queries), low, high, columns.weight[:, None])


class _Taps(NamedTuple):
    """Linear interpolation of one axis of each image: (B, n) indices of two cells, and the second one's weight."""

    low: Tensor
    high: Tensor
    weight: Tensor


def _taps(processed: Tensor, canvas: int) -> _Taps:
    """Where the pixels of images of `processed` (B,) pixels read on an axis of the map."""
    cells = (processed + MASK_STRIDE - 1) // MASK_STRIDE
    centers = torch.arange(canvas, device=processed.device).float() + 0.5
    source = (centers * cells[:, None].float() / processed[:, None].float() - 0.5).clamp(min=0)
    last = cells[:, None] - 1
    low = torch.minimum(source.long(), last)
    return _Taps(low, torch.minimum(low + 1, last), source - low.float())


def _mix(cells: Tensor, low: Tensor, high: Tensor, weight: Tensor) -> Tensor:
    """cells[low] * (1 - weight) + cells[high] * weight, of rows (n, C) of cells."""
    weight = weight[..., None]
    return cells[low] * (1 - weight) + cells[high] * weight
