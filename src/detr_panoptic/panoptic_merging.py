"""Merges the class scores and mask logits of one image into a map of segments.

Letters: Q queries, N kept queries, K labels (class K of the logits is "no object"), (h, w) mask map, (H, W) target.

`merge_paper` follows PostProcessPanoptic of facebookresearch/detr (29901c5), `merge_score_weighted` follows
`compute_segments` of transformers 5.23; docs/deviations.md lists the differences. In the paper's way only the pixels
that the nearest resize to the target size reads are computed, and mask logits are compared, not their softmax over the
queries: the same owner but for ties made by rounding, without (N, H, W) floats. As in the reference (the goldens show
it), a stuff query that was fused into the first of its class has area 0, so it is dropped as too small, and the next
pass gives the pixels that only it covered to other queries.

Maps are resized as by F.interpolate (bilinear, align_corners=False), a strip of output rows at a time; the size of the
strips changes no value.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .box_ops import at_least_float32
from .segment_ids import VOID_ID

Threshold = float | Sequence[float]  # for all labels, or for each
MIN_SEGMENT_AREA = 4  # pixels; DETR drops segments of this size or smaller after merging
STRIP_BYTES = 4 * 2**20  # of resized values in memory: fits a CPU cache, 2x faster than 32 MiB


class SegmentInfo(TypedDict):
    """One segment; `area` counts its pixels in the map, `was_fused` says whether its label is fused."""

    id: int
    label_id: int
    score: float
    area: int
    was_fused: bool


class Segmentation(TypedDict):
    """An (H, W) int32 map, 0 void and ids from 1, and an entry for each id in the map, in their order."""

    segmentation: Tensor
    segments_info: list[SegmentInfo]


class ImageSizes(NamedTuple):
    """(height, width) of one image after the resize, of the padded batch, and of the wanted map."""

    processed: tuple[int, int]
    canvas: tuple[int, int]
    target: tuple[int, int]


class _KeptQueries(NamedTuple):
    """Queries above the threshold, in order: (N,) scores, (N,) labels and (h, w, N) mask logits."""

    scores: Tensor
    labels: Tensor
    maps: Tensor


class _Taps(NamedTuple):
    """Linear interpolation of one axis: output = input[low] * (1 - weight) + input[high] * weight, all (n,)."""

    low: Tensor
    high: Tensor
    weight: Tensor


@torch.no_grad()
def merge_paper(
    logits: Tensor, masks: Tensor, sizes: ImageSizes, *, threshold: Threshold, stuff_label_ids: Collection[int]
) -> Segmentation:
    """Merges as DETR's published PQ was measured: one argmax over the masks, stuff fused, tiny segments dropped.

    Args:
        logits: (Q, K + 1) class logits.
        masks: (Q, h, w) mask logits of the padded canvas.
        sizes: the image's; the argmax is taken at the processed size, its nearest pixel at the target size.
        threshold: least probability of a query's class, one or one for each label; 0.85 in the paper's evaluation.
        stuff_label_ids: labels of which an image has at most one segment.
    """
    scores, labels, maps = _kept_queries(logits, crop_to_image(masks, sizes), threshold)
    taps = [
        _taps(length, processed, _nearest_positions(processed, target), like=maps)
        for length, processed, target in zip(maps.shape[:2], sizes.processed, sizes.target, strict=True)
    ]
    is_stuff = _is_any_of(labels, stuff_label_ids)
    while len(labels):
        owner = torch.empty(sizes.target, dtype=torch.int64, device=maps.device)
        for strip, values in _resized_strips(maps, *taps):
            owner[strip] = values.max(-1).indices  # twice as fast as argmax, and the first of equals too
        owner = fuse_stuff(owner, labels, is_stuff)
        areas = owner.flatten().bincount(minlength=len(labels))
        large = areas > MIN_SEGMENT_AREA
        if large.all():
            info = _segments_info(labels, scores, areas, is_stuff)
            return {"segmentation": (owner + 1).int(), "segments_info": info}
        scores, labels, is_stuff, maps = scores[large], labels[large], is_stuff[large], maps[..., large]
    return _nothing_found(sizes, maps.device)


def fuse_stuff(owner: Tensor, labels: Tensor, is_stuff: Tensor) -> Tensor:
    """Gives every stuff pixel of `owner` (H, W) to the first query of its class; `labels`, `is_stuff` are (N,)."""
    return _representatives(labels, is_stuff)[owner]


@torch.no_grad()
def merge_score_weighted(
    logits: Tensor,
    masks: Tensor,
    sizes: ImageSizes,
    *,
    threshold: Threshold = 0.5,
    mask_threshold: float = 0.5,
    overlap_mask_area_threshold: float = 0.8,
    label_ids_to_fuse: Collection[int],
    left_out: Collection[int] = (),
) -> Segmentation:
    """Merges as transformers does: the highest score x mask probability owns a pixel, mostly hidden masks are void.

    Args:
        logits: (Q, K + 1) class logits.
        masks: (Q, h, w) mask logits of the padded canvas.
        sizes: the image's; probabilities are resized straight to the target size.
        threshold: least probability of a query's class.
        mask_threshold: the mask probability from which on a pixel counts as the query's own.
        overlap_mask_area_threshold: a query stays if it owns more than this share of as many pixels as are its own.
        label_ids_to_fuse: labels of which an image has at most one segment, with the score of its best member.
        left_out: labels whose queries are dropped: stuff, where only instances are wanted.
    """
    scores, labels, maps = _kept_queries(logits, crop_to_image(masks, sizes), threshold, left_out)
    if not len(labels):
        return _nothing_found(sizes, maps.device)
    owner = torch.empty(sizes.target, dtype=torch.int64, device=maps.device)
    mask_areas = torch.zeros_like(labels)
    for strip, probs in _resized_strips(maps.sigmoid(), *_target_taps(maps, sizes)):
        mask_areas += (probs >= mask_threshold).sum((0, 1))
        owner[strip] = (probs * scores).max(-1).indices
    owned_areas = owner.flatten().bincount(minlength=len(labels))
    valid = (owned_areas > 0) & (mask_areas > 0) & (owned_areas.float() / mask_areas > overlap_mask_area_threshold)

    is_fused = _is_any_of(labels, label_ids_to_fuse)
    representatives = _representatives(labels, is_fused & valid)
    is_first = valid & (representatives == torch.arange(len(labels), device=labels.device))
    ids = is_first.cumsum(0)[representatives].where(valid, VOID_ID)  # (N,), from 1
    segmentation = ids[owner].int()
    num_ids = int(is_first.sum()) + 1
    best = torch.zeros(num_ids, dtype=scores.dtype, device=scores.device).scatter_reduce(0, ids, scores, "amax")
    areas = segmentation.flatten().bincount(minlength=num_ids)
    info = _segments_info(labels[is_first], best[1:], areas[1:], is_fused[is_first])
    return {"segmentation": segmentation, "segments_info": info}


@torch.no_grad()
def semantic_map(logits: Tensor, masks: Tensor, sizes: ImageSizes) -> Tensor:
    """Returns the label id of each pixel, (H, W) int64: the argmax of `semantic_scores`, a strip at a time."""
    labels = torch.empty(sizes.target, dtype=torch.int64, device=masks.device)
    for strip, values in _semantic_strips(logits, masks, sizes):
        labels[strip] = values.max(-1).indices
    return labels


@torch.no_grad()
def semantic_scores(logits: Tensor, masks: Tensor, sizes: ImageSizes) -> Tensor:
    """Returns (K, H, W): class probability x mask probability, summed over all queries and resized."""
    return torch.cat([values for _, values in _semantic_strips(logits, masks, sizes)]).permute(2, 0, 1)


def is_above(scores: Tensor, labels: Tensor, threshold: Threshold) -> Tensor:
    """Returns whether each score is above the threshold, or above that of its label; none of "no object" is."""
    return scores > (threshold if isinstance(threshold, (int, float)) else scores.new_tensor([*threshold, 1])[labels])


def _kept_queries(logits: Tensor, masks: Tensor, threshold: Threshold, left_out: Collection[int] = ()) -> _KeptQueries:
    """Keeps queries whose best class is an object, more probable than `threshold` and not in `left_out`."""
    scores, labels = at_least_float32(logits).softmax(-1).max(-1)
    keep = (labels != logits.shape[-1] - 1) & is_above(scores, labels, threshold) & ~_is_any_of(labels, left_out)
    # Queries last: a pixel's values are adjacent in memory, and resizing copies runs of them (3x faster on a CPU).
    maps = at_least_float32(masks[keep]).permute(1, 2, 0).contiguous()
    return _KeptQueries(scores[keep], labels[keep], maps)


def _semantic_strips(logits: Tensor, masks: Tensor, sizes: ImageSizes) -> Iterator[tuple[slice, Tensor]]:
    """Yields the rows of a strip and its (r, W, K) semantic scores."""
    class_probs = at_least_float32(logits).softmax(-1)[:, :-1]
    # Contiguous: sigmoid's last bits depend on the memory layout, which a crop changes.
    mask_probs = at_least_float32(crop_to_image(masks, sizes)).contiguous().sigmoid()
    with torch.autocast(masks.device.type, enabled=False):  # sums in float32
        maps = torch.einsum("qk,qhw->hwk", class_probs, mask_probs).contiguous()
    return _resized_strips(maps, *_target_taps(maps, sizes))


def crop_to_image(masks: Tensor, sizes: ImageSizes) -> Tensor:
    """Crops (Q, h, w) masks of the padded canvas to the part that shows the image.

    A network of stride s makes a map of ceil(n / s) from a length n. The crop has the size of the map that the image
    alone would get, so that resizing it gives the same values in a batch and alone, at the borders too.
    """
    heights, widths = zip(sizes.processed, sizes.canvas, masks.shape[-2:], strict=True)
    return masks[..., : _cropped_length(*heights), : _cropped_length(*widths)]


def _cropped_length(processed: int, canvas: int, length: int) -> int:
    """Returns the length of the part of a canvas' map that shows an image."""
    stride = -(-canvas // length)
    if -(-canvas // stride) == length:
        return -(-processed // stride)
    return -(-processed * length // canvas)  # no whole stride gives this map: in proportion


def _target_taps(maps: Tensor, sizes: ImageSizes) -> tuple[_Taps, _Taps]:
    """Returns taps that resize (h, w, N) maps to the target size."""
    rows, cols = (_taps(n, m, torch.arange(m), like=maps) for n, m in zip(maps.shape[:2], sizes.target, strict=True))
    return rows, cols


def _taps(length: int, resized_length: int, positions: Tensor, *, like: Tensor) -> _Taps:
    """Returns where F.interpolate (bilinear, align_corners=False) reads for some positions of a resized axis."""
    # In the maps' own type, as PyTorch computes it: in float64 the weights would be off by 1e-5 from the reference's.
    centers = positions.to(like.device, like.dtype) + 0.5
    source = (centers * torch.tensor(length, dtype=like.dtype, device=like.device) / resized_length - 0.5).clamp(min=0)
    low = source.long().clamp(max=length - 1)
    return _Taps(low, (low + 1).clamp(max=length - 1), source - low)


def _nearest_positions(length: int, resized_length: int) -> Tensor:
    """Returns the position that PIL's nearest resize reads for each of `resized_length` positions, int64.

    PIL adds up its step in floating point, so it rounds ties neither as floor((i + 0.5) * scale) nor as "nearest" of
    F.interpolate does. The published numbers contain PIL's choice.
    """
    line = Image.fromarray(np.arange(length, dtype=np.int32)[None])
    resized = line.resize((resized_length, 1), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(resized)[0]).long()


def _resized_strips(maps: Tensor, rows: _Taps, cols: _Taps) -> Iterator[tuple[slice, Tensor]]:
    """Resizes (h, w, N) maps, yielding the output rows of a strip and their (r, W, N) values."""
    row_bytes = max(maps.shape[1], len(cols.low)) * maps.shape[2] * maps.element_size()
    num_rows = max(1, STRIP_BYTES // row_bytes)
    col_weight = cols.weight[:, None]
    for start in range(0, len(rows.low), num_rows):
        strip = slice(start, start + num_rows)
        row_weight = rows.weight[strip, None, None]
        values = _mix(maps, rows.low[strip], rows.high[strip], row_weight, dim=0)  # (r, w, N)
        yield strip, _mix(values, cols.low, cols.high, col_weight, dim=1)


def _mix(values: Tensor, low: Tensor, high: Tensor, weight: Tensor, *, dim: int) -> Tensor:
    """Returns values[low] * (1 - weight) + values[high] * weight along `dim`."""
    return values.index_select(dim, low).mul_(1 - weight).add_(values.index_select(dim, high).mul_(weight))


def _representatives(labels: Tensor, is_fused: Tensor) -> Tensor:
    """Returns the first query that each of N is fused with, (N,) int64; itself where it is not fused."""
    same = is_fused & (labels[:, None] == labels)  # (N, N)
    own = torch.arange(len(labels), device=labels.device)
    return same.byte().argmax(-1).where(is_fused, own)


def _is_any_of(labels: Tensor, wanted: Collection[int]) -> Tensor:
    """Returns whether each label is in `wanted`, (N,) bool."""
    return torch.isin(labels, torch.tensor(sorted(wanted), dtype=labels.dtype, device=labels.device))


def _segments_info(labels: Tensor, scores: Tensor, areas: Tensor, is_fused: Tensor) -> list[SegmentInfo]:
    """Returns entries for ids 1, 2, … from (N,) tensors; scores have 6 digits, as in transformers."""
    columns = (labels.tolist(), scores.tolist(), areas.tolist(), is_fused.tolist())
    return [
        {"id": i, "label_id": label, "score": round(score, 6), "area": area, "was_fused": fused}
        for i, (label, score, area, fused) in enumerate(zip(*columns, strict=True), start=1)
    ]


def _nothing_found(sizes: ImageSizes, device: torch.device) -> Segmentation:
    return {"segmentation": torch.full(sizes.target, VOID_ID, dtype=torch.int32, device=device), "segments_info": []}
