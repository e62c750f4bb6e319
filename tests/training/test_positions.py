"""The backbone learns where each cell is, and nothing else changes."""

import logging

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from detr_panoptic import DetrPanopticForSegmentation
from detr_panoptic.backbone import Backbone
from detr_panoptic.checkpoints import BUNDLED
from detr_panoptic.training import run as training_run
from detr_panoptic.training.positions import last_stage, position_code, position_loss, teach_positions
from detr_panoptic.training.settings import OptimizationSettings
from tests.training.runs import run

UPDATES = 25


def image_masks(*sizes, canvas):
    masks = torch.zeros(len(sizes), *canvas, dtype=torch.bool)
    for mask, (height, width) in zip(masks, sizes, strict=True):
        mask[:height, :width] = True
    return masks


def test_a_cell_has_the_same_code_in_a_padded_image():
    alone = position_code(image_masks((4, 6), canvas=(4, 6)))
    padded = position_code(image_masks((4, 6), (7, 7), canvas=(7, 7)))
    assert torch.equal(padded[0, :4, :6], alone[0])
    assert not torch.equal(padded[1, :4, :6], alone[0])


def test_codes_are_alike_only_nearby():
    code = position_code(image_masks((9, 9), canvas=(9, 9)))[0]
    likeness = F.cosine_similarity(code, code[4, 4], dim=-1)
    assert likeness.flatten().argmax() == 4 * 9 + 4
    assert likeness[4, 5] > 0.8
    assert likeness[:, [0, 1, 2, 6, 7, 8]].max() < 0.7


def test_padding_has_no_part_in_the_loss():
    mask = image_masks((4, 6), canvas=(7, 7))
    predicted = position_code(mask)
    predicted[0, 5:] = 9.0
    assert position_loss(predicted, mask) == 0
    predicted[0, 0, 0] += 1
    assert position_loss(predicted, mask) > 0


def test_positions_are_learned_by_the_last_stage_and_the_projection_alone(caplog):
    model = DetrPanopticForSegmentation.from_pretrained(BUNDLED, dtype=torch.float32).eval()
    model.box_head.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    required = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    batch = {"pixel_values": images, "pixel_mask": torch.ones(2, 64, 96)}
    settings = OptimizationSettings(learning_rate=1e-3, backbone_learning_rate=5e-4)

    with caplog.at_level(logging.INFO, logger="detr_panoptic"):
        batches = [batch, {"pixel_values": images}] * UPDATES  # without a mask where nothing is padded
        teach_positions(model, batches, settings, updates=UPDATES)

    (loss,) = (record.args[0] for record in caplog.records)
    ignorant = position_loss(torch.zeros(1, 4, 6, 12), torch.ones(1, 4, 6, dtype=torch.bool))
    assert loss < 0.5 * ignorant
    stage = {id(parameter) for parameter in last_stage(model.model.backbone)}
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == required
    for name, parameter in model.named_parameters():
        has_learned = id(parameter) in stage or "input_projection" in name
        assert torch.equal(parameter, before[name]) != has_learned, name
    assert model.state_dict().keys() == before.keys()


@pytest.mark.parametrize(("name", "stage"), [("test_resnet", "body.layer4."), ("test_vit", "pyramid.")])
def test_the_last_stage_begins_after_the_last_map_but_one(name, stage):
    backbone = Backbone(name)
    own = {id(parameter) for parameter in last_stage(backbone)}
    expected = {key for key, _ in backbone.named_parameters() if key.startswith(stage)}
    assert {key for key, parameter in backbone.named_parameters() if id(parameter) in own} == expected != set()


def test_a_resumed_run_does_not_learn_positions_again(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(training_run, "teach_positions", lambda *_, updates, **__: calls.append(updates))
    settings = {"position_updates": 3, "epochs": 1, "limit": 2}
    assert run(tmp_path / "run", **settings).is_finished
    assert run(tmp_path / "run", **settings).is_finished
    assert calls == [3]
