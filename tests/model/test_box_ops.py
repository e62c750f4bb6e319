import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detr_panoptic.box_ops import cxcywh_to_xyxy, generalized_iou, xyxy_to_cxcywh


@given(st.integers(0, 2**31 - 1))
def test_formats_are_inverse(seed):
    boxes = torch.rand(7, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(xyxy_to_cxcywh(cxcywh_to_xyxy(boxes)), boxes)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1.0),
        ((0, 0, 2, 2), (1, 0, 3, 2), 2 / 6 - 0 / 6),
        ((0, 0, 1, 1), (2, 0, 3, 1), 0 - (3 - 2) / 3),
        ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7 - (9 - 7) / 9),
    ],
)
def test_generalized_iou_by_hand(first, second, expected):
    pair = (torch.tensor(box, dtype=torch.float64) for box in (first, second))
    assert generalized_iou(*pair).item() == pytest.approx(expected)


def test_boxes_without_area_have_a_finite_iou_and_gradient():
    point = torch.full((4,), 0.5, requires_grad=True)
    iou = generalized_iou(point, torch.full((4,), 0.5))
    iou.backward()
    assert iou.item() == 0
    assert point.grad.isfinite().all()
