"""Calls that a user of transformers makes by habit: they work, or the error names the argument."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DetrConfig, DetrForSegmentation, pipeline

from detr_panoptic import DetrPanopticConfig, DetrPanopticImageProcessor, DetrPanopticImageSegmentationPipeline
from tests.conftest import build_tiny, photo

SMALL = {"shortest_edge": 64, "longest_edge": 97}


@pytest.fixture
def warned():
    """Warnings that transformers or this package logs from here on."""
    records = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())
    for name in ("transformers", "detr_panoptic"):
        logging.getLogger(name).addHandler(handler)
    yield records
    for name in ("transformers", "detr_panoptic"):
        logging.getLogger(name).removeHandler(handler)


def test_a_semantic_map_from_outputs_without_all_masks_is_refused():
    model, processor = build_tiny().eval(), DetrPanopticImageProcessor(size=SMALL)
    inputs = processor(photo((71, 53), seed=0), return_tensors="pt")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        with torch.no_grad():
            model.to(dtype)
            model.class_head.bias[-1] = 9  # no query sees an object
            cast = {**inputs, "pixel_values": inputs["pixel_values"].to(dtype)}
            kept, every = model(**cast), model(**cast, mask_queries="all")
        with pytest.raises(ValueError, match='5 queries lack theirs: call the model with mask_queries="all"'):
            processor.post_process_semantic_segmentation(kept)
        assert processor.post_process_semantic_segmentation(every)[0].shape == inputs["pixel_values"].shape[-2:]
        processor.post_process_panoptic_segmentation(kept)


def test_floats_that_are_scaled_already_are_warned_about(warned):
    processor = DetrPanopticImageProcessor(size=SMALL)
    processor(torch.zeros(3, 20, 30))
    processor(np.full((20, 30, 3), 255.0))
    processor(torch.rand(3, 20, 30), do_rescale=False)
    processor(Image.fromarray(np.random.default_rng(0).random((20, 30), dtype=np.float32)))
    assert warned == []
    processor(torch.rand(3, 20, 30))
    assert len(warned) == 1
    assert "do_rescale=False" in warned[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_center_crop": True}, "`do_center_crop` must be False"),
        ({"data_format": "channels_last"}, '`data_format` must be "channels_first"'),
        ({"treshold": 0.3}, "`treshold` is not a setting.*did you mean `threshold`"),
        ({"colour": "red"}, "`colour` is not a setting of DetrPanopticImageProcessor"),
    ],
)
def test_settings_without_effect_are_refused(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        DetrPanopticImageProcessor(**settings)
    processor = DetrPanopticImageProcessor(size=SMALL)
    name = next(iter(settings))
    with pytest.raises((ValueError, TypeError), match=name):
        processor(photo((71, 53), seed=0), **settings)
    processor.save_pretrained(tmp_path)
    if (
        name != "colour"
    ):  # a pipeline hands the model's arguments to the processor, too: `dtype`, `attn_implementation`
        with pytest.raises(ValueError, match=message):
            DetrPanopticImageProcessor.from_pretrained(tmp_path, **settings)
    DetrPanopticImageProcessor.from_pretrained(tmp_path, dtype="auto", attn_implementation="sdpa")


def test_a_model_of_other_channels_gets_no_processor():
    with pytest.raises(ValueError, match=r"`num_channels` must be 3.*got 1"):
        DetrPanopticImageProcessor.for_model(DetrPanopticConfig(num_channels=1))


@pytest.fixture(scope="module")
def foreign_folder(tmp_path_factory):
    """A tiny DETR as transformers saves it."""
    folder = tmp_path_factory.mktemp("foreign")
    torch.manual_seed(0)
    halves = {f"{half}_{name}": v for half in ("encoder", "decoder") for name, v in (("layers", 1), ("ffn_dim", 48))}
    config = DetrConfig(
        backbone="resnet18", backbone_config=None, use_pretrained_backbone=False, d_model=128, num_queries=5, **halves
    )
    DetrForSegmentation(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        '{"image_processor_type": "DetrImageProcessor", "size": {"shortest_edge": 64, "longest_edge": 97}}'
    )
    return folder


def test_a_detr_of_transformers_is_pointed_out_and_one_call_gives_ours(foreign_folder, warned):
    theirs = pipeline("image-segmentation", model=str(foreign_folder))
    assert type(theirs.model) is DetrForSegmentation
    assert any("DetrPanopticImageSegmentationPipeline.from_pretrained" in text for text in warned)
    ours = DetrPanopticImageSegmentationPipeline.from_pretrained(foreign_folder)
    assert type(ours.image_processor) is DetrPanopticImageProcessor
    assert ours.image_processor.size["shortest_edge"] == 64
    logits = {}
    for built in (theirs, ours):
        inputs = built.image_processor(photo((71, 53), seed=0), return_tensors="pt").to(built.device)
        with torch.no_grad():
            logits[built] = built.model(**inputs).logits
    torch.testing.assert_close(logits[ours], logits[theirs], atol=1e-4, rtol=0)
    assert ours(photo((71, 53), seed=0), threshold=0.0) != []
