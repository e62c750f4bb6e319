"""Merges the class scores and mask logits of one image into a map of segments.

Letters: Q queries, N kept queries, K labels (class K of the logits is "no object"), (h, w) mask map, (H, W) target.

Follows PostProcessPanoptic of facebookresearch/detr (29901c5) or `compute_segments` of transformers 5.23, up to
docs/deviations.md. Mask logits are compared, not their softmax: the same but for ties, without (N, H, W) floats.

Maps are resized as by F.interpolate (bilinear, align_corners=False), a strip of output rows at a time, whose size
changes no value. A GPU has the pixels, the CPU decides about queries, and it waits for all images of a batch at once.
"""

from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .box_ops import at_least_float32, fetch, upload
from .segment_ids import VOID_ID

Threshold = float | Sequence[float]  # for all labels, or for each
MIN_SEGMENT_AREA = 4  # pixels; DETR drops segments of this size or smaller after merging
STRIP_BYTES = {"cpu": 4 * 2**20, "cuda": 256 * 2**20}  # of resized values: a CPU's cache, 2x faster than 32 MiB
PASSES = {"cpu": 1, "cuda": 2}  # between two looks at the areas: the second is rarely in vain, and waiting costs more


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


Steps = Generator[tuple[Any, ...], list[Tensor], Segmentation]  # yields what it needs on the CPU, and is sent it


