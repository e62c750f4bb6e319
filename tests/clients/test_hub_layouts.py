"""Folders of DETR as transformers 4 and 5 write them to the Hub, with random weights."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DetrConfig, DetrForObjectDetection, DetrForSegmentation, DetrImageProcessor, ResNetConfig

from detr_panoptic import (
    DetrPanopticForSegmentation,
    DetrPanopticImageProcessor,
    DetrPanopticImageSegmentationPipeline,
)
from tests.conftest import photo

SIZES: Any = {"d_model": 64, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
SIZES |= {"encoder_attention_heads": 8, "decoder_attention_heads": 8, "num_queries": 7}
SIDES = {"shortest_edge": 64, "longest_edge": 97}
STATISTICS = {"do_resize": True, "do_normalize": True, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}

# The fields about the backbone that versions of transformers have written for the same network.
BY_NAME = {"backbone": "resnet18", "dilation": False, "num_channels": 3}
BY_NAME_AND_KIND = BY_NAME | {"use_timm_backbone": True, "backbone_config": None, "use_pretrained_backbone": True}
WITH_OPTIONS = BY_NAME_AND_KIND | {"backbone_kwargs": {"out_indices": [1, 2, 3, 4], "in_chans": 3}}
NESTED: Any = {"backbone_config": {"model_type": "timm_backbone", "backbone": "resnet18", "out_indices": [1, 2, 3, 4]}}

FEATURE_EXTRACTOR = STATISTICS | {"feature_extractor_type": "DetrFeatureExtractor", "size": 64, "max_size": 97}
BOTH = FEATURE_EXTRACTOR | {"image_processor_type": "DetrImageProcessor", "format": "coco_panoptic"}
VERSION_4 = STATISTICS | {
    "image_processor_type": "DetrImageProcessor",
    "size": SIDES,
    "format": "coco_panoptic",
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_pad": True,
    "pad_size": None,
    "do_convert_annotations": True,
    "resample": 2,
    "_valid_processor_keys": ["images", "annotations", "return_segmentation_masks", "masks_path"],
}

LAYOUTS = {
    "4.5": (BY_NAME, FEATURE_EXTRACTOR, "pytorch_model.bin"),
    "4.26": (BY_NAME_AND_KIND, BOTH, "pytorch_model.bin"),
    "4.42": (WITH_OPTIONS, VERSION_4, "model.safetensors"),
    "4 in shards": (BY_NAME_AND_KIND, VERSION_4, "pytorch_model.bin.index.json"),
    "5": (NESTED, None, "model.safetensors"),
    "5 in shards": (NESTED, None, "model.safetensors.index.json"),
    "5, torch.save of the state dict": (NESTED, None, "names of version 5"),
}


def random_model(config, model_class=DetrForSegmentation):
    torch.manual_seed(0)
    model = model_class(config).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def theirs():
    return random_model(DetrConfig(**SIZES, **NESTED))


@pytest.fixture(scope="module")
def saved(theirs, tmp_path_factory):
    """The weights as `save_pretrained` writes them, with names that have been the same since version 4."""
    folder = tmp_path_factory.mktemp("saved")
    theirs.save_pretrained(folder)
    return load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())


def write_weights(folder, name, weights, model):
    """A file of that name; or, if it is that of an index, two files and the index."""
    if name == "names of version 5":
        name, weights = "pytorch_model.bin", model.state_dict()
        assert any(".mlp.fc1." in key for key in weights)
    whole = name.removesuffix(".index.json")
    write = save_file if whole.endswith(".safetensors") else torch.save
    if whole == name:
        write(weights, folder / name)
        return
    stem, suffix = whole.rsplit(".", 1)
    places = {key: f"{stem}-0000{1 + i % 2}-of-00002.{suffix}" for i, key in enumerate(weights)}
    for file in set(places.values()):
        write({key: weights[key] for key, place in places.items() if place == file}, folder / file)
    (folder / name).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))


def compare(folder, theirs):
    """Model, processor and pipeline are read from the folder, and compute what theirs computes."""
    model = DetrPanopticForSegmentation.from_pretrained(folder).eval()
    processor = DetrPanopticImageProcessor.from_pretrained(folder)
    assert (processor.size["shortest_edge"], processor.size["longest_edge"]) == (64, 97)
    image = photo((71, 53), seed=0)
    inputs = processor(image, return_tensors="pt")
    with torch.no_grad():
        ours, expected = model(**inputs, mask_queries="all"), theirs(**inputs)
    for name in {"logits", "pred_boxes", "pred_masks"} & expected.keys():
        torch.testing.assert_close(ours[name], expected[name], atol=1e-4, rtol=0)
    segment = DetrPanopticImageSegmentationPipeline.from_pretrained(folder)
    assert type(segment.image_processor) is DetrPanopticImageProcessor
    assert segment(image, subtask="semantic")[0]["mask"].size == image.size
    return model, processor


@pytest.mark.parametrize("version", LAYOUTS)
def test_a_folder_of_every_version(theirs, saved, version, tmp_path):
    backbone, processor, name = LAYOUTS[version]
    weights, config = saved
    others = {key: value for key, value in config.items() if "backbone" not in key and key != "dilation"}
    (tmp_path / "config.json").write_text(json.dumps(others | backbone))
    if processor is None:
        DetrImageProcessor(size=SIDES, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4]).save_pretrained(tmp_path)
    else:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    write_weights(tmp_path, name, weights, theirs)
    model, ours = compare(tmp_path, theirs)
    assert list(ours.image_mean) == [0.4, 0.5, 0.6]
    assert model.config.backbone == "resnet18"
    assert model.name_or_path == model.config.name_or_path == str(tmp_path)  # adapters are saved with it


@pytest.mark.parametrize("model_class", [DetrForSegmentation, DetrForObjectDetection])
def test_the_resnet_of_transformers(model_class, tmp_path):
    sizes = {"embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"}
    stages: Any = {**sizes, "out_features": ["stage1", "stage2", "stage3", "stage4"]}
    nested: Any = {"use_timm_backbone": False, "backbone_config": ResNetConfig(**stages)}
    config = DetrConfig(**nested, **SIZES)
    theirs = random_model(config, model_class)
    theirs.save_pretrained(tmp_path)
    DetrImageProcessor(size=SIDES).save_pretrained(tmp_path)
    model, _ = compare(tmp_path, theirs)
    assert model.config.backbone == "resnet18"


def test_options_of_a_pipeline_reach_the_model(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    DetrImageProcessor(size=SIDES).save_pretrained(tmp_path)
    build = DetrPanopticImageSegmentationPipeline.from_pretrained
    segment = build(tmp_path, dtype=torch.bfloat16, model_kwargs={"attn_implementation": "eager"}, threshold=0.0)
    assert segment.model.dtype == torch.bfloat16
    assert segment.model.config._attn_implementation == "eager"
    assert len(segment(photo((71, 53), seed=0))) > 0
    with pytest.raises(ValueError, match=r"takes the arguments subtask, threshold.*got treshold"):
        build(tmp_path, treshold=0.3)
    with pytest.raises(ValueError, match="got subtasks"):
        segment(photo((71, 53), seed=0), subtasks="semantic")
