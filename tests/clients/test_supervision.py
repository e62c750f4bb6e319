"""Results as `supervision` reads them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from detr_panoptic import DetrPanopticImageProcessor, Predictor
from tests.conftest import build_tiny, photo

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


@pytest.fixture(scope="module")
def predictor(model_folder):
    return Predictor.from_pretrained(model_folder, device="cpu")


@pytest.fixture(scope="module")
def image():
    return photo((71, 53), seed=0)


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_a_prediction_is_what_supervision_makes_of_the_same_outputs(predictor, image, task):
    import supervision as sv

    prediction = predictor(image, task=task)
    ours = prediction.to_supervision()
    raw = {"segmentation": torch.from_numpy(prediction.segmentation), "segments_info": prediction.segments_info}
    names = predictor.categories.id2label
    theirs = sv.Detections.from_transformers(transformers_results=raw, id2label=names)
    assert len(ours) == len(theirs) >= 1
    assert np.array_equal(ours.mask, theirs.mask)
    assert np.array_equal(ours.class_id, theirs.class_id)
    assert list(ours.data["class_name"]) == list(theirs.data["class_name"])
    assert np.abs(ours.xyxy - theirs.xyxy).max() <= 1  # supervision's boxes end on the last pixel, ours after it
    if task == "semantic":
        assert ours.confidence is None  # NaN would be below every threshold
    else:
        np.testing.assert_allclose(ours.confidence, theirs.confidence, atol=1e-6)


def test_annotators_filters_and_writers(predictor, image, tmp_path):
    import supervision as sv

    found = predictor(image).to_supervision()
    drawn = sv.MaskAnnotator().annotate(image.copy(), found)
    drawn = sv.LabelAnnotator().annotate(sv.BoxAnnotator().annotate(drawn, found), found)
    assert drawn.size == image.size
    assert not np.array_equal(np.array(drawn), np.array(image))
    sure = found[found.confidence > np.median(found.confidence)]
    assert 0 < len(sure) < len(found)
    nothing = predictor(image, threshold=1.0).to_supervision()
    assert nothing.mask.shape == (0, 53, 71)
    assert len(sv.Detections.merge([found, nothing, sure])) == len(found) + len(sure)
    image.save(tmp_path / "photo.png")
    path = str(tmp_path / "photo.png")
    classes = list(predictor.categories.names)
    dataset = sv.DetectionDataset(classes=classes, images=[path], annotations={path: found})
    dataset.as_coco(images_directory_path=str(tmp_path / "out"), annotations_path=str(tmp_path / "coco.json"))
    assert len(json.loads((tmp_path / "coco.json").read_text())["annotations"]) >= len(found)


def test_a_slicer_calls_the_predictor_with_arrays(predictor):
    import supervision as sv

    image = np.array(photo((130, 96), seed=1))
    slicer = sv.InferenceSlicer(lambda tile: predictor(tile).to_supervision(), slice_wh=(80, 80), overlap_wh=(10, 10))
    assert len(slicer(image)) >= 2
    assert np.array_equal(predictor(image).segmentation, predictor(Image.fromarray(image)).segmentation)
    with pytest.raises(TypeError, match="arrays of uint8, got an array of float64"):
        predictor(image / 255)
