import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detr_panoptic.matcher import match, matching_costs

COSTS = {"class_cost": 1.0, "bbox_cost": 5.0, "giou_cost": 2.0}


def problem(seed: int, counts=(3, 2), queries: int = 5):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, len(counts), queries, 4, generator=generator, dtype=torch.float64)
    boxes = torch.rand(2, len(counts), queries, 4, generator=generator, dtype=torch.float64)
    labels = [
        {
            "class_labels": torch.randint(3, (count,), generator=generator),
            "boxes": torch.rand(count, 4, generator=generator, dtype=torch.float64),
        }
        for count in counts
    ]
    return logits, boxes, labels


@given(st.integers(0, 2**31 - 1))
def test_no_other_assignment_costs_less(seed):
    logits, boxes, labels = problem(seed)
    matching = match(logits, boxes, labels, costs=COSTS)
    for layer in range(len(logits)):
        for image, first in ((0, 0), (1, 3)):
            costs = matching_costs(
                logits[layer : layer + 1, image], boxes[layer : layer + 1, image], labels[image], costs=COSTS
            )
            of_image = matching.image == image
            chosen = costs[0, matching.query[layer, of_image], matching.target[layer, of_image] - first].sum()
            targets = range(costs.shape[2])
            best = min(
                sum(costs[0, q, t] for q, t in zip(queries, targets, strict=True))
                for queries in itertools.permutations(range(5), len(targets))
            )
            torch.testing.assert_close(chosen, best)


@given(st.integers(0, 2**31 - 1))
def test_permuting_queries_permutes_the_matching(seed):
    logits, boxes, labels = problem(seed, counts=(3,))
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    plain = match(logits, boxes, labels, costs=COSTS)
    permuted = match(logits[:, :, order], boxes[:, :, order], labels, costs=COSTS)
    assert set(zip(plain.query[0].tolist(), plain.target[0].tolist(), strict=True)) == set(
        zip(order[permuted.query[0]].tolist(), permuted.target[0].tolist(), strict=True)
    )


def test_more_targets_than_queries_leave_some_without_one():
    matching = match(*problem(0, counts=(7, 2)), costs=COSTS)
    assert (matching.image == 0).sum() == 5
    assert sorted(matching.target[0, matching.image == 1].tolist()) == [7, 8]


def test_an_image_without_objects_matches_nothing():
    matching = match(*problem(0, counts=(0, 2)), costs=COSTS)
    assert matching.image.tolist() == [1, 1]


def test_half_precision_is_matched_in_float32():
    # transformers computes distances with `cdist`, which has no half-precision kernel on CPUs.
    logits, boxes, labels = problem(0)
    assert len(match(logits.half(), boxes.bfloat16(), labels, costs=COSTS).query) == 2


def test_predictions_that_are_not_finite_are_an_error():
    logits, boxes, labels = problem(0)
    boxes[0, 0, 0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        match(logits, boxes, labels, costs=COSTS)
