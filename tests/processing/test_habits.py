"""Calls that a user of transformers makes by habit: they work, or the error names the argument."""

import json
import logging
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, DetrConfig, DetrForSegmentation, pipeline

from detr_panoptic import DetrPanopticConfig, DetrPanopticImageProcessor, DetrPanopticImageSegmentationPipeline
from tests.conftest import build_tiny, photo

SMALL = {"shortest_edge": 64, "longest_edge": 97}


@pytest.fixture
def warned(monkeypatch):
    """Warnings that transformers or this package logs from here on."""
    records = []
    handler = logging.Handler(logging.WARNING)
    monkeypatch.setattr(handler, "emit", lambda record: records.append(record.getMessage()))
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
    sizes: Any = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    sizes |= {"d_model": 128, "num_queries": 5, "backbone": "resnet18", "backbone_config": None}
    sizes |= {"use_pretrained_backbone": False}
    config = DetrConfig(**sizes)
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


# Relations that transformers demands of every image processor, on ours


SETTINGS = {"size": {"shortest_edge": 18, "longest_edge": 1333}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def test_settings_survive_every_way_of_saving(tmp_path):
    first = DetrPanopticImageProcessor(**SETTINGS, stuff_label_ids=[1], category_ids=[4, 9], do_pad=False)
    assert {name: json.loads(first.to_json_string())[name] for name in SETTINGS} == SETTINGS
    first.to_json_file(tmp_path / "settings.json")
    first.save_pretrained(tmp_path)
    for second in (
        DetrPanopticImageProcessor.from_json_file(tmp_path / "settings.json"),
        DetrPanopticImageProcessor.from_pretrained(tmp_path),
        DetrPanopticImageProcessor.from_dict(first.to_dict()),
        AutoImageProcessor.from_pretrained(tmp_path),
    ):
        assert type(second) is DetrPanopticImageProcessor
        assert second.to_dict() | {"auto_map": None} == first.to_dict() | {"auto_map": None}  # only saved with code
    changed = DetrPanopticImageProcessor.from_dict(first.to_dict(), size={"height": 42, "width": 84}, do_pad=True)
    assert (changed.size["height"], changed.do_pad) == (42, True)
    options: Any = {"return_unused_kwargs": True, "revision": None, "foo": False}
    loaded: Any = DetrPanopticImageProcessor.from_pretrained(tmp_path, **options)
    _, unused = loaded
    assert unused == {"foo": False}


def test_processors_do_not_share_settings():
    first, second = DetrPanopticImageProcessor(), DetrPanopticImageProcessor()
    first.stuff_label_ids.append(3)
    first.size = {"height": 5, "width": 7}
    assert second.stuff_label_ids == DetrPanopticImageProcessor.stuff_label_ids == []
    assert second.size["shortest_edge"] == 800


def test_batches_are_cast_and_keep_their_whole_numbers():
    processor = DetrPanopticImageProcessor(**SETTINGS)
    images = [torch.randint(0, 255, (3, 30, 40 + i), dtype=torch.uint8) for i in range(3)]
    batch = processor(images, return_tensors="pt")
    assert (batch.pixel_values.dtype, batch.pixel_values.device.type) == (torch.float32, "cpu")
    for cast in (batch.to(torch.float16), processor(images, return_tensors="pt").to("cpu", torch.float16)):
        assert (cast.pixel_values.dtype, cast.pixel_mask.dtype) == (torch.float16, torch.int64)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_arrays_and_tensors_give_the_same_batch(channels):
    array = np.random.default_rng(0).integers(0, 256, (30, 41, channels), dtype=np.uint8)
    processor = DetrPanopticImageProcessor(**SETTINGS)
    picture = Image.fromarray(array[..., 0] if channels == 1 else array[..., :3])
    expected = processor(picture, return_tensors="pt").pixel_values
    for image in (array, torch.from_numpy(array).permute(2, 0, 1), array.transpose(2, 0, 1)):
        assert torch.equal(processor(image, return_tensors="pt").pixel_values, expected)
    assert isinstance(processor(array, return_tensors="np")["pixel_values"], np.ndarray)
