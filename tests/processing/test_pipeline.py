"""The pipeline: silent, batches of any sizes, stuff fused, the processor's thresholds."""

import builtins
import dataclasses
import itertools
import logging
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ImageSegmentationOutputElement
from PIL import Image
from torch.utils.data import Dataset
from transformers import (
    ImageSegmentationPipeline,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    pipeline,
)
from transformers.pipelines import PIPELINE_REGISTRY

from detr_panoptic import DetrPanopticImageProcessor
from detr_panoptic.checkpoints.hooks import register_pipeline
from detr_panoptic.pipeline_detr_panoptic import DetrPanopticImageSegmentationPipeline
from tests.conftest import build_tiny

SIZES = [(50, 70), (59, 62), (50, 70), (77, 46), (40, 40)]


@pytest.fixture(scope="module")
def images():
    """Pictures with a few large areas of color."""
    rng = np.random.default_rng(0)
    small = [Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)) for _ in SIZES]
    return [image.resize(size[::-1]) for image, size in zip(small, SIZES, strict=True)]


@pytest.fixture(scope="module")
def processor():
    settings = {"stuff_label_ids": [1], "threshold": 0.3, "size": {"shortest_edge": 64, "longest_edge": 99}}
    return DetrPanopticImageProcessor(**settings)


@pytest.fixture(scope="module")
def model(images, processor):
    """An untrained model whose queries have, on the first image, wanted classes and confidences."""
    labels: Any = {"id2label": {0: "cat", 1: "sky", 2: "dog"}, "stuff_label_ids": [1]}
    model = build_tiny(num_queries=7, encoder_layers=1, ffn_dim=32, **labels).eval()
    wanted = torch.eye(4)[[0, 1, 2, 1, 2, 0, 3]] * torch.tensor([9, 9, 9, 9, 2, 2, 9])[:, None]
    with torch.no_grad():
        for layer in model.model.decoder.layers:  # queries look at different places, and see something there
            layer.cross_attn.q_proj.weight *= 20
            layer.cross_attn.v_proj.weight *= 20
        model.mask_attention.q_proj.weight *= 20
        model.mask_head.predictor.weight *= 9
        states = model.model(**processor(images[0], return_tensors="pt")).last_hidden_state[0]
        model.class_head.weight.copy_((torch.linalg.pinv(states) @ wanted).T)
        model.class_head.bias.zero_()
    return model


@pytest.fixture(scope="module")
def segment(model, processor):
    return DetrPanopticImageSegmentationPipeline(model=model, image_processor=processor, task="image-segmentation")


@pytest.fixture
def warnings_logged(monkeypatch):
    """What transformers logs from here on, from warnings up."""
    records = []
    handler = logging.Handler(logging.WARNING)
    monkeypatch.setattr(handler, "emit", lambda record: records.append(record.getMessage()))
    logging.getLogger("transformers").addHandler(handler)
    yield records
    logging.getLogger("transformers").removeHandler(handler)


def comparable(segments):
    return [(s["score"], s["label"], np.array(s["mask"]).tolist()) for s in segments]


def test_pipeline_builds_ours_silently(model, processor, images, tmp_path, warnings_logged, monkeypatch):
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("asked whether to trust the code"))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    from_folder = pipeline("image-segmentation", model=str(tmp_path))
    from_objects = pipeline("image-segmentation", model=model, image_processor=processor)
    for built in (from_folder, from_objects):
        assert type(built) is DetrPanopticImageSegmentationPipeline
        assert comparable(built(images[0])) == comparable(from_objects(images[0])) != []
    assert warnings_logged == []


def test_transformers_own_pipeline_agrees_silently(segment, images, warnings_logged):
    stock = ImageSegmentationPipeline(model=segment.model, image_processor=segment.image_processor, task=segment.task)
    thresholds = {"threshold": 0.3, "overlap_mask_area_threshold": 0.8}
    for image in images:
        assert comparable(stock(image, **thresholds)) == comparable(segment(image))
    same = [images[0], images[2], images[0]]
    batched = [comparable(result) for result in stock(same, batch_size=3, **thresholds)]
    assert batched == [comparable(result) for result in segment(same, batch_size=3)]
    assert warnings_logged == []


def test_results_are_what_the_hub_describes(segment, images):
    """With a generator, and a last batch that is not full."""
    described = {field.name for field in dataclasses.fields(ImageSegmentationOutputElement)}
    kinds = {"score": float, "label": str, "mask": Image.Image}
    assert described == kinds.keys()
    results = list(segment((image for image in images * 2), batch_size=4, threshold=0.0))
    assert len(results) == 2 * len(images)
    for found in itertools.chain.from_iterable(results):
        assert {name: type(value) for name, value in found.items()} == kinds


def test_other_models_keep_their_pipeline():
    config = SegformerConfig(depths=[1] * 4, hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8)
    other = pipeline(
        "image-segmentation",
        model=SegformerForSemanticSegmentation(config),
        image_processor=SegformerImageProcessor(),
    )
    assert type(other) is ImageSegmentationPipeline


