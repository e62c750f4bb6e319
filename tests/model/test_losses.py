from typing import Any

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

import detr_panoptic.losses as losses
from detr_panoptic.losses import (
    FocalAndDice,
    detection_losses,
    loss_normalizers,
    mask_losses,
)
from detr_panoptic.matcher import MatchedLayers, Matching
from tests.conftest import build_tiny

CANVAS = (52, 68)
SIZES = [(52, 44), (40, 68)]


def focal_loss(logits, targets, alpha=0.25, gamma=2):
    """As the reference writes it: (P,) and (P,) to a number."""
    probs = logits.sigmoid()
    right = probs * targets + (1 - probs) * (1 - targets)
    weights = alpha * targets + (1 - alpha) * (1 - targets)
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (weights * entropy * (1 - right) ** gamma).mean(-1)


def dice_loss(logits, targets):
    probs = logits.sigmoid()
    return 1 - (2 * (probs * targets).sum(-1) + 1) / (probs.sum(-1) + targets.sum(-1) + 1)


def mask_problem(requires_grad=False):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 13, 17, generator=generator, dtype=torch.float64, requires_grad=requires_grad)
    labels = [
        {"class_labels": torch.zeros(count), "masks": torch.rand(count, *size, generator=generator) > 0.5}
        for count, size in ((2, SIZES[0]), (2, SIZES[1]))
    ]
    matching = Matching(torch.tensor([0, 0, 1]), torch.tensor([[1, 4, 2]]), torch.tensor([[1, 0, 3]]))
    return logits, labels, matching


def all_masks(**options):
    logits, labels, matching = mask_problem()
    return mask_losses(
        logits, labels, matching, canvas_size=CANVAS, image_sizes=SIZES, num_targets=torch.tensor(1.0), **options
    )


def test_the_written_gradient_of_the_mask_losses_is_that_of_their_formulas():
    generator = torch.Generator().manual_seed(3)
    logits = (6 * torch.randn(5, 67, generator=generator, dtype=torch.float64)).requires_grad_()
    targets = (torch.rand(5, 67, generator=generator) > 0.7).double()
    targets[4] = 0
    weights = torch.rand(2, 5, generator=generator, dtype=torch.float64)
    results = []
    for losses_of in (FocalAndDice.apply, lambda *pair: (focal_loss(*pair), dice_loss(*pair))):
        values = torch.stack(losses_of(logits, targets))
        results.append((values, torch.autograd.grad((weights * values).sum(), logits)[0]))
    torch.testing.assert_close(*results, atol=1e-14, rtol=1e-12)


def test_extreme_logits_have_finite_losses_and_gradients():
    logits = torch.tensor([[-1e4, 1e4, -90.0, 90.0]]).requires_grad_()
    values = FocalAndDice.apply(logits, torch.tensor([[1.0, 0.0, 0.0, 1.0]]))
    gradient = torch.autograd.grad(sum(values).sum(), logits)[0]
    assert torch.stack(values).isfinite().all()
    assert gradient.isfinite().all()
    assert gradient[0, 0] < 0 < gradient[0, 1]  # the two that are wrong still pull


def test_padding_is_not_background():
    """transformers and the reference count the canvas around an image as pixels that the mask must not have."""
    logits, labels, _ = mask_problem()
    resized = F.interpolate(logits[:, None], size=CANVAS, mode="bilinear")[:, 0]
    chosen = [(0, labels[0]["masks"][1]), (1, labels[0]["masks"][0]), (2, labels[1]["masks"][1])]
    pairs = [
        (resized[row, : mask.shape[0], : mask.shape[1]].flatten(), mask.flatten().double()) for row, mask in chosen
    ]
    expected = sum(focal_loss(*pair) for pair in pairs), sum(dice_loss(*pair) for pair in pairs)
    found = all_masks()
    torch.testing.assert_close((found["loss_mask"], found["loss_dice"]), expected)
    counted = all_masks(count_padding=True)
    assert not torch.isclose(counted["loss_dice"], found["loss_dice"], atol=1e-3)


def test_chunks_change_neither_loss_nor_gradient(monkeypatch):
    results = []
    for pixels in (1, 1 << 30):
        monkeypatch.setattr(losses, "MASK_PIXELS_PER_CHUNK", {"cpu": pixels})
        logits, labels, matching = mask_problem(requires_grad=True)
        terms = mask_losses(
            logits, labels, matching, canvas_size=CANVAS, image_sizes=SIZES, num_targets=torch.tensor(3.0)
        )
        (terms["loss_mask"] + terms["loss_dice"]).backward()
        results.append((terms["loss_mask"], terms["loss_dice"], logits.grad))
    torch.testing.assert_close(*results, atol=1e-7, rtol=1e-5)


def test_images_of_one_size_are_compared_together(monkeypatch):
    """A GPU waits longer for small operations than it works on them: their number must not grow with the images."""
    passes = []
    monkeypatch.setattr(losses, "checkpoint", lambda function, *inputs, **_: passes.append(1) or function(*inputs))
    for sizes, expected in (([SIZES[0]] * 5, 1), ([SIZES[0], SIZES[1]] * 3, 2)):
        passes.clear()
        count = len(sizes)
        labels = [{"class_labels": torch.zeros(2), "masks": torch.rand(2, *size) > 0.5} for size in sizes]
        matching = Matching(torch.arange(count), torch.zeros(1, count), 2 * torch.arange(count)[None] + 1)
        options: Any = {"canvas_size": CANVAS, "num_targets": torch.tensor(1.0)}
        logits = torch.randn(count, 13, 17, dtype=torch.float64)
        found = mask_losses(logits, labels, matching, image_sizes=sizes, **options)
        assert len(passes) == expected
        alone = [
            mask_losses(
                logits[i : i + 1],
                labels[i : i + 1],
                Matching(torch.tensor([0]), torch.tensor([[0]]), torch.tensor([[1]])),
                image_sizes=sizes[i : i + 1],
                **options,
            )
            for i in range(count)
        ]
        for name in found:
            torch.testing.assert_close(found[name], sum(terms[name] for terms in alone))


