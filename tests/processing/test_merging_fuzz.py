"""Merging against a slow one, pixel by pixel, and what holds for any logits, sizes and thresholds."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch.nn import functional as F  # noqa: N812

from detr_panoptic.inference.detections import query_masks
from detr_panoptic.panoptic_merging import ImageSizes, semantic_map, semantic_scores
from tests.fuzz import examples
from tests.merging import merge_paper, merge_score_weighted

pytestmark = pytest.mark.fuzz
LABELS = 3
STUFF = st.sets(st.integers(0, LABELS - 1))
FRACTIONS = st.floats(0, 1, width=32)  # as masks are compared: 1e-279 is 0 there
SIDES = st.integers(1, 9)


@st.composite
def outputs(draw):
    """Logits (Q, K + 1) and mask logits (Q, h, w) with ties and extremes."""
    queries, height, width = draw(st.integers(1, 6)), draw(SIDES), draw(SIDES)
    values = st.integers(-8, 8).map(lambda i: i / 2) | st.sampled_from([-1e4, 1e4, 0.0])
    logits = draw(arrays.arrays(np.float32, (queries, LABELS + 1), elements=values))
    masks = draw(arrays.arrays(np.float32, (queries, height, width), elements=values))
    return torch.from_numpy(logits), torch.from_numpy(masks)


@st.composite
def sized_outputs(draw):
    """The same with the sizes of an image on a canvas of stride 4."""
    logits, masks = draw(outputs())
    canvas = tuple(4 * length - draw(st.integers(0, 3)) for length in masks.shape[1:])
    processed = tuple(draw(st.integers(1, length)) for length in canvas)
    return logits, masks, ImageSizes(processed, canvas, (draw(st.integers(1, 40)), draw(st.integers(1, 40))))


def check_segmentation(found, size, *, fused=()):
    """The map and its entries tell the same: ids from 1, areas, one entry for each fused label."""
    ids, info = found["segmentation"], found["segments_info"]
    assert ids.dtype == torch.int32
    assert tuple(ids.shape) == tuple(size)
    assert [entry["id"] for entry in info] == list(range(1, len(info) + 1))
    assert set(ids.unique().tolist()) - {0} == {entry["id"] for entry in info}
    assert [entry["area"] for entry in info] == [int((ids == entry["id"]).sum()) for entry in info]
    assert all(0 <= entry["label_id"] < LABELS and 0 <= entry["score"] <= 1 for entry in info)
    assert [entry["was_fused"] for entry in info] == [entry["label_id"] in fused for entry in info]
    labels = [entry["label_id"] for entry in info if entry["was_fused"]]
    assert len(set(labels)) == len(labels)


@examples(80)
@given(sized_outputs(), STUFF, FRACTIONS, FRACTIONS, FRACTIONS)
def test_every_way_of_merging_makes_a_map_that_agrees_with_its_segments(problem, stuff, threshold, mask, overlap):
    logits, masks, sizes = problem
    before = logits.clone(), masks.clone()
    weighted = {"threshold": threshold, "mask_threshold": mask, "overlap_mask_area_threshold": overlap}
    check_segmentation(merge_paper(*problem, threshold=threshold, stuff_label_ids=stuff), sizes.target, fused=stuff)
    check_segmentation(merge_score_weighted(*problem, label_ids_to_fuse=stuff, **weighted), sizes.target, fused=stuff)
    instances = merge_score_weighted(*problem, label_ids_to_fuse=(), left_out=stuff, **weighted)
    check_segmentation(instances, sizes.target)
    assert not any(entry["label_id"] in stuff for entry in instances["segments_info"])
    semantic, scores = semantic_map(*problem), semantic_scores(*problem)
    assert scores.isfinite().all()
    assert torch.equal(semantic, scores.argmax(0))
    assert query_masks(masks, sizes).shape == (*sizes.target, len(masks))
    assert torch.equal(before[0], logits)
    assert torch.equal(before[1], masks)


def whole_image(masks):
    """Sizes of an image that fills its canvas, merged at the size of the masks: nothing is resized."""
    size = tuple(masks.shape[1:])
    return ImageSizes(size, size, size)


def kept_queries(logits, threshold):
    scores, labels = logits.softmax(-1).max(-1)
    return [
        (q, float(scores[q]), int(labels[q]))
        for q in range(len(logits))
        if labels[q] < LABELS and scores[q] > threshold
    ]


def plain_weighted(logits, masks, stuff, threshold, mask_threshold, overlap):
    """The score-weighted rule: a set of pixels for each query."""
    kept, probs = kept_queries(logits, threshold), masks.sigmoid()
    pixels = [(y, x) for y in range(masks.shape[1]) for x in range(masks.shape[2])]
    scores = logits.softmax(-1).amax(-1)
    owned: dict[int, list] = {q: [] for q, *_ in kept}
    for y, x in pixels if kept else []:
        best = max(kept, key=lambda query: (float(scores[query[0]] * probs[query[0], y, x]), -query[0]))
        owned[best[0]].append((y, x))
    segments: list[dict] = []
    for q, score, label in kept:
        own = sum(float(probs[q, y, x]) >= mask_threshold for y, x in pixels)
        if not owned[q] or not own or np.float32(len(owned[q])) / np.float32(own) <= overlap:
            continue
        sibling = next((s for s in segments if s["label_id"] == label and label in stuff), None)
        if sibling is None:
            segments.append({"label_id": label, "score": score, "pixels": owned[q]})
        else:
            sibling["score"] = max(sibling["score"], score)
            sibling["pixels"] = sibling["pixels"] + owned[q]
    return segments


def plain_paper(logits, masks, stuff, threshold):
    """The paper's rule; the drop of small segments is a pass of its own, as often as it takes."""
    kept = kept_queries(logits, threshold)
    while kept:
        owned: dict[int, list] = {q: [] for q, *_ in kept}
        for y in range(masks.shape[1]):
            for x in range(masks.shape[2]):
                best, _, label = max(kept, key=lambda query: (float(masks[query[0], y, x]), -query[0]))
                if label in stuff:
                    best = next(q for q, _, other in kept if other == label)
                owned[best].append((y, x))
        large = [query for query in kept if len(owned[query[0]]) > 4]
        if len(large) == len(kept):
            return [{"label_id": label, "score": score, "pixels": owned[q]} for q, score, label in kept]
        kept = large
    return []


