"""Results as `supervision` reads them."""

import numpy as np
import pytest
import torch

from detr_panoptic import DetrPanopticImageProcessor

from ..conftest import build_tiny

pytestmark = pytest.mark.filterwarnings("ignore:OpenCV:UserWarning")  # a hint about speed

NAMES = {0: "boat", 1: "person", 2: "sky"}
SIZE = (53, 71)


@pytest.fixture(scope="module")
def outputs():
    """Of a tiny model whose random queries disagree."""
    torch.manual_seed(3)
    model = build_tiny(num_queries=13, id2label=NAMES, label2id={name: i for i, name in NAMES.items()}).eval()
    processor = DetrPanopticImageProcessor.for_model(model.config, size={"shortest_edge": 64, "longest_edge": 97})
    image = torch.nn.functional.interpolate(torch.rand(1, 3, 5, 7), SIZE, mode="bicubic")[0].clamp(0, 1)
    inputs = processor((255 * image).byte(), return_tensors="pt")
    with torch.no_grad():
        model.model.query_embeddings.weight.mul_(30)
        model.class_head.weight.mul_(100)
        model.mask_head.predictor.weight.mul_(400)
        embeddings = model.model(**inputs).last_hidden_state[0]
        model.class_head.bias.copy_(-model.class_head.weight @ embeddings.mean(0))
        return model(**inputs, mask_queries="all"), processor


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_segments(outputs, task):
    import supervision as sv

    outputs, processor = outputs
    post_process = getattr(processor, f"post_process_{task}_segmentation")
    (result,) = post_process(outputs, 0.3, target_sizes=[SIZE], overlap_mask_area_threshold=0.0)
    detections = sv.Detections.from_transformers(result, id2label=NAMES)
    assert len(detections) == len(result["segments_info"]) >= 2
    for i, segment in enumerate(result["segments_info"]):
        assert np.array_equal(detections.mask[i], result["segmentation"].numpy() == segment["id"])
        assert detections.mask[i].sum() == segment["area"]
        assert detections.class_id[i] == segment["label_id"]
        assert detections.confidence[i] == segment["score"]
        assert detections.data["class_name"][i] == NAMES[segment["label_id"]]


def test_boxes(outputs):
    import supervision as sv

    outputs, processor = outputs
    (result,) = processor.post_process_object_detection(outputs, 0.3, target_sizes=[SIZE])
    detections = sv.Detections.from_transformers(result, id2label=NAMES)
    assert len(detections) >= 2
    assert np.array_equal(detections.xyxy, result["boxes"].numpy())
    assert np.array_equal(detections.class_id, result["labels"].numpy())
    assert np.array_equal(detections.confidence, result["scores"].numpy())
    assert (detections.xyxy[:, 2] > 1).any()  # pixels


def test_labels_per_pixel(outputs):
    import supervision as sv

    outputs, processor = outputs
    (label_map,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[SIZE])
    detections = sv.Detections.from_transformers(label_map, id2label=NAMES)
    assert sorted(detections.class_id) == sorted(label_map.unique().tolist())
    for mask, label in zip(detections.mask, detections.class_id, strict=True):
        assert np.array_equal(mask, label_map.numpy() == label)


def test_nothing_found(outputs):
    import supervision as sv

    outputs, processor = outputs
    (result,) = processor.post_process_panoptic_segmentation(outputs, 1.0, target_sizes=[SIZE])
    detections = sv.Detections.from_transformers(result, id2label=NAMES)
    assert len(detections) == 0
    assert detections.mask.shape == (0, *SIZE)
