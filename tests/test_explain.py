"""`detr-panoptic explain`: the model's own attention, for the right query and over the right pixels."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detr_panoptic import DetrPanopticImageProcessor
from detr_panoptic.cli import main
from detr_panoptic.commands.demo import SHIPPED_MODEL
from detr_panoptic.explanation.explanation import explain_image, queries_of
from detr_panoptic.inference.old_loading import COCO_CHECKPOINT
from detr_panoptic.visualization import draw_attention

from .conftest import build_tiny

NAMES = {0: "boat", 1: "person", 2: "<sky>"}
NUM_QUERIES = 13


def photo(size: tuple[int, int], *, seed: int = 0) -> Image.Image:
    """Smooth noise, which has regions; sizes are (width, height)."""
    small = np.random.default_rng(seed).integers(256, size=(5, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def model():
    """A tiny model whose random queries disagree, so that an image gets several segments."""
    model = build_tiny(
        num_queries=NUM_QUERIES, id2label=NAMES, label2id={name: i for i, name in NAMES.items()}, threshold=0.3
    ).eval()
    inputs = processor_of(model)(photo((142, 106)), return_tensors="pt")
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


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    processor_of(model).save_pretrained(folder)
    return folder


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "photo.png"
    photo((142, 106)).save(path)
    return path


def run(*words: object) -> int:
    return main(["explain", *(str(word) for word in words)])


def explained(model, *, image=None, all_masks=False, **settings):
    image = image or photo((142, 106))
    return explain_image(
        image, "photo.png", model, processor_of(model, **settings), threshold=None, all_masks=all_masks
    )


def test_the_maps_are_those_of_the_segments_own_query(model):
    explanation = explained(model)
    assert len(explanation.segments_info) >= 2
    outputs = explanation.outputs
    for segment in explanation.segments_info:
        probs = outputs.logits[0, segment["query"]].softmax(-1)
        assert int(probs.argmax()) == segment["label_id"]
        assert abs(float(probs.max()) - segment["score"]) < 1e-6
        attention = explanation.of_segment(segment["id"])
        h, w = outputs.mask_attentions.shape[-2:]
        assert np.array_equal(attention.mask_maps, outputs.mask_attentions[0, segment["query"]])
        for layer, weights in enumerate(outputs.cross_attentions):
            assert np.array_equal(attention.cross_maps[layer], weights[0, :, segment["query"]].reshape(-1, h, w))
        assert np.allclose(attention.cross_maps.sum((-2, -1)), 1, atol=1e-5)
        assert abs(attention.mask_maps.sum() - 1) < 1e-5
        assert np.array_equal(attention.mask, explanation.segmentation == segment["id"])


def test_a_segment_is_where_the_mask_of_its_query_wins(model):
    """So it is not only some query of that class and score."""
    explanation = explained(model)
    masks = torch.nn.functional.interpolate(explanation.outputs.pred_masks, (106, 142), mode="bilinear")[0]
    kept = [segment["query"] for segment in explanation.segments_info]
    winners = torch.tensor(kept)[masks[kept].argmax(0)]
    for segment in explanation.segments_info:
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
    plain = explained(model)
    padded = explained(model, pad_size={"height": 256, "width": 224})
    assert padded.outputs.mask_attentions.shape[-2:] == (8, 7)
    for explanation in (plain, padded):
        attention = explanation.of_segment(explanation.segments_info[0]["id"])
        assert attention.processed_size == (128, 171)
        assert attention.stride == 32
        query = explanation.segments_info[0]["query"]
        cx, cy, w, h = explanation.outputs.pred_boxes[0, query].tolist()
        expected = (142 * (cx - w / 2), 106 * (cy - h / 2), 142 * (cx + w / 2), 106 * (cy + h / 2))
        assert np.allclose(attention.box, expected, atol=1e-3)


def test_a_dilated_backbone_has_smaller_cells():
    model = build_tiny(backbone="resnet18", dilation=True, threshold=0.0, id2label=NAMES).eval()
    explanation = explained(model, all_masks=True)
    attention = explanation.of_query(0)
    assert attention.stride == 16
    assert attention.mask_maps.shape == (4, 8, 11)  # 128 x 171


def test_any_query_can_be_explained_with_its_own_mask(model):
    explanation = explained(model, all_masks=True)
    for query in range(NUM_QUERIES):
        attention = explanation.of_query(query)
        logits = torch.nn.functional.interpolate(
            explanation.outputs.pred_masks[:, query : query + 1], (128, 171), mode="bilinear"
        )
        assert attention.mask.shape == (106, 142)
        assert abs(attention.mask.mean() - float((logits > 0).float().mean())) < 0.03
        assert np.array_equal(attention.mask_maps, explanation.outputs.mask_attentions[0, query])


def test_a_query_that_sees_no_object_has_a_mask_all_the_same(model):
    blind = copy.deepcopy(model)
    with torch.no_grad():
        blind.class_head.bias[-1] += 1e4
    explanation = explained(blind, all_masks=True)
    assert not explanation.segments_info
    seen = explained(model, all_masks=True)
    for query in range(NUM_QUERIES):
        attention = explanation.of_query(query)
        assert attention.subtitle.endswith("no object with 1.00")
        assert np.array_equal(attention.mask, seen.of_query(query).mask)
    assert any(explanation.of_query(query).mask.any() for query in range(NUM_QUERIES))


def test_files_hold_a_sheet_per_segment_and_a_page_with_all(tmp_path, model, folder, picture, capsys):
    out = tmp_path / "out"
    assert run(picture, "--model", folder, "--output", out, "--head", 2) == 0
    explanation = explained(model)
    ids = [segment["id"] for segment in explanation.segments_info]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["photo.html", *(f"photo_segment_{i}.png" for i in ids)]
    )
    with Image.open(out / f"photo_segment_{ids[-1]}.png") as sheet:
        expected = draw_attention(explanation.image, explanation.of_segment(ids[-1]), head=2)
        assert np.array_equal(np.asarray(sheet), np.asarray(expected))
    page = (out / "photo.html").read_text(encoding="utf-8")
    for segment_id in ids:
        assert f'href="#segment_{segment_id}"' in page
        assert f'id="segment_{segment_id}"' in page
    assert "<sky>" not in page
    printed = capsys.readouterr().out
    assert "photo_segment_1.png" in printed
    assert "Open " in printed


def test_segments_and_layer_are_chosen(tmp_path, model, folder, picture):
    assert run(picture, "--model", folder, "--output", tmp_path / "out", "--segments", 2, "--layer", 1) == 0
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["photo_segment_2.png"]
    with Image.open(tmp_path / "out" / "photo_segment_2.png") as sheet:
        explanation = explained(model)
        expected = draw_attention(explanation.image, explanation.of_segment(2), layer=1)
        assert np.array_equal(np.asarray(sheet), np.asarray(expected))


def test_queries_are_chosen(tmp_path, folder, picture):
    assert run(picture, "--model", folder, "--output", tmp_path / "out", "--query", 0, 12, "--head", 1) == 0
    names = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert names == ["photo_query_0.png", "photo_query_12.png"]


def test_nothing_found_is_a_page_too(tmp_path, folder, picture, capsys):
    assert run(picture, "--model", folder, "--output", tmp_path / "out", "--threshold", 1) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["photo.html"]
    assert "Nothing above the threshold" in capsys.readouterr().out


def test_the_shipped_model_explains(tmp_path, picture):
    assert run(picture, "--model", SHIPPED_MODEL, "--output", tmp_path / "out", "--query", 3, "--head", 1) == 0
    assert (tmp_path / "out" / "photo_query_3.png").is_file()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--segments", "99"], "`--segments` must be among those of the image, 1 to "),
        (["--segments", "0"], "`--segments` must"),
        (["--query", "13"], "`--query` must be from 0 to 12, got 13"),
        (["--query", "-1"], "`--query` must be from 0 to 12, got -1"),
        (["--query", "1", "--segments", "1"], "not allowed with"),
        (["--layer", "3"], "`--layer` must be from 1 to 2"),
        (["--head", "0"], "`--head` must be from 1 to 4"),
        (["--threshold", "2"], "from 0 to 1"),
        (["--output", "{picture}"], "is a file"),
        (["--model", "{tmp}"], "config.json"),
    ],
)
def test_a_mistake_costs_one_line(tmp_path, folder, picture, capsys, options, part):
    words = [word.format(picture=picture, tmp=tmp_path) for word in options]
    assert run(picture, "--model", folder, "--output", tmp_path / "out", *words) == 2
    captured = capsys.readouterr()
    assert part in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["missing.jpg", "text.jpg", ""])
def test_what_is_no_image_is_one_line(tmp_path, folder, capsys, name):
    (tmp_path / "text.jpg").write_text("no image")
    assert run(tmp_path / name, "--model", folder, "--output", tmp_path / "out") == 2
    assert name in capsys.readouterr().err.splitlines()[0]


def test_without_a_model_it_is_the_published_one(tmp_path, picture, capsys):
    """Tests have no network: one line says what is missing, and what to do."""
    code = run(picture, "--output", tmp_path / "out")
    if code == 0:
        pytest.skip("the published model is in this machine's cache")
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith(f"detr-panoptic explain: error: {COCO_CHECKPOINT}, the model for photographs, could not")
    assert "`--model FOLDER` takes another" in error
    assert error.count("\n") == 1