def check_same(found, segments):
    assert [entry["label_id"] for entry in found["segments_info"]] == [s["label_id"] for s in segments]
    for entry, segment in zip(found["segments_info"], segments, strict=True):
        assert entry["score"] == pytest.approx(segment["score"], abs=1e-6)
        assert sorted(map(tuple, (found["segmentation"] == entry["id"]).nonzero().tolist())) == sorted(
            segment["pixels"]
        )


@examples(40)
@given(outputs(), STUFF, FRACTIONS, FRACTIONS, FRACTIONS)
def test_score_weighted_merging_is_that_of_sets_of_pixels(problem, stuff, threshold, mask, overlap):
    logits, masks = problem
    found = merge_score_weighted(
        logits,
        masks,
        whole_image(masks),
        threshold=threshold,
        mask_threshold=mask,
        overlap_mask_area_threshold=overlap,
        label_ids_to_fuse=stuff,
    )
    check_same(found, plain_weighted(logits, masks, stuff, threshold, mask, overlap))


@examples(40)
@given(outputs(), STUFF, FRACTIONS)
def test_merging_as_the_paper_does_is_that_of_sets_of_pixels(problem, stuff, threshold):
    logits, masks = problem
    found = merge_paper(logits, masks, whole_image(masks), threshold=threshold, stuff_label_ids=stuff)
    check_same(found, plain_paper(logits, masks, stuff, threshold))


@examples(40)
@given(outputs(), st.tuples(SIDES, SIDES), STUFF, FRACTIONS)
def test_padding_changes_nothing(problem, margin, stuff, threshold):
    logits, masks = problem
    height, width = masks.shape[1:]
    target = (3 * height + 1, 2 * width + 1)
    alone = ImageSizes((4 * height, 4 * width), (4 * height, 4 * width), target)
    padded = alone._replace(canvas=(4 * (height + margin[0]), 4 * (width + margin[1])))
    canvas = F.pad(masks, (0, margin[1], 0, margin[0]), value=7.0)
    for merge, fused in ((merge_paper, "stuff_label_ids"), (merge_score_weighted, "label_ids_to_fuse")):
        options = {"threshold": threshold, fused: stuff}
        expected, found = merge(logits, masks, alone, **options), merge(logits, canvas, padded, **options)
        assert torch.equal(found["segmentation"], expected["segmentation"])
        assert found["segments_info"] == expected["segments_info"]
    assert torch.equal(semantic_map(logits, canvas, padded), semantic_map(logits, masks, alone))


@examples(20)
@given(sized_outputs(), FRACTIONS, FRACTIONS)
def test_a_higher_threshold_keeps_no_query_more(problem, first, second):
    low, high = sorted((first, second))
    kept = [
        {(entry["label_id"], entry["score"]) for entry in found["segments_info"]}
        for found in (
            merge_score_weighted(
                *problem, threshold=t, mask_threshold=0.0, overlap_mask_area_threshold=0.0, label_ids_to_fuse=()
            )
            for t in (low, high)
        )
    ]
    scores = problem[0].softmax(-1)
    possible = {(int(row[:-1].argmax()), round(float(row[:-1].max()), 6)) for row in scores}
    assert all(round(score, 5) >= round(low, 5) for _, score in kept[0])
    assert all(round(score, 5) >= round(high, 5) for _, score in kept[1])
    assert kept[0] | kept[1] <= possible
