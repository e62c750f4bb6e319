"""Merging: relations that hold for every input, the peers' defects, and maps worked out by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import interpolate
from transformers.models.detr.image_processing_detr import compute_segments

from detr_panoptic import panoptic_merging
from detr_panoptic.panoptic_merging import ImageSizes, semantic_map, semantic_scores
from tests.merging import merge_paper, merge_score_weighted

NUM_LABELS = 5  # 0 to 2 are things
STUFF = (3, 4)
SURE = 30.0  # a logit so high that its probability is 1 in float32
SEEDS = st.integers(0, 2**31 - 1)
MODES = ("paper", "score_weighted", "instances")


def merge(mode, logits, masks, sizes, **arguments):
    """Merge in one of the modes, with thresholds that let much through."""
    if mode == "paper":
        return merge_paper(logits, masks, sizes, **{"threshold": 0.4, "stuff_label_ids": STUFF} | arguments)
    arguments = {"threshold": 0.3, "overlap_mask_area_threshold": 0.1} | arguments
    if mode == "score_weighted":
        return merge_score_weighted(logits, masks, sizes, **{"label_ids_to_fuse": STUFF} | arguments)
    return merge_score_weighted(logits, masks, sizes, label_ids_to_fuse=(), left_out=STUFF, **arguments)


def sure_logits(labels, num_labels=NUM_LABELS):
    """Logits of queries that are certain of their labels; the label `num_labels` is no object."""
    return SURE * torch.nn.functional.one_hot(torch.tensor(labels), num_labels + 1).float()


def one_size(height, width):
    return ImageSizes((height, width), (height, width), (height, width))


def random_case(seed, num_queries=11, dtype=torch.float32):
    """Logits, smooth mask logits and sizes of an image as large as its canvas."""
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(num_queries, NUM_LABELS + 1, generator=g, dtype=dtype)
    blobs = torch.randn(1, num_queries, 3, 4, generator=g, dtype=dtype)
    h, w, *target = torch.randint(5, 40, (4,), generator=g).tolist()
    masks = interpolate(5 * blobs, size=(-(-h // 4), -(-w // 4)), mode="bicubic")[0]
    return logits, masks, ImageSizes((h, w), (h, w), tuple(target))


def rows_as_masks(*rows):
    """Mask logits of shape (Q, 3, 4) from strings: `#` in the mask, `.` outside."""
    return torch.tensor(
        [[[9.0 if pixel == "#" else -9.0 for pixel in line] for line in mask.split()] for mask in rows]
    )


@pytest.mark.parametrize("mode", MODES)
@settings(deadline=None, max_examples=40)
@given(seed=SEEDS)
def test_map_and_segments_tell_the_same(mode, seed):
    logits, masks, sizes = random_case(seed)
    before = logits.clone(), masks.clone()
    result = merge(mode, logits, masks, sizes)
    segmentation, segments = result["segmentation"], result["segments_info"]
    assert segmentation.dtype == torch.int32
    assert segmentation.shape == sizes.target
    assert [s["id"] for s in segments] == list(range(1, len(segments) + 1))
    assert [s["area"] for s in segments] == [(segmentation == s["id"]).sum().item() for s in segments]
    assert all(s["area"] > 0 for s in segments)
    assert set(segmentation.unique().tolist()) - {0} == {s["id"] for s in segments}
    stuff = [s["label_id"] for s in segments if s["label_id"] in STUFF]
    assert len(stuff) == len(set(stuff))
    assert [s["was_fused"] for s in segments] == [s["label_id"] in STUFF for s in segments]
    assert torch.equal(before[0], logits)
    assert torch.equal(before[1], masks)


@settings(deadline=None, max_examples=40)
@given(seed=SEEDS)
def test_paper_merging_equals_a_plain_one(seed):
    # float64: the plain way rounds elsewhere, which must not decide between two masks here.
    logits, masks, sizes = random_case(seed, dtype=torch.float64)
    labels = logits.argmax(-1)
    kept = [q for q in range(len(labels)) if labels[q] < NUM_LABELS and logits[q].softmax(-1)[labels[q]] > 0.4]
    full_masks = interpolate(masks[None], size=sizes.processed, mode="bilinear")[0]
    while kept:
        owner = torch.tensor(kept)[full_masks[kept].argmax(0)]
        for label in STUFF:
            members = [q for q in kept if labels[q] == label]
            for member in members:
                owner[owner == member] = members[0]
        picture = Image.fromarray(owner.numpy().astype(np.uint8))
        target = np.asarray(picture.resize(sizes.target[::-1], Image.Resampling.NEAREST))
        large = [q for q in kept if (target == q).sum() > 4]
        if large == kept:
            break
        kept = large
    result = merge("paper", logits, masks, sizes)
    assert [s["label_id"] for s in result["segments_info"]] == labels[kept].tolist()
    if kept:
        expected = np.vectorize(lambda q: kept.index(q) + 1)(target)
        assert np.array_equal(result["segmentation"].numpy(), expected)


@settings(deadline=None, max_examples=40)
@given(seed=SEEDS)
def test_weighted_merging_equals_transformers_where_all_are_certain_and_nothing_is_fused(seed):
    _, masks, sizes = random_case(seed, dtype=torch.float64)
    labels = torch.randint(NUM_LABELS, (len(masks),), generator=torch.Generator().manual_seed(seed))
    logits = sure_logits(labels.tolist())
    expected, segments = compute_segments(
        masks.sigmoid(), torch.ones(len(masks)), labels, label_ids_to_fuse=set(), target_size=sizes.target
    )
    result = merge("score_weighted", logits, masks, sizes, label_ids_to_fuse=(), overlap_mask_area_threshold=0.8)
    assert torch.equal(result["segmentation"], expected)
    assert [s["label_id"] for s in result["segments_info"]] == [s["label_id"] for s in segments]


@given(seed=SEEDS)
def test_fusing_changes_no_class_and_keeps_things_apart(seed):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (6,), generator=g)
    stuff = torch.randint(2, (3,), generator=g).bool()
    owner = torch.randint(6, (5, 7), generator=g)
    same = panoptic_merging._shares_segment(labels.numpy(), stuff[labels].numpy())
    fused = torch.from_numpy(same.argmax(-1))[owner]
    assert torch.equal(labels[fused], labels[owner])
    for label in range(3):
        owners = fused[labels[fused] == label].unique()
        expected = owner[labels[owner] == label].unique()
        if stuff[label] and len(expected):
            expected = (labels == label).nonzero()[0]
        assert torch.equal(owners, expected)


@pytest.mark.parametrize("mode", [*MODES, "semantic"])
@pytest.mark.parametrize("processed", [(80, 108), (81, 109), (57, 43)])
@pytest.mark.parametrize("canvas", [(120, 160), (133, 161), (81, 160)])
def test_an_image_in_a_padded_batch_merges_as_alone(mode, processed, canvas):
    g = torch.Generator().manual_seed(7)
    processed = (min(processed[0], canvas[0]), processed[1])
    h, w, canvas_h, canvas_w = (-(-length // 4) for length in (*processed, *canvas))
    logits = 3 * torch.randn(13, NUM_LABELS + 1, generator=g)
    alone = 4 * torch.randn(13, h, w, generator=g)
    padded = torch.full((13, canvas_h, canvas_w), torch.nan)
    padded[:, :h, :w] = alone
    target = (97, 61)
    inputs = (alone, ImageSizes(processed, processed, target)), (padded, ImageSizes(processed, canvas, target))
    if mode == "semantic":
        expected, got = (semantic_scores(logits, *each) for each in inputs)
        assert torch.equal(got, expected)
        return
    expected, got = (merge(mode, logits, *each) for each in inputs)
    assert len(got["segments_info"]) > 2
    assert torch.equal(got["segmentation"], expected["segmentation"])
    assert got["segments_info"] == expected["segments_info"]


@pytest.mark.parametrize("mode", [*MODES, "semantic"])
def test_a_border_in_a_padded_batch_stays_in_its_row(mode):
    """A border at row 48 of the image came back at row 24 (transformers, and the reference's panoptic path)."""
    masks = torch.full((2, 32, 32), -9.0)  # stride 4: a canvas of 128 rows for an image of 64
    masks[0, :12, :16] = 9  # the upper 48 rows of the image
    masks[1, 12:16, :16] = 9
    sizes = ImageSizes((64, 64), (128, 128), (64, 64))
    if mode == "semantic":
        rows = semantic_map(sure_logits([0, 1]), masks, sizes) + 1
    else:
        rows = merge(mode, sure_logits([0, 1]), masks, sizes)["segmentation"]
    assert torch.equal(rows, torch.tensor([1] * 48 + [2] * 16)[:, None].expand(64, 64))


@pytest.mark.parametrize("mode", [*MODES, "semantic"])
def test_strips_and_passes_change_nothing_and_the_first_of_equal_masks_wins(mode, monkeypatch):
    g = torch.Generator().manual_seed(3)
    logits = sure_logits([0, 1, 2, 3, 4, 3, 4, 0, 1, 5, 2])
    masks = torch.randint(-1, 2, (11, 6, 5), generator=g).float()  # few values: many ties
    masks[:4] += 3
    sizes = ImageSizes((23, 19), (23, 19), (29, 31))
    results = []
    for num_bytes, passes in ((1, 1), (2**11, 2), (2**40, 3)):
        monkeypatch.setattr(panoptic_merging, "STRIP_BYTES", {"cpu": num_bytes})
        monkeypatch.setattr(panoptic_merging, "PASSES", {"cpu": passes})
        is_semantic = mode == "semantic"
        results.append(
            semantic_map(logits, masks, sizes) if is_semantic else merge(mode, logits, masks, sizes)["segmentation"]
        )
    assert len(results[0].unique()) > 2
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_the_first_of_equal_masks_wins():
    result = merge("paper", sure_logits([2, 0, 1]), torch.ones(3, 2, 3), one_size(7, 11))
    assert [(s["label_id"], s["area"]) for s in result["segments_info"]] == [(2, 77)]


def test_paper_by_hand():
    masks = torch.full((5, 3, 5), -9.0)
    masks[0] = 1  # a thing, sure of two columns
    masks[0, :, :2] = 5
    masks[1] = 20  # no object
    masks[2] = 0  # sky, sure of two rows
    masks[2, :2, 2:] = 5
    masks[3, 2, 2:] = 5  # more sky
    masks[4, 0, 0] = 9  # a thing of one pixel
    result = merge("paper", sure_logits([0, 5, 3, 3, 1]), masks, one_size(3, 5))
    # The first pass fuses query 3 into 2, which leaves 3 with no pixel and 4 with one. Both go; where they were, 0
    # and 2 are compared again, and 0 wins.
    assert result["segmentation"].tolist() == [[1, 1, 2, 2, 2], [1, 1, 2, 2, 2], [1, 1, 1, 1, 1]]
    assert result["segments_info"] == [
        {"id": 1, "label_id": 0, "score": 1.0, "area": 9, "was_fused": False},
        {"id": 2, "label_id": 3, "score": 1.0, "area": 6, "was_fused": True},
    ]


@pytest.mark.parametrize(("area", "kept"), [(4, False), (5, True)])
def test_segments_of_four_pixels_are_dropped(area, kept):
    masks = torch.full((2, 4, 5), -9.0)
    masks[0].flatten()[area:] = 9
    masks[1].flatten()[:area] = 9
    result = merge("paper", sure_logits([0, 1]), masks, one_size(4, 5))
    assert [s["area"] for s in result["segments_info"]] == ([20 - area, area] if kept else [20])


def test_area_is_counted_at_the_target_size():
    masks = torch.full((2, 8, 8), -9.0)
    masks[0] = 0
    masks[1, :4, :4] = 9
    areas = {}
    for target in ((8, 8), (4, 4)):
        result = merge("paper", sure_logits([0, 1]), masks, ImageSizes((8, 8), (8, 8), target))
        areas[target] = [s["area"] for s in result["segments_info"]]
    assert areas == {(8, 8): [48, 16], (4, 4): [16]}  # 16 pixels become 4: too few


def test_no_stuff_class_is_listed_twice_after_a_tiny_segment_was_dropped():
    """Fusion belongs to every pass, and a tiny segment calls for a second one."""
    masks = torch.full((4, 6, 6), -9.0)
    masks[0, :3] = 5  # sky
    masks[1, 3:] = 5  # more sky
    masks[2, 0, :3] = 9  # a thing of 3 pixels
    masks[3, 5] = 7  # a thing of 6 pixels
    result = merge("paper", sure_logits([3, 3, 0, 1]), masks, one_size(6, 6))
    assert [(s["label_id"], s["was_fused"]) for s in result["segments_info"]] == [(3, True), (1, False)]
    assert [s["area"] for s in result["segments_info"]] == [30, 6]


def test_fused_stuff_leaves_ids_unique_and_has_one_entry():
    """Two people shared an id after stuff was fused, and the fused class was listed twice (transformers)."""
    masks = torch.full((4, 4, 4), -9.0)
    for row in range(4):
        masks[row, row] = 9
    logits = sure_logits([3, 0, 3, 0])
    logits[0] /= 15  # a score below its sibling's
    result = merge("score_weighted", logits, masks, one_size(4, 4))
    assert result["segmentation"][:, 0].tolist() == [1, 2, 1, 3]
    assert [(s["id"], s["label_id"], s["area"]) for s in result["segments_info"]] == [(1, 3, 8), (2, 0, 4), (3, 0, 4)]
    assert [s["score"] for s in result["segments_info"]] == [1.0, 1.0, 1.0]  # the best member's


def test_fused_stuff_counts_from_its_first_visible_member():
    masks = rows_as_masks("##.. .... ....", "##.. .... ....", "..## #### ####")
    masks[0] -= 4  # hidden by the thing
    result = merge("score_weighted", sure_logits([3, 0, 3]), masks, one_size(3, 4))
    assert result["segmentation"].tolist() == [[1, 1, 2, 2], [2] * 4, [2] * 4]
    assert [s["label_id"] for s in result["segments_info"]] == [0, 3]


def test_the_mask_threshold_asks_the_mask_not_the_score():
    """A segment with a score below 0.5 could not appear (transformers)."""
    logits = torch.tensor([[0.4, 0.12, 0.12, 0.12, 0.12, 0.12]]).log()
    masks = torch.full((1, 3, 4), 9.0)
    for mode in ("score_weighted", "instances"):
        result = merge(mode, logits, masks, one_size(3, 4))
        assert [(s["score"], s["area"]) for s in result["segments_info"]] == [(0.4, 12)]
        too_faint = merge(mode, logits, masks - 9.5, one_size(3, 4))
        assert too_faint["segments_info"] == []


def test_a_mostly_hidden_mask_is_void():
    masks = rows_as_masks("#### #### ....", "###. .... ####")
    masks[1] -= 4
    result = merge("score_weighted", sure_logits([0, 1]), masks, one_size(3, 4), overlap_mask_area_threshold=0.6)
    assert result["segmentation"].tolist() == [[1] * 4, [1] * 4, [0] * 4]  # 4 of 7 pixels are less than 60 %
    result = merge("score_weighted", sure_logits([0, 1]), masks, one_size(3, 4), overlap_mask_area_threshold=0.5)
    assert result["segmentation"].tolist() == [[1] * 4, [1] * 4, [2] * 4]


def test_the_higher_score_wins_where_masks_are_alike():
    logits = sure_logits([0, 1])
    logits[0] /= 15
    result = merge("score_weighted", logits, torch.full((2, 3, 4), 3.0), one_size(3, 4))
    assert [s["label_id"] for s in result["segments_info"]] == [1]


def test_instances_ignore_stuff_and_keep_equal_labels_apart():
    masks = rows_as_masks("##.. ##.. ##..", "..## ..## ..##", "#### #### ####")
    result = merge(
        "instances", sure_logits([0, 0, 3]), masks + torch.tensor([0, 0, 9.0])[:, None, None], one_size(3, 4)
    )
    assert result["segmentation"].tolist() == [[1, 1, 2, 2]] * 3
    assert [(s["label_id"], s["was_fused"]) for s in result["segments_info"]] == [(0, False), (0, False)]


@pytest.mark.parametrize("mode", MODES)
def test_nothing_found_is_a_map_like_any_other(mode):
    """It was a float map of -1 (transformers)."""
    result = merge(mode, sure_logits([5, 5]), torch.randn(2, 5, 7), ImageSizes((20, 28), (20, 28), (11, 13)))
    assert result["segmentation"].dtype == torch.int32
    assert result["segmentation"].tolist() == [[0] * 13] * 11
    assert result["segments_info"] == []


def test_bfloat16_masks_merge_as_their_values_in_float32():
    logits, masks, sizes = random_case(5, num_queries=31)
    for mode in MODES:
        low = merge(mode, logits.bfloat16(), masks.bfloat16(), sizes)
        same = merge(mode, logits.bfloat16().float(), masks.bfloat16().float(), sizes)
        assert torch.equal(low["segmentation"], same["segmentation"])
        assert low["segments_info"] == same["segments_info"]


@settings(deadline=None, max_examples=20)
@given(seed=SEEDS)
def test_semantic_scores_sum_over_queries_and_the_map_is_their_argmax(seed):
    logits, masks, sizes = random_case(seed, dtype=torch.float64)
    scores = torch.einsum("qk,qhw->khw", logits.softmax(-1)[:, :-1], masks.sigmoid())
    expected = interpolate(scores[None], size=sizes.target, mode="bilinear")[0]
    torch.testing.assert_close(semantic_scores(logits, masks, sizes), expected)
    assert torch.equal(semantic_map(logits, masks, sizes), expected.argmax(0))