def test_registering_again_changes_nothing():
    before = PIPELINE_REGISTRY.supported_tasks["image-segmentation"]["impl"]
    register_pipeline()
    assert PIPELINE_REGISTRY.supported_tasks["image-segmentation"]["impl"] is before
    assert issubclass(before, ImageSegmentationPipeline)


@pytest.mark.parametrize("batch_size", [2, 5])
def test_a_batch_of_mixed_sizes_is_one_padded_forward(segment, images, batch_size):
    results = segment(images, batch_size=batch_size)
    for start in range(0, len(images), batch_size):
        some = images[start : start + batch_size]
        with torch.no_grad():
            outputs = segment.model(**segment.image_processor(some, return_tensors="pt"))
        expected = segment.image_processor.post_process_panoptic_segmentation(
            outputs, target_sizes=[(image.height, image.width) for image in some]
        )
        for image, result, merged in zip(some, results[start:], expected, strict=False):
            assert [s["score"] for s in result] == [s["score"] for s in merged["segments_info"]] != []
            for found, info in zip(result, merged["segments_info"], strict=True):
                assert found["mask"].size == image.size
                assert np.array_equal(np.array(found["mask"]) == 255, (merged["segmentation"] == info["id"]).numpy())


def test_a_batch_of_one_size_gives_what_each_image_gives_alone(segment, images):
    same = [images[0], images[2], images[0]]
    for alone, together in zip(segment(same), segment(same, batch_size=3), strict=True):
        assert [s["label"] for s in alone] == [s["label"] for s in together]
        np.testing.assert_allclose([s["score"] for s in alone], [s["score"] for s in together], atol=1e-3)
        maps = [[np.array(s["mask"]) for s in segments] for segments in (alone, together)]
        assert (np.array(maps[0]) == np.array(maps[1])).mean() > 0.99  # rounding may move a border of these wild masks


def test_images_come_in_many_ways(segment, images, tmp_path):
    expected = [comparable(r) for r in segment(images)]
    paths = [str(tmp_path / f"{i}.png") for i in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)

    class Pictures(Dataset):
        def __len__(self):
            return len(images)

        def __getitem__(self, i):
            return images[i]

    assert [comparable(r) for r in segment(paths)] == expected
    assert [comparable(r) for r in segment(image for image in images)] == expected
    assert [comparable(r) for r in segment(Pictures())] == expected
    assert comparable(segment(np.array(images[1]))) == expected[1]
    assert comparable(segment(images[1])) == expected[1]


def test_rotated_photo_gives_upright_masks(segment, images, tmp_path):
    exif = images[0].getexif()
    exif[0x0112] = 6
    images[0].save(tmp_path / "turned.png", exif=exif)
    upright = images[0].transpose(Image.Transpose.ROTATE_270)
    assert comparable(segment(str(tmp_path / "turned.png"))) == comparable(segment(upright))


def test_broken_file_in_a_list_is_named(segment, images, tmp_path):
    images[0].resize((99, 99)).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:300])
    with pytest.raises(ValueError, match=r"half\.png"):
        segment([str(tmp_path / "whole.png"), str(tmp_path / "half.png")], batch_size=2)


def test_stuff_is_fused(segment, images):
    labels = [s["label"] for s in segment(images[0])]
    assert labels.count("sky") == 1  # of two queries
    assert labels.count("cat") + labels.count("dog") > 2


def test_thresholds_default_to_the_processors(model, processor, images):
    own = DetrPanopticImageProcessor.for_model(model.config, size=dict(processor.size), threshold=0.75)
    strict = DetrPanopticImageSegmentationPipeline(model=model, image_processor=own, task="image-segmentation")
    lenient = DetrPanopticImageSegmentationPipeline(model=model, image_processor=processor, task="image-segmentation")
    scores = [s["score"] for s in lenient(images[0])]
    assert min(scores) < 0.75
    assert comparable(strict(images[0])) == comparable(lenient(images[0], threshold=0.75))
    assert comparable(strict(images[0])) != comparable(lenient(images[0]))


def test_subtasks(segment, images):
    panoptic, instance, semantic = (segment(images[0], subtask=name) for name in ("panoptic", "instance", "semantic"))
    assert comparable(panoptic) == comparable(segment(images[0]))
    assert {s["label"] for s in instance} <= {"cat", "dog"}
    assert {s["score"] for s in semantic} == {None}
    covered = np.sum([np.array(s["mask"]).astype(int) for s in semantic], axis=0)
    assert (covered == 255).all()
    with pytest.raises(ValueError, match="`subtask` must be panoptic"):
        segment(images[0], subtask="parts")


def test_nothing_found_is_an_empty_list(segment, images):
    assert segment(images, threshold=1.0, batch_size=2) == [[]] * len(images)


def test_stuff_is_the_models_and_images_may_be_named(model, processor, images):
    """An image processor may be older than the model's labels; transformers calls the argument `images`, too."""
    older = DetrPanopticImageProcessor.from_dict(processor.to_dict() | {"stuff_label_ids": [0, 2]})
    pipes: Any = [pipeline("image-segmentation", model=model, image_processor=each) for each in (processor, older)]
    expected, found = ([(s["label"], s["score"]) for s in segment(images=images[0])] for segment in pipes)
    assert found == expected
    assert len(expected) > 1
