"""Losses that act in training only: predictions and checkpoints stay, and each term means what it says."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from detr_panoptic import DetrPanopticForSegmentation
from detr_panoptic.losses import loss_normalizers
from detr_panoptic.training.aids import (
    AIDS,
    attach_training_aids,
    cell_losses,
    cell_shares,
)
from detr_panoptic.training.model import calibrate
from tests.conftest import build_tiny

NUM_LABELS = 3


def aided(**settings):
    model = build_tiny(**settings).train()
    attach_training_aids(model)
    return model


def block_masks(*blocks, size=(8, 12)):
    masks = torch.zeros(len(blocks), *size, dtype=torch.bool)
    for mask, (rows, columns) in zip(masks, blocks, strict=True):
        mask[rows[0] : rows[1], columns[0] : columns[1]] = True
    return masks


def target_of(masks, classes):
    boxes = torch.tensor([[0.1 * i + 0.2, 0.4, 0.3, 0.1 * i + 0.1] for i in range(len(masks))])
    return {"class_labels": torch.tensor(classes), "boxes": boxes, "masks": masks}


def test_aids_add_terms_and_change_no_prediction(tiny_batch):
    plain, with_aids = build_tiny().train(), aided()
    with torch.no_grad():
        for parameter in with_aids.training_aids.parameters():
            parameter.normal_()
    outputs = [model(**tiny_batch) for model in (plain, with_aids)]
    for name in ("logits", "pred_boxes", "pred_masks"):
        assert torch.equal(outputs[0][name], outputs[1][name]), name
    terms = {k: v for k, v in outputs[1].loss_dict.items() if k not in outputs[0].loss_dict}
    weights = with_aids.training_aids.weights
    assert terms.keys() == weights.keys()
    added = sum(weights[name] * value for name, value in terms.items())
    assert added > 1
    torch.testing.assert_close(outputs[1].loss, outputs[0].loss + added)


def test_aids_rest_in_evaluation(tiny_batch):
    losses = [model.eval()(**tiny_batch).loss for model in (build_tiny(), aided())]
    assert torch.equal(*losses)


def test_a_saved_model_knows_nothing_of_its_aids(tmp_path):
    model = aided()
    assert any(name.startswith(AIDS) for name in model.state_dict())  # a run that goes on has to have them
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == build_tiny().state_dict().keys()
    loaded: Any = DetrPanopticForSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    _, notes = loaded
    assert not any(notes.values())


@pytest.mark.parametrize("empty", [False, True])
def test_every_parameter_of_the_aids_gets_a_gradient(tiny_batch, empty):
    if empty:
        for target in tiny_batch["labels"]:
            target.update({name: value[:0] for name, value in target.items()})
    model = aided()
    output = model(**tiny_batch)
    assert output.loss.isfinite()
    output.loss.backward()
    for name, parameter in model.training_aids.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad.abs().sum() == 0) == empty, name


def test_the_normalizers_divide_the_aids_too(tiny_batch):
    """Two halves with the whole's normalizers give the whole's terms: what DDP and accumulation rest on."""
    model = aided()
    labels = tiny_batch["labels"]
    whole = loss_normalizers(labels, num_queries=5, eos_coefficient=0.1)
    parts = [{name: value[i : i + 1] for name, value in tiny_batch.items()} for i in range(len(tiny_batch["labels"]))]
    expected = model(**tiny_batch, normalizers=whole).loss_dict
    for name in model.training_aids.weights:
        total = sum(model(**part, normalizers=whole).loss_dict[name] for part in parts)
        torch.testing.assert_close(total, expected[name])


# ------ the terms


def test_shares_of_a_padded_image_lie_on_the_image():
    masks = block_masks(((0, 8), (0, 12)), ((0, 2), (0, 6)))
    shares = cell_shares(masks, (16, 16), (4, 4))
    expected = torch.zeros(2, 4, 4)
    expected[0, :2, :3] = 1
    expected[1, 0, 0], expected[1, 0, 1] = 0.5, 0.25
    assert torch.equal(shares, expected)


def test_cells_that_name_their_segment_lose_nothing():
    target = target_of(block_masks(((0, 8), (0, 8)), ((0, 8), (8, 12))), [2, 0])
    shares = cell_shares(target["masks"], (8, 12), (2, 3))
    owner = torch.tensor([0, 0, 1] * 2)
    logits = 50 * torch.nn.functional.one_hot(target["class_labels"][owner], NUM_LABELS).float()
    right = torch.cat((logits, target["boxes"][owner] - 0.5), dim=-1)[None]
    losses = cell_losses(right, [target], [shares])
    assert losses["loss_cell_ce"] < 1e-6
    assert losses["loss_cell_bbox"] < 1e-6
    wrong = right.clone()
    wrong[0, 2] = right[0, 0]  # one of the two cells of the second segment
    off = (target["boxes"][0] - target["boxes"][1]).abs().sum() / 2
    torch.testing.assert_close(cell_losses(wrong, [target], [shares])["loss_cell_bbox"], off)


def test_a_segment_counts_once_however_large():
    """A speck in a corner weighs as much as the sky around it."""
    speck, rest = ((0, 1), (0, 1)), ((4, 8), (0, 12))
    predictions = torch.randn(1, 6, NUM_LABELS + 4, generator=torch.Generator().manual_seed(0))
    predictions[:] = predictions[:, :1]  # every cell says the same
    boxes = {}
    for name, block in (("speck", speck), ("rest", rest)):
        target = target_of(block_masks(block), [1])
        shares = cell_shares(target["masks"], (8, 12), (2, 3))
        boxes[name] = cell_losses(predictions, [target], [shares])
    torch.testing.assert_close(boxes["speck"], boxes["rest"])


# ------ first values


def test_a_calibrated_decoder_leaves_gradient_to_the_others(tiny_batch):
    """The first norm divides zero by zero: nearly all of the gradient's norm is one bias' until it is drawn."""
    parts = []
    for calibrated in (False, True):
        model = build_tiny().train()
        if calibrated:
            calibrate(model, tiny_batch["pixel_values"], tiny_batch["pixel_mask"])
        model(**tiny_batch).loss.backward()
        squares = {name: p.grad.pow(2).sum() for name, p in model.named_parameters() if p.grad is not None}
        bias = squares["model.decoder.layers.0.self_attn.out_proj.bias"]
        parts.append((bias / sum(squares.values())).sqrt().item())
    assert parts[0] > 0.5 > 0.2 > parts[1], parts
