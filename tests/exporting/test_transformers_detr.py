"""Models written as transformers' own DETR."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageSegmentation, DetrForSegmentation

from detr_panoptic import DetrPanopticForSegmentation, DetrPanopticImageProcessor
from detr_panoptic.checkpoints import BUNDLED
from detr_panoptic.exporting import export
from tests.conftest import build_tiny, photo
from tests.parity.test_transformers_parity import foreign_model

SIZES = {"shortest_edge": 64, "longest_edge": 131}
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module", params=[{"backbone": "resnet18"}, {"backbone": "resnet26", "dilation": True}], ids=str)
def pair(request):
    """A model with every tensor random, and its image processor."""
    names: Any = {"id2label": {0: "boat", 1: "sea", 2: "sky"}, "label2id": {"boat": 0, "sea": 1, "sky": 2}}
    # transformers' mask head needs a hidden size of 128, and has whole numbers for the costs.
    sizes: Any = {"hidden_size": 128, "num_heads": 16, "num_queries": 7, "giou_cost": 0.5}
    model = build_tiny(**request.param, **names, **sizes, stuff_label_ids=[1, 2], category_ids=[9, 155, 187])
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        model.model.query_embeddings.weight.mul_(30)
        for name, tensor in model.named_buffers():
            if "running" in name:
                tensor.add_(torch.rand(tensor.shape, generator=generator))
    return model.eval(), DetrPanopticImageProcessor.for_model(model.config, size=SIZES)


@torch.no_grad()
def test_transformers_computes_the_same_numbers(tmp_path, pair):
    model, processor = pair
    exported = export(pair, tmp_path, format="transformers")
    assert str(exported.file) in str(exported)
    theirs = AutoModelForImageSegmentation.from_pretrained(tmp_path).eval()
    assert type(theirs) is DetrForSegmentation
    assert theirs.config.id2label == model.config.id2label
    images = [photo((71, 53), seed=0), photo((64, 97), seed=1)]  # padded to one canvas
    batch = AutoImageProcessor.from_pretrained(tmp_path)(images, return_tensors="pt")
    ours = processor(images, return_tensors="pt")
    torch.testing.assert_close(batch["pixel_values"], ours["pixel_values"], atol=1e-5, rtol=0)
    output, expected = theirs(**ours), model(**ours, mask_queries="all")
    for name in ("logits", "pred_boxes", "pred_masks"):
        scale = expected[name].abs().max()
        assert scale > 0.1
        torch.testing.assert_close(output[name], expected[name], atol=1e-5 * max(1.0, float(scale)), rtol=0, msg=name)


def test_what_was_written_is_read_back(tmp_path, pair):
    model, processor = pair
    export(pair, tmp_path, format="transformers")
    again = DetrPanopticForSegmentation.from_pretrained(tmp_path)
    states = model.state_dict(), again.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    read = DetrPanopticImageProcessor.from_pretrained(tmp_path)
    for name in ("stuff_label_ids", "category_ids"):
        assert getattr(again.config, name) == getattr(model.config, name)
        assert list(getattr(read, name)) == getattr(model.config, name)
    for name in ("id2label", "dilation", "backbone", "num_heads", "dropout"):
        assert getattr(again.config, name) == getattr(model.config, name)
    assert dict(read.size) == dict(processor.size)


@pytest.mark.parametrize("dilation", [False, True])
def test_theirs_to_ours_to_theirs_is_the_same_bits(tmp_path, dilation):
    original, written = tmp_path / "original", tmp_path / "written"
    foreign_model(DetrForSegmentation, timm=True, dilation=dilation).save_pretrained(original)
    model = DetrPanopticForSegmentation.from_pretrained(original)
    export((model, DetrPanopticImageProcessor.for_model(model.config)), written, format="transformers")
    before, after = load_file(original / WEIGHTS), load_file(written / WEIGHTS)
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    configs = [json.loads((folder / "config.json").read_text()) for folder in (original, written)]
    changed = {name for name in configs[0] if configs[0][name] != configs[1].get(name)}
    assert changed <= {"id2label", "label2id", "attention_dropout", "activation_dropout", "transformers_version"}


def test_half_precision_stays(tmp_path, pair):
    model, processor = pair
    half = DetrPanopticForSegmentation(model.config)
    half.load_state_dict(model.state_dict())
    export((half.half(), processor), tmp_path, format="transformers")
    assert {tensor.dtype for tensor in load_file(tmp_path / WEIGHTS).values()} == {torch.float16}


@pytest.mark.parametrize(
    ("source", "settings", "part"),
    [
        (BUNDLED, {}, "tf_efficientnet_lite0"),  # transformers drops the activations of its batch norms
        (BUNDLED, {"size": (64, 64)}, "options of a graph"),
    ],
)
def test_what_transformers_cannot_compute_is_refused(tmp_path, source, settings, part):
    with pytest.raises(ValueError, match=part):
        export(source, tmp_path / "out", format="transformers", **settings)
    assert not (tmp_path / "out").exists()


def test_a_model_that_transformers_cannot_build_is_refused(tmp_path):
    model = build_tiny(hidden_size=32)  # its mask head would have 2 channels for 8 groups
    processor = DetrPanopticImageProcessor.for_model(model.config)
    with pytest.raises(ValueError, match="cannot build"):
        export((model, processor), tmp_path / "out", format="transformers")
