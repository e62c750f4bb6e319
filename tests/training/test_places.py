"""A query has a place of its own in training: the matching prefers targets near it, and nothing else changes."""

import torch
from safetensors.torch import load_file

from detr_panoptic import DetrPanopticForSegmentation
from detr_panoptic.checkpoints import BUNDLED
from detr_panoptic.matcher import match
from detr_panoptic.training.places import attach_places, predicted_places, spread_places
from tests.conftest import build_tiny
from tests.training.runs import run

COSTS = {"class_cost": 1.0, "bbox_cost": 5.0, "giou_cost": 2.0}


def target_of(*boxes):
    return {"class_labels": torch.zeros(len(boxes), dtype=torch.int64), "boxes": torch.tensor(boxes)}


def test_of_equal_predictions_the_query_of_the_place_is_matched():
    logits, boxes = torch.zeros(2, 2, 4, 3), torch.full((2, 2, 4, 4), 0.5)  # two layers, two images, four queries
    places = torch.tensor([[x, 0.5, 0.2, 0.2] for x in (0.1, 0.4, 0.6, 0.9)])
    labels = [target_of([0.9, 0.5, 0.2, 0.2], [0.35, 0.5, 0.2, 0.2]), target_of([0.55, 0.5, 0.2, 0.2])]
    labels = [t | {"query_costs": 3 * torch.cdist(t["boxes"], places, p=1)} for t in labels]
    matching = match(logits, boxes, labels, costs=COSTS)
    assert matching.query.tolist() == [[1, 3, 2]] * 2
    assert matching.target.tolist() == [[1, 0, 2]] * 2


def test_new_queries_get_places_where_objects_are():
    groups = torch.tensor([[0.2, 0.2, 0.1, 0.1], [0.8, 0.3, 0.1, 0.4], [0.5, 0.5, 1.0, 1.0]])
    batches = [{"labels": [{"boxes": groups}, {"boxes": groups[:1]}]}] * 3
    places = spread_places(batches, 3)
    assert torch.cdist(places, groups).min(0).values.max() < 0.02
    assert torch.equal(places, spread_places(batches, 3))
    assert spread_places(batches, 40).shape == (40, 4)  # more than there are boxes
    assert spread_places([{"labels": [{"boxes": torch.zeros(0, 4)}]}], 3).shape == (3, 4)


def test_places_act_in_training_only_and_are_not_saved():
    model = build_tiny().train()
    images, labels = torch.randn(2, 3, 64, 96), [target_of([0.3, 0.3, 0.2, 0.2])] * 2
    names = list(model.state_dict())
    free = model(pixel_values=images, labels=labels).loss
    evaluated = model.eval()(pixel_values=images, labels=labels).loss
    far = torch.full((model.config.num_queries, 4), 9.0)
    far[0] = torch.tensor([0.3, 0.3, 0.2, 0.2])
    attach_places(model, far, 10.0)
    assert model.train()(pixel_values=images, labels=labels).loss != free
    assert torch.equal(model.eval()(pixel_values=images, labels=labels).loss, evaluated)
    assert list(model.state_dict()) == names
    assert "query_costs" not in labels[0]


def test_trained_queries_keep_the_places_that_they_have():
    model = DetrPanopticForSegmentation.from_pretrained(BUNDLED, dtype=torch.float32).train()
    images = torch.randn(2, 3, 96, 96)
    places = predicted_places(model, [{"pixel_values": images}] * 2)
    assert model.training
    torch.testing.assert_close(places, model.eval()(pixel_values=images).pred_boxes.mean(0))


def test_a_run_with_places_saves_a_plain_model(tmp_path):
    assert run(tmp_path / "new", place_cost=10.0, epochs=1).is_finished
    fine_tuned = run(tmp_path / "tuned", model=str(BUNDLED), place_cost=10.0, limit=2, epochs=1)
    assert fine_tuned.is_finished
    names = load_file(tmp_path / "tuned/model.safetensors").keys()
    assert names == load_file(BUNDLED / "model.safetensors").keys()