@torch.no_grad()
def best_classes(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Returns score and label (..., Q) of each query from class logits (..., Q, K + 1); "no object" scores -1."""
    scores, labels = at_least_float32(logits).softmax(-1).max(-1)
    return scores.masked_fill(labels == logits.shape[-1] - 1, -1), labels


@torch.no_grad()
def run_together(merges: Iterable[Steps]) -> list[Segmentation]:
    """Runs the merging of several images side by side and returns their results."""
    running, results = dict(enumerate(merges)), {}
    answers: dict[int, list[Tensor]] = {}
    while running:
        asked: dict[int, tuple[Tensor, ...]] = {}
        for i, steps in running.items():
            try:
                asked[i] = steps.send(answers.get(i))  # type: ignore[arg-type]  # None starts a generator
            except StopIteration as end:
                results[i] = end.value
        fetched = iter(fetch(*(tensor for tensors in asked.values() for tensor in tensors)))
        answers = {i: [next(fetched) for _ in tensors] for i, tensors in asked.items()}
        running = {i: running[i] for i in asked}
    return [results[i] for i in sorted(results)]


def paper_steps(
    best: Sequence[Tensor], masks: Tensor, sizes: ImageSizes, *, threshold: Threshold, stuff_label_ids: Collection[int]
) -> Steps:
    """Merges as DETR's published PQ was measured: one argmax over the masks, stuff fused, tiny segments dropped.

    Takes scores and labels (Q,) of `best_classes` on the CPU, mask logits (Q, h, w) of the padded canvas, the image's
    sizes, the least probability of a query's class, one or one for each label, and the labels that are stuff. The
    argmax is taken at the processed size, its nearest pixel at the target size.
    """
    scores, labels, maps = _kept_queries(best, crop_to_image(masks, sizes), threshold)
    device = maps.device
    taps = _taps(
        maps, sizes.processed, [_nearest_positions(*n) for n in zip(sizes.processed, sizes.target, strict=True)]
    )
    is_stuff = np.isin(labels, list(stuff_label_ids))
    while len(labels):
        same = upload(_shares_segment(labels, is_stuff), device)
        seen, areas = torch.ones(len(labels), dtype=torch.bool, device=device), None
        for _ in range(PASSES.get(device.type, 1)):
            seen = seen if areas is None else seen & (areas > MIN_SEGMENT_AREA)
            chosen = maps if areas is None else maps.masked_fill(~seen, torch.finfo(maps.dtype).min)
            first = (same if areas is None else same & seen).argmax(-1)
            owner = torch.cat([first[values.max(-1).indices] for values in _resized_strips(chosen, *taps)])
            areas = _areas(owner, len(labels))
        counted, was_seen = (values.numpy() for values in (yield areas, seen))
        left = was_seen & (counted > MIN_SEGMENT_AREA)
        if (was_seen == left).all():
            info = _segments_info(labels[left], scores[left], counted[left], is_stuff[left])
            return {"segmentation": upload(np.cumsum(left, dtype=np.int32), device)[owner], "segments_info": info}
        scores, labels, is_stuff = scores[left], labels[left], is_stuff[left]
        maps = maps.index_select(-1, upload(left.nonzero()[0], device))
    return {"segmentation": torch.full(sizes.target, VOID_ID, dtype=torch.int32, device=device), "segments_info": []}


def score_weighted_steps(
    best: Sequence[Tensor],
    masks: Tensor,
    sizes: ImageSizes,
    *,
    threshold: Threshold = 0.5,
    mask_threshold: float = 0.5,
    overlap_mask_area_threshold: float = 0.8,
    label_ids_to_fuse: Collection[int],
    left_out: Collection[int] = (),
) -> Steps:
    """Merges as transformers does: the highest score x mask probability owns a pixel, mostly hidden masks are void.

    The rest is as in `paper_steps`, but for the resize, which is straight to the target size. A pixel is a query's own
    from `mask_threshold` on; a query stays if it owns more than `overlap_mask_area_threshold` of as many pixels as are
    its own; fused labels get the score of their best member; queries of the labels `left_out` are dropped.
    """
    scores, labels, maps = _kept_queries(best, crop_to_image(masks, sizes), threshold, left_out)
    if not len(labels):
        empty = torch.full(sizes.target, VOID_ID, dtype=torch.int32, device=maps.device)
        return {"segmentation": empty, "segments_info": []}
    weights, owners, own = upload(scores, maps.device), [], []
    for probs in _resized_strips(maps.sigmoid(), *_taps(maps, sizes.target)):
        own.append((probs >= mask_threshold).sum((0, 1)))
        owners.append((probs * weights).max(-1).indices)
    owner = torch.cat(owners)
    found = yield _areas(owner, len(labels)), torch.stack(own).sum(0)
    owned, mask_areas = (areas.numpy() for areas in found)
    shares = owned.astype(np.float32) / np.maximum(mask_areas, 1).astype(np.float32)
    valid = (owned > 0) & (mask_areas > 0) & (shares > overlap_mask_area_threshold)

    is_fused = np.isin(labels, list(label_ids_to_fuse))
    representatives = _shares_segment(labels, is_fused & valid).argmax(-1)
    is_first = valid & (representatives == np.arange(len(labels)))
    ids = np.where(valid, is_first.cumsum()[representatives], VOID_ID)  # (N,), from 1
    highest, areas = np.zeros(is_first.sum() + 1, scores.dtype), np.zeros(is_first.sum() + 1, np.int64)
    np.maximum.at(highest, ids, scores)
    np.add.at(areas, ids, owned)
    info = _segments_info(labels[is_first], highest[1:], areas[1:], is_fused[is_first])
    return {"segmentation": upload(ids.astype(np.int32), maps.device)[owner], "segments_info": info}


@torch.no_grad()
def semantic_map(logits: Tensor, masks: Tensor, sizes: ImageSizes) -> Tensor:
    """Returns the label id of each pixel, (H, W) int64: the argmax of `semantic_scores`, a strip at a time."""
    return torch.cat([values.max(-1).indices for values in _semantic_strips(logits, masks, sizes)])


@torch.no_grad()
def semantic_scores(logits: Tensor, masks: Tensor, sizes: ImageSizes) -> Tensor:
    """Returns (K, H, W): class probability x mask probability, summed over all queries and resized."""
    return torch.cat([*_semantic_strips(logits, masks, sizes)]).permute(2, 0, 1)


def is_above(scores: Tensor, labels: Tensor, threshold: Threshold) -> Tensor:
    """Returns whether each score is above the threshold, or above that of its label; none of "no object" is."""
    return scores > (threshold if isinstance(threshold, (int, float)) else scores.new_tensor([*threshold, 1])[labels])


def _kept_queries(
    best: Sequence[Tensor], masks: Tensor, threshold: Threshold, left_out: Collection[int] = ()
) -> tuple[Any, Any, Tensor]:
    """Keeps queries above the threshold and not in `left_out`: their scores and labels (N,), and maps (h, w, N)."""
    scores, labels = (values.numpy() for values in best)
    keep = is_above(best[0], best[1], threshold).numpy() & ~np.isin(labels, list(left_out))
    kept = upload(keep.nonzero()[0], masks.device)
    # Queries last: a pixel's values are adjacent in memory, and resizing copies runs of them (3x faster on a CPU).
    maps = at_least_float32(masks.index_select(0, kept)).permute(1, 2, 0).contiguous()
    return scores[keep], labels[keep], maps


def _semantic_strips(logits: Tensor, masks: Tensor, sizes: ImageSizes) -> Iterator[Tensor]:
    """Yields the (r, W, K) semantic scores of each strip."""
    class_probs = at_least_float32(logits).softmax(-1)[:, :-1]
    # Contiguous: sigmoid's last bits depend on the memory layout, which a crop changes.
    mask_probs = at_least_float32(crop_to_image(masks, sizes)).contiguous().sigmoid()
    with torch.autocast(masks.device.type, enabled=False):  # sums in float32
        maps = torch.einsum("qk,qhw->hwk", class_probs, mask_probs).contiguous()
    return _resized_strips(maps, *_taps(maps, sizes.target))


def crop_to_image(masks: Tensor, sizes: ImageSizes) -> Tensor:
    """Crops (Q, h, w) masks of the padded canvas to the map that the image alone would get."""
    heights, widths = zip(sizes.processed, sizes.canvas, masks.shape[-2:], strict=True)
    return masks[..., : _cropped_length(*heights), : _cropped_length(*widths)]


def _cropped_length(processed: int, canvas: int, length: int) -> int:
    """Returns the length of the part of a canvas' map that shows an image."""
    stride = -(-canvas // length)
    if -(-canvas // stride) == length:
        return -(-processed // stride)
    return -(-processed * length // canvas)  # no whole stride gives this map: in proportion


def _taps(maps: Tensor, resized: Sequence[int], positions: Sequence[Any] = ()) -> list[Sequence[Tensor]]:
    """Returns two cells and their two weights, (n,) per axis, as F.interpolate (bilinear) reads some positions."""
    # In the maps' own type, as PyTorch computes it: in float64 the weights would be off by 1e-5 from the reference's.
    kind = np.float64 if maps.dtype == torch.float64 else np.float32
    cells, weights = [], []
    for length, resized_length, places in zip(maps.shape, resized, positions or map(np.arange, resized), strict=False):
        source = np.maximum((places.astype(kind) + kind(0.5)) * kind(length) / kind(resized_length) - kind(0.5), 0)
        low = np.minimum(source.astype(np.int64), length - 1)
        high_weight = (source - low).astype(kind)
        cells += [low, np.minimum(low + 1, length - 1)]
        weights += [1 - high_weight, high_weight]
    lengths = [len(line) for line in cells]
    parts = [upload(np.concatenate(lines), maps.device).split(lengths) for lines in (cells, weights)]
    return [(*parts[0][:2], *parts[1][:2]), (*parts[0][2:], *parts[1][2:])]


def _nearest_positions(length: int, resized_length: int) -> Any:
    """Returns where PIL's nearest resize reads; it rounds ties in a way of its own, as the published numbers do."""
    line = Image.fromarray(np.arange(length, dtype=np.int32)[None])
    return np.array(line.resize((resized_length, 1), Image.Resampling.NEAREST))[0]


def _resized_strips(maps: Tensor, rows: Sequence[Tensor], cols: Sequence[Tensor]) -> Iterator[Tensor]:
    """Resizes (h, w, N) maps, yielding the (r, W, N) values of each strip of output rows."""
    row_bytes = max(maps.shape[1], len(cols[0])) * maps.shape[2] * maps.element_size()
    num_rows = max(1, STRIP_BYTES.get(maps.device.type, STRIP_BYTES["cpu"]) // row_bytes)
    for strip in zip(*(line.split(num_rows) for line in rows), strict=True):
        yield _mix(_mix(maps, *strip, dim=0), *cols, dim=1)


def _mix(values: Tensor, low: Tensor, high: Tensor, low_weight: Tensor, high_weight: Tensor, *, dim: int) -> Tensor:
    """Returns values[low] * low_weight + values[high] * high_weight along `dim` of (h, w, N)."""
    shape = (-1, 1, 1) if dim == 0 else (-1, 1)
    upper = values.index_select(dim, high).mul_(high_weight.view(shape))
    return values.index_select(dim, low).mul_(low_weight.view(shape)).add_(upper)


def _areas(owner: Tensor, count: int) -> Tensor:
    """Counts the pixels of each of `count` owners; `bincount` would wait for a GPU."""
    pixels = owner.flatten()
    return owner.new_zeros(count).scatter_add_(0, pixels, torch.ones_like(pixels))


def _shares_segment(labels: Any, is_fused: Any) -> Any:
    """Returns which of N queries form one segment with each, (N, N) uint8: itself, and those it is fused with."""
    same = is_fused[:, None] & is_fused & (labels[:, None] == labels)
    return (same | np.eye(len(labels), dtype=bool)).view(np.uint8)


def _segments_info(labels: Any, scores: Any, areas: Any, is_fused: Any) -> list[SegmentInfo]:
    """Returns entries for ids 1, 2, … from (N,) arrays; scores have 6 digits, as in transformers."""
    rows = zip(labels.tolist(), scores.tolist(), areas.tolist(), is_fused.tolist(), strict=True)
    return [
        {"id": i, "label_id": label, "score": round(score, 6), "area": area, "was_fused": fused}
        for i, (label, score, area, fused) in enumerate(rows, start=1)
    ]
