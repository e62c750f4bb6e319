"""Losses: finite, chunked as whole, and their gradients those of finite differences."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from detr_panoptic import losses
from detr_panoptic.losses import FocalAndDice, detection_losses, loss_normalizers, mask_losses
from detr_panoptic.matcher import MatchedLayers, match
from tests.conftest import build_tiny
from tests.fuzz import examples

pytestmark = pytest.mark.fuzz
COSTS = {"class_cost": 1.0, "bbox_cost": 5.0, "giou_cost": 2.0}
LABELS = 3
SIDES = st.integers(1, 4)
LOGITS = st.floats(-19, 19, width=32)  # from 20 on, softplus is linear: 2e-9 off, and not smooth


@st.composite
def problems(draw, values=LOGITS):
    """Predictions of two layers and the targets of a batch: none, few, or more than queries; empty masks, points."""
    batch, queries = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    height, width = draw(SIDES), draw(SIDES)
    canvas = (4 * height - draw(st.integers(0, 3)), 4 * width - draw(st.integers(0, 3)))
    unit = st.floats(0, 1, width=32)

    def tensor(shape, elements, dtype=np.float32):
        return torch.from_numpy(draw(arrays.arrays(dtype, shape, elements=elements)))

    labels, sizes = [], []
    for _ in range(batch):
        count = draw(st.integers(0, 5))
        size = tuple(draw(st.integers(1, length)) for length in canvas)
        sizes.append(size)
        labels.append(
            {
                "class_labels": tensor((count,), st.integers(0, LABELS - 1), np.int64),
                "boxes": tensor((count, 4), unit),
                "masks": tensor((count, *size), st.booleans(), bool),
            }
        )
    predictions = {
        "logits": tensor((2, batch, queries, LABELS + 1), values),
        "boxes": tensor((2, batch, queries, 4), unit),
        "masks": tensor((batch, queries, height, width), values),
    }
    return predictions, labels, canvas, sizes


def all_losses(predictions, labels, canvas, sizes, *, eos=0.1, **options):
    logits, boxes, masks = predictions["logits"], predictions["boxes"], predictions["masks"]
    matching = match(logits.detach(), boxes.detach(), labels, costs=COSTS)
    normalizers = loss_normalizers(labels, num_queries=logits.shape[2], eos_coefficient=eos)
    matched = MatchedLayers(labels, logits, boxes, matching)
    terms = {
        name: values.sum()
        for name, values in detection_losses(matched, eos_coefficient=eos, normalizers=normalizers).items()
    }
    return terms | mask_losses(
        masks[matching.image, matching.query[-1]],
        labels,
        matching,
        canvas_size=canvas,
        image_sizes=sizes,
        num_targets=normalizers.num_targets,
        **options,
    )


@examples(80)
@given(
    problems(st.floats(-1e4, 1e4, width=32)),
    st.sampled_from(["image", "mask"]),
    st.booleans(),
    st.sampled_from([0.0, 0.1, 1.0]),
)
def test_losses_and_gradients_are_finite(problem, resolution, count_padding, eos):
    predictions, *truth = problem
    leaves = {name: value.clone().requires_grad_() for name, value in predictions.items()}
    terms = all_losses(leaves, *truth, eos=eos, resolution=resolution, count_padding=count_padding)
    assert all(value.isfinite() and value >= -1e-6 for value in terms.values()), terms
    torch.stack(list(terms.values())).sum().backward()
    assert all(leaf.grad is None or leaf.grad.isfinite().all() for leaf in leaves.values())


@examples(20)
@given(problems(), st.sampled_from(["image", "mask"]))
def test_chunks_change_nothing(problem, resolution):
    whole = all_losses(*problem, resolution=resolution)
    before, losses.MASK_PIXELS_PER_CHUNK = losses.MASK_PIXELS_PER_CHUNK, {"cpu": 1}
    try:
        chunked = all_losses(*problem, resolution=resolution)
    finally:
        losses.MASK_PIXELS_PER_CHUNK = before
    torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=1e-5)


@examples(40)
@given(arrays.arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 5)), elements=LOGITS), st.data())
def test_the_gradient_of_masks_is_that_of_finite_differences(logits, data):
    targets = data.draw(arrays.arrays(bool, logits.shape))
    leaf = torch.from_numpy(logits.copy()).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: FocalAndDice.apply(x, torch.from_numpy(targets).double()), (leaf,), atol=1e-6, rtol=1e-4
    )


@examples(20)
@given(st.integers(0, 2**31 - 1), st.integers(1, 70), st.integers(1, 70), st.integers(0, 7), st.integers(0, 7))
def test_the_model_has_finite_losses_for_any_image(seed, height, width, first_count, second_count):
    generator = torch.Generator().manual_seed(seed)
    model = build_tiny().train(bool(seed % 2))
    labels = []
    for count in (first_count, second_count):
        owner = torch.randint(count + 1, (height, width), generator=generator)
        labels.append(
            {
                "class_labels": torch.randint(LABELS, (count,), generator=generator),
                "boxes": torch.rand(count, 4, generator=generator),
                "masks": owner == torch.arange(count)[:, None, None],
            }
        )
    output = model(torch.randn(2, 3, height, width, generator=generator), labels=labels)
    assert output.loss.isfinite()
    assert all(value.isfinite() for value in output.loss_dict.values())
