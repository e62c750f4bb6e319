"""Boxes against numbers worked out one by one, matching against every assignment there is."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from detr_panoptic.box_ops import cxcywh_to_xyxy, generalized_iou, xyxy_to_cxcywh
from detr_panoptic.matcher import match, matching_costs
from tests.fuzz import examples

pytestmark = pytest.mark.fuzz
COSTS = {"class_cost": 1.0, "bbox_cost": 5.0, "giou_cost": 2.0}
COORDINATES = st.floats(-10, 10, allow_subnormal=False)
GRID = st.integers(0, 4).map(lambda i: i / 4)  # so that ties, equal boxes and boxes without area come up


@st.composite
def corner_boxes(draw, coordinates=COORDINATES):
    left, right = sorted((draw(coordinates), draw(coordinates)))
    top, bottom = sorted((draw(coordinates), draw(coordinates)))
    return [left, top, right, bottom]


def plain_giou(a, b):
    def area(box):
        return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)

    overlap = area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])
    hull = area([min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])])
    union = area(a) + area(b) - overlap
    return (overlap / union if union else 0) - ((hull - union) / hull if hull else 0)


@examples(80)
@given(corner_boxes() | corner_boxes(GRID), corner_boxes() | corner_boxes(GRID))
def test_generalized_iou_is_that_of_the_formula(a, b):
    first, second = torch.tensor([a, b], dtype=torch.float64)
    found = generalized_iou(first, second)
    # The formula's differences are exact to the rounding of the coordinates: slivers of 1e-15 have none.
    if all(size == 0 or size > 1e-6 for box in (a, b) for size in (box[2] - box[0], box[3] - box[1])):
        torch.testing.assert_close(found, torch.tensor(plain_giou(a, b), dtype=torch.float64), atol=1e-6, rtol=0)
        if plain_giou(a, a):
            torch.testing.assert_close(generalized_iou(first, first).item(), 1.0, atol=1e-12, rtol=0)
    assert -1 - 1e-9 <= found <= 1 + 1e-9
    assert torch.equal(found, generalized_iou(second, first))


@examples(80)
@given(corner_boxes(st.floats(0, 1, width=32)), corner_boxes(st.floats(0, 1, width=32)))
def test_generalized_iou_has_a_finite_gradient(a, b):
    boxes = torch.tensor([a, b], requires_grad=True)
    value = generalized_iou(boxes[0], boxes[1])
    value.backward()
    assert value.isfinite()
    assert boxes.grad.isfinite().all()


@examples(40)
@given(corner_boxes())
def test_formats_are_inverse(box):
    boxes = torch.tensor(box, dtype=torch.float64)
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes, atol=1e-12, rtol=0)


@st.composite
def matching_problems(draw):
    """Logits (1, B, Q, K+1), boxes (1, B, Q, 4) and targets, of coarse values: ties are common."""
    batch, queries, labels = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    coarse = st.integers(-2, 2).map(float)
    logits = draw(arrays.arrays(np.float32, (1, batch, queries, labels + 1), elements=coarse))
    boxes = draw(arrays.arrays(np.float32, (1, batch, queries, 4), elements=GRID))
    targets = []
    for _ in range(batch):
        count = draw(st.integers(0, 5))  # more than there are queries, too
        classes = draw(st.lists(st.integers(0, labels - 1), min_size=count, max_size=count))
        target_boxes = draw(arrays.arrays(np.float32, (count, 4), elements=GRID))
        targets.append(
            {"class_labels": torch.tensor(classes, dtype=torch.int64), "boxes": torch.from_numpy(target_boxes)}
        )
    return torch.from_numpy(logits), torch.from_numpy(boxes), targets


def least_cost(costs):
    """Of (Q, T), over every assignment of the fewer to the more."""
    costs = costs if costs.shape[0] <= costs.shape[1] else costs.T
    rows = range(costs.shape[0])
    return min(
        sum(float(costs[row, column]) for row, column in zip(rows, columns, strict=True))
        for columns in permutations(range(costs.shape[1]), costs.shape[0])
    )


def image_costs(problem, index):
    logits, boxes, targets = problem
    return matching_costs(logits[:, index], boxes[:, index], targets[index], costs=COSTS)[0]


@examples(80)
@given(matching_problems())
def test_no_assignment_costs_less(problem):
    logits, _, targets = problem
    matching = match(*problem, costs=COSTS)
    first = 0
    for index, target in enumerate(targets):
        count, chosen = len(target["class_labels"]), matching.image == index
        queries, own = matching.query[0, chosen], matching.target[0, chosen] - first
        assert len(queries) == min(count, logits.shape[2]) == len(set(queries.tolist())) == len(set(own.tolist()))
        assert queries.tolist() == sorted(queries.tolist())
        costs = image_costs(problem, index)
        assert float(costs[queries, own].sum()) == pytest.approx(least_cost(costs.numpy()), abs=1e-4)
        first += count


@examples(20)
@given(matching_problems(), st.randoms(use_true_random=False))
def test_the_order_of_targets_and_of_images_changes_no_cost(problem, random):
    logits, boxes, targets = problem
    matching = match(*problem, costs=COSTS)
    images = list(range(len(targets)))
    random.shuffle(images)
    mixed = []
    for index in images:
        order = list(range(len(targets[index]["class_labels"])))
        random.shuffle(order)
        mixed.append({name: value[order] for name, value in targets[index].items()})
    other = match(logits[:, images], boxes[:, images], mixed, costs=COSTS)

    def total(found, order, targets):
        firsts = np.cumsum([0, *(len(target["class_labels"]) for target in targets)])
        problem_of = (logits[:, order], boxes[:, order], targets)
        return sum(
            float(image_costs(problem_of, i)[q, t - firsts[i]])
            for i, q, t in zip(*(index.flatten().tolist() for index in found), strict=True)
        )

    assert total(other, images, mixed) == pytest.approx(total(matching, list(range(len(targets))), targets), abs=1e-4)


@examples(20)
@given(matching_problems(), st.sampled_from([float("nan"), float("inf"), float("-inf")]), st.data())
def test_what_is_not_finite_is_an_error_that_says_so(problem, value, data):
    logits, boxes, targets = problem
    places = [tensor for tensor in (boxes, *(t["boxes"] for t in targets)) if tensor.numel()]
    tensor = data.draw(st.sampled_from(places))
    tensor.view(-1)[data.draw(st.integers(0, tensor.numel() - 1))] = value
    is_seen = tensor is not boxes or any(
        len(target["class_labels"]) and not boxes[:, i].isfinite().all() for i, target in enumerate(targets)
    )
    if is_seen:
        with pytest.raises(FloatingPointError, match="not finite"):
            match(logits, boxes, targets, costs=COSTS)
