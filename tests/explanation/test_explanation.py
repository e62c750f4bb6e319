"""Explanations: the model's own attention, of the right query and over the right pixels."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detr_panoptic import DetrPanopticImageProcessor, Predictor, explain
from detr_panoptic.explanation.explanation import queries_of
from detr_panoptic.visualization import draw_attention

from ..conftest import build_tiny, photo

NAMES = {0: "boat", 1: "person", 2: "<sky>"}
NUM_QUERIES = 13
SIZE = (142, 106)


@pytest.fixture(scope="module")
def model():
    """A tiny model whose random queries disagree, so that an image gets several segments."""
    model = build_tiny(
        num_queries=NUM_QUERIES, id2label=NAMES, label2id={name: i for i, name in NAMES.items()}, threshold=0.3
    ).eval()
    inputs = processor_of(model)(photo(SIZE, seed=0), return_tensors="pt")
    with torch.no_grad():
        model.model.query_embeddings.weight.mul_(30)
        model.class_head.weight.mul_(100)
        model.mask_attention.k_proj.weight.mul_(9)
        model.mask_head.predictor.weight.mul_(400)
        embeddings = model.model(**inputs).last_hidden_state[0]
        model.class_head.bias.copy_(-model.class_head.weight @ embeddings.mean(0))
    return model


def processor_of(model, **settings) -> DetrPanopticImageProcessor:
    size = {"shortest_edge": 128, "longest_edge": 194}
    return DetrPanopticImageProcessor.for_model(model.config, size=size, **settings)


def explained(model, *, pad_size=None, **arguments):
    processor = processor_of(model) if pad_size is None else processor_of(model, pad_size=pad_size)
    return explain((model, processor), photo(SIZE, seed=0), **arguments)


@pytest.fixture(scope="module")
def outputs(model):
    """What the model itself returns for the image."""
    with torch.no_grad():
        inputs = processor_of(model)(photo(SIZE, seed=0), return_tensors="pt")
        return model(**inputs, mask_queries="all", output_attentions=True)


def test_the_maps_are_those_of_the_segments_own_query(model, outputs):
    explanation = explained(model)
    assert len(explanation.segments) >= 2
    for segment in explanation.segments:
        probs = outputs.logits[0, segment["query"]].softmax(-1)
        assert int(probs.argmax()) == segment["label_id"]
        assert abs(float(probs.max()) - segment["score"]) < 1e-6
        attention = explanation.objects[f"segment_{segment['id']}"]
        h, w = outputs.mask_attentions.shape[-2:]
        assert np.array_equal(attention.mask_maps, outputs.mask_attentions[0, segment["query"]])
        for layer, weights in enumerate(outputs.cross_attentions):
            assert np.array_equal(attention.cross_maps[layer], weights[0, :, segment["query"]].reshape(-1, h, w))
        assert np.allclose(attention.cross_maps.sum((-2, -1)), 1, atol=1e-5)
        assert abs(attention.mask_maps.sum() - 1) < 1e-5
        assert np.array_equal(attention.mask, explanation.segmentation == segment["id"])


def test_the_segments_are_those_that_the_predictor_finds(model):
    prediction = Predictor(model, processor_of(model))(photo(SIZE, seed=0))
    explanation = explained(model)
    assert np.array_equal(explanation.segmentation, prediction.segmentation)
    assert [s["id"] for s in explanation.segments] == [s.id for s in prediction.segments]


def test_a_segment_is_where_the_mask_of_its_query_wins(model, outputs):
    """So it is not only some query of that class and score."""
    explanation = explained(model)
    masks = torch.nn.functional.interpolate(outputs.pred_masks, SIZE[::-1], mode="bilinear")[0]
    kept = [segment["query"] for segment in explanation.segments]
    winners = torch.tensor(kept)[masks[kept].argmax(0)]
    for segment in explanation.segments:
        inside = winners[torch.from_numpy(explanation.segmentation == segment["id"])]
        assert int(inside.mode().values) == segment["query"]


def test_equal_queries_have_a_segment_each():
    logits = torch.tensor([[3.0, 0, 0], [0, 3.0, 0], [3.0, 0, 0], [0, 0, 3.0]])
    score = round(float(logits[0].softmax(-1)[0]), 6)
    segments = [{"label_id": label, "score": score} for label in (0, 1, 0)]
    assert queries_of(segments, logits) == [0, 1, 2]
    assert queries_of(segments[1:], logits) == [1, 0]
    assert queries_of([], logits) == []


def test_padding_moves_nothing(model):
    """A canvas larger than the image has more cells; size and box stay those of the image."""
    for pad_size, cells in ((None, (4, 6)), ({"height": 256, "width": 224}, (8, 7))):
        explanation = explained(model, pad_size=pad_size)
        attention = next(iter(explanation.objects.values()))
        assert attention.mask_maps.shape[-2:] == cells
        assert (attention.processed_size, attention.stride) == ((128, 171), 32)
        processor = processor_of(model) if pad_size is None else processor_of(model, pad_size=pad_size)
        with torch.no_grad():
            boxes = model(**processor(photo(SIZE, seed=0), return_tensors="pt")).pred_boxes[0]
        assert np.allclose(attention.box, in_pixels(boxes[explanation.segments[0]["query"]]), atol=1e-3)


def in_pixels(box):
    cx, cy, w, h = box.tolist()
    return 142 * (cx - w / 2), 106 * (cy - h / 2), 142 * (cx + w / 2), 106 * (cy + h / 2)


def test_boxes_are_in_pixels_of_the_image(model, outputs):
    for query, attention in enumerate(explained(model, queries=range(NUM_QUERIES)).objects.values()):
        assert np.allclose(attention.box, in_pixels(outputs.pred_boxes[0, query]), atol=1e-3)


def test_a_dilated_backbone_has_smaller_cells():
    model = build_tiny(backbone="resnet18", dilation=True, threshold=0.0, id2label=NAMES).eval()
    attention = explained(model, queries=[0]).objects["query_0"]
    assert attention.stride == 16
    assert attention.mask_maps.shape == (4, 8, 11)  # 128 x 171


def test_any_query_can_be_explained_with_its_own_mask(model, outputs):
    explanation = explained(model, queries=range(NUM_QUERIES))
    for query in range(NUM_QUERIES):
        attention = explanation.objects[f"query_{query}"]
        logits = torch.nn.functional.interpolate(outputs.pred_masks[:, query : query + 1], (128, 171), mode="bilinear")
        assert attention.mask.shape == (106, 142)
        assert abs(attention.mask.mean() - float((logits > 0).float().mean())) < 0.03
        assert np.array_equal(attention.mask_maps, outputs.mask_attentions[0, query])


def test_a_query_that_sees_no_object_has_a_mask_too(model):
    blind = copy.deepcopy(model)
    with torch.no_grad():
        blind.class_head.bias[-1] += 1e4
    nothing, seen = (explained(m, queries=range(NUM_QUERIES)) for m in (blind, model))
    assert not nothing.segments
    for name, attention in nothing.objects.items():
        assert attention.subtitle.endswith("no object with 1.00")
        assert np.array_equal(attention.mask, seen.objects[name].mask)
    assert any(attention.mask.any() for attention in nothing.objects.values())


def test_saved_are_the_overlay_and_a_sheet_per_object(tmp_path, model_folder):
    picture = tmp_path / "photo.png"
    photo(SIZE, seed=0).save(picture)
    explanation = explain(model_folder, picture, threshold=0.2)
    files = explanation.save(tmp_path / "out", head=2)
    assert len(files) == len(explanation.segments) + 1 >= 3
    assert sorted(files) == sorted((tmp_path / "out").iterdir())
    last = explanation.segments[-1]["id"]
    with Image.open(tmp_path / "out" / f"photo_segment_{last}.png") as sheet:
        expected = draw_attention(explanation.image, explanation.objects[f"segment_{last}"], head=2)
        assert np.array_equal(np.asarray(sheet), np.asarray(expected))
    assert str(explanation).count("\n") == len(explanation.segments) - 1
    assert f"segment_{last}: " in str(explanation)


def test_objects_are_chosen_and_drawn(model):
    everything = explained(model)
    chosen = explained(model, segments=[2])
    assert list(chosen.objects) == ["segment_2"]
    assert len(chosen.segments) == len(everything.segments)
    sheet = np.asarray(chosen.draw(layer=1))
    assert np.array_equal(sheet, np.asarray(everything.draw("segment_2", layer=1)))
    assert everything.draw().height > len(everything.objects) * 500


def test_nothing_found_draws_the_image(tmp_path, model):
    nothing = explained(model, threshold=1.0)
    assert np.array_equal(np.asarray(nothing.draw()), np.asarray(nothing.image))
    assert nothing.save(tmp_path) == [tmp_path / "image_overlay.png"]
    assert "nothing" in str(nothing)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"segments": [99]}, "`segments`.*99"),
        ({"segments": [0]}, "`segments`.*0"),
        ({"queries": [13]}, "`queries` must be from 0 to 12, got 13"),
        ({"queries": [-1]}, "`queries`.*-1"),
        ({"queries": [1], "segments": [1]}, "together"),
        ({"task": "semantic"}, "`task`.*semantic"),
    ],
)
def test_wrong_arguments_are_named(model, arguments, part):
    with pytest.raises(ValueError, match=part):
        explained(model, **arguments)


def test_wrong_names_of_objects_and_layers_are_named(model):
    explanation = explained(model)
    with pytest.raises(ValueError, match=r"`name`.*segment_99"):
        explanation.draw("segment_99")
    with pytest.raises(ValueError, match="`layer` must be from 1 to 2"):
        explanation.draw(layer=3)


@pytest.mark.parametrize("name", ["missing.jpg", "text.jpg"])
def test_a_file_that_is_not_an_image_is_named(tmp_path, model, name):
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(ValueError, match=name):
        explain((model, processor_of(model)), Path(tmp_path / name))


def test_the_mode_of_the_model_does_not_matter(model):
    training = copy.deepcopy(model).train()
    for module in training.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    expected, found = explained(model), explained(training)
    assert np.array_equal(found.segmentation, expected.segmentation)
    assert training.training