def test_masks_of_their_own_resolution_are_read_at_the_centers_of_cells():
    """Of each 4x4 cell one pixel counts, wherever the image ends."""
    logits, labels, matching = mask_problem()
    cells = [torch.rand(2, -(-h // 4), -(-w // 4), generator=torch.Generator().manual_seed(7)) > 0.5 for h, w in SIZES]
    for target, small, (height, width) in zip(labels, cells, SIZES, strict=True):
        target["masks"] = torch.rand(2, height, width) > 0.5
        target["masks"][:, 2::4, 2::4] = small
    found = mask_losses(
        logits,
        labels,
        matching,
        canvas_size=CANVAS,
        image_sizes=SIZES,
        num_targets=torch.tensor(1.0),
        resolution="mask",
    )
    chosen = [(0, cells[0][1]), (1, cells[0][0]), (2, cells[1][1])]
    pairs = [(logits[row, : c.shape[0], : c.shape[1]].flatten(), c.flatten().double()) for row, c in chosen]
    expected = sum(focal_loss(*pair) for pair in pairs), sum(dice_loss(*pair) for pair in pairs)
    torch.testing.assert_close((found["loss_mask"], found["loss_dice"]), expected)


def test_own_resolution_counts_padding_only_when_asked():
    found, counted = all_masks(resolution="mask"), all_masks(resolution="mask", count_padding=True)
    assert not torch.isclose(counted["loss_dice"], found["loss_dice"], atol=1e-3)


@pytest.mark.parametrize("size", [(1, 1), (2, 13), (52, 2), (3, 3)])
def test_an_image_smaller_than_a_cell_has_a_loss_at_the_masks_own_resolution(size):
    """A strip of two pixels in a batch reaches no center of a cell: the mean over its no pixels was NaN."""
    logits, labels, matching = mask_problem()
    labels[0]["masks"] = torch.ones(2, *size, dtype=torch.bool)
    options: Any = {"canvas_size": CANVAS, "num_targets": torch.tensor(1.0), "resolution": "mask"}
    found = mask_losses(logits, labels, matching, image_sizes=[size, SIZES[1]], **options)
    assert all(value.isfinite() for value in found.values())
    wrong = mask_losses(-logits, labels, matching, image_sizes=[size, SIZES[1]], **options)
    assert found["loss_mask"] != wrong["loss_mask"]


def classification(logits, labels, matching, eos_coefficient):
    """Returns `loss_ce` of one layer."""
    labels = [target | {"boxes": torch.rand(len(target["class_labels"]), 4)} for target in labels]
    normalizers = loss_normalizers(labels, num_queries=5, eos_coefficient=eos_coefficient)
    matched = MatchedLayers(labels, logits[None], torch.rand(1, *logits.shape[:2], 4), matching)
    return detection_losses(matched, eos_coefficient=eos_coefficient, normalizers=normalizers)["loss_ce"][0]


def test_no_target_and_no_weight_for_no_object_is_no_loss():
    """0 / 0 was NaN: an image without objects where `eos_coefficient` is 0."""
    logits = torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.int64)
    loss = classification(logits, [{"class_labels": nothing}], Matching(nothing, nothing[None], nothing[None]), 0.0)
    loss.backward()
    assert loss == 0
    assert logits.grad.abs().max() == 0


def test_the_model_passes_the_resolution_on(tiny_batch):
    losses_of = [build_tiny(mask_loss_resolution=r).eval()(**tiny_batch).loss_dict for r in ("image", "mask")]
    assert losses_of[0]["loss_ce"] == losses_of[1]["loss_ce"]
    assert losses_of[0]["loss_dice"] != losses_of[1]["loss_dice"]


def test_normalizer_of_the_classification_is_the_sum_of_its_weights():
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 4)
    labels = [{"class_labels": torch.tensor([2, 0, 1])}, {"class_labels": torch.tensor([1])}]
    matching = Matching(torch.tensor([0, 0, 0, 1]), torch.tensor([[0, 2, 4, 3]]), torch.tensor([[1, 0, 2, 3]]))
    classes = torch.full((2, 5), 3)
    classes[0, 0], classes[0, 2], classes[0, 4], classes[1, 3] = 0, 2, 1, 1
    mean = F.cross_entropy(logits.flatten(0, 1), classes.flatten(), weight=torch.tensor([1, 1, 1, 0.1]))
    found = classification(logits, labels, matching, 0.1)
    torch.testing.assert_close(found, mean)


@pytest.mark.parametrize("size", [(0, 0), (0.5, 0)])
def test_boxes_without_size_give_finite_losses(tiny_batch, size):
    model = build_tiny().train()
    tiny_batch["labels"][0]["boxes"][0, 2:] = torch.tensor(size)
    output = model(**tiny_batch)
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
