"""Box and mask AP: cases whose numbers are known, and masks as the reference takes them."""

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from torch.nn import functional as F  # noqa: N812  the field's name for it

from detr_panoptic import DetrPanopticForSegmentation, DetrPanopticImageProcessor
from detr_panoptic.data.categories import Categories
from detr_panoptic.evaluation.average_precision import average_precision, true_instances
from detr_panoptic.inference.detections import detect, query_masks
from detr_panoptic.panoptic_merging import ImageSizes
from tests.conftest import photo

CATEGORIES = Categories(("boat", "person", "sea"), (True, True, False), (9, 1, 155))
BOTH = ("box", "mask")
SIZE = (40, 60)


def instance(left, top, width, height, *, label=0, **values):
    mask = np.zeros(SIZE, dtype=np.uint8, order="F")
    mask[top : top + height, left : left + width] = 1
    code = rle.encode(mask)["counts"].decode("ascii")
    return {"label_id": label, "bbox": [left, top, width, height], "counts": code} | values


def truth(*box, label=0, iscrowd=0):
    return instance(*box, label=label, iscrowd=iscrowd, area=box[2] * box[3])


def found(*box, label=0, score=0.9):
    return instance(*box, label=label, score=score)


def precision_of(*images, kinds=BOTH):
    return average_precision([(SIZE, *image) for image in images], CATEGORIES, kinds)


def test_the_truth_detected_is_perfect():
    boxes = [(0, 0, 10, 10), (20, 5, 30, 30)]
    result = precision_of(([truth(*box) for box in boxes], [found(*box) for box in boxes]))
    for kind in BOTH:
        assert result[kind]["ap"] == result[kind]["ap50"] == result[kind]["ap75"] == pytest.approx(1)
        assert result[kind]["per_class"] == [pytest.approx(1), None, None]  # of what does not occur there is none
        assert result[kind]["ap_large"] is None


def test_half_of_the_objects_is_half_of_the_recalls():
    boxes = [(0, 0, 10, 10), (20, 5, 30, 30)]
    result = precision_of(([truth(*box) for box in boxes], [found(*boxes[0])]))
    assert result["box"]["ap"] == result["mask"]["ap"] == pytest.approx(51 / 101)  # recalls 0, 0.01 … 0.5 of 101


def test_a_box_of_iou_0_6_counts_for_three_thresholds_of_ten():
    result = precision_of(([truth(0, 0, 10, 10)], [found(0, 0, 10, 6)]))
    for kind in BOTH:
        assert result[kind]["ap50"] == pytest.approx(1)
        assert result[kind]["ap75"] == 0
        assert result[kind]["ap"] == pytest.approx(0.3)  # 0.5, 0.55 and 0.6


def test_a_more_certain_mistake_costs_precision_and_a_less_certain_one_nothing():
    true, right = [truth(0, 0, 10, 10)], found(0, 0, 10, 10, score=0.5)
    assert precision_of((true, [right, found(30, 20, 9, 9, score=0.4)]))["box"]["ap"] == pytest.approx(1)
    assert precision_of((true, [right, found(30, 20, 9, 9, score=0.6)]))["box"]["ap"] == pytest.approx(0.5)


def test_a_detection_in_a_crowd_is_neither_right_nor_wrong():
    crowd, alone = truth(30, 0, 20, 20, iscrowd=1), truth(0, 0, 10, 10)
    guesses = [found(0, 0, 10, 10, score=0.5), found(32, 2, 6, 6, score=0.9)]
    assert precision_of(([alone, crowd], guesses))["mask"]["ap"] == pytest.approx(1)
    assert precision_of(([alone], guesses))["mask"]["ap"] == pytest.approx(0.5)


def test_a_match_needs_the_same_image_and_the_same_class():
    true, guess = [truth(0, 0, 10, 10)], [found(0, 0, 10, 10)]
    assert precision_of((true, []), ([], guess))["box"]["ap"] == 0
    assert precision_of((true, [found(0, 0, 10, 10, label=1)]))["box"]["ap"] == 0


def test_boxes_and_masks_are_measured_apart():
    half_hidden = found(0, 0, 10, 10) | {"counts": found(0, 0, 10, 4)["counts"]}
    result = precision_of(([truth(0, 0, 10, 10)], [half_hidden]))
    assert (result["box"]["ap"], result["mask"]["ap"]) == (pytest.approx(1), 0)
    assert precision_of(([truth(0, 0, 10, 10)], [half_hidden]), kinds=("box",)).keys() == {"box"}


def test_nothing_to_measure_is_none():
    result = precision_of(([], [found(0, 0, 5, 5)]))
    assert result["box"]["ap"] is None
    assert result["box"]["per_class"] == [None, None, None]


def test_true_instances_are_the_things_of_the_map():
    ids = np.zeros(SIZE, dtype=np.int32)
    ids[5:12, 20:33], ids[30:, :], ids[0, 0] = 70_000, 2, 3
    segments = [
        {"id": 2, "label_id": 2, "iscrowd": 0},
        {"id": 70_000, "label_id": 1, "iscrowd": 0},
        {"id": 3, "label_id": 0, "iscrowd": 1},
        {"id": 4, "label_id": 0, "iscrowd": 0},  # without a pixel
    ]
    person, crowd = true_instances(ids, segments, CATEGORIES.is_thing)
    assert person == truth(20, 5, 13, 7, label=1)
    assert crowd == truth(0, 0, 1, 1, iscrowd=1)


def test_no_thing_at_all():
    assert true_instances(np.ones(SIZE, np.int32), [{"id": 1, "label_id": 2}], CATEGORIES.is_thing) == []


def test_masks_are_the_reference_s():
    """PostProcessSegm of facebookresearch/detr: bilinear, sigmoid above one half, nearest."""
    masks = torch.randn(7, 16, 24, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(masks[None], size=(64, 96), mode="bilinear", align_corners=False).sigmoid() > 0.5
    expected = F.interpolate(expected.float(), size=(83, 127), mode="nearest")[0].bool()
    ours = query_masks(masks, ImageSizes((64, 96), (64, 96), (83, 127)))
    assert torch.equal(ours.permute(2, 0, 1), expected)


def test_masks_in_a_padded_batch_are_those_of_the_image_alone():
    masks = torch.randn(3, 16, 24, generator=torch.Generator().manual_seed(0))
    alone = query_masks(masks[:, :11, :17].contiguous(), ImageSizes((44, 68), (44, 68), (53, 71)))
    assert torch.equal(query_masks(masks, ImageSizes((44, 68), (64, 96), (53, 71))), alone)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools 2.0.11's decode
@torch.no_grad()
def test_detections_are_the_queries(model_folder, monkeypatch):
    monkeypatch.setattr("detr_panoptic.inference.detections.QUERIES_AT_ONCE", 3)
    model = DetrPanopticForSegmentation.from_pretrained(model_folder).eval()
    processor = DetrPanopticImageProcessor.from_pretrained(model_folder)
    outputs = model(**processor([photo((71, 53), seed=0)], return_tensors="pt"), mask_queries="all")
    instances = detect(outputs, 0, (53, 71), with_masks=True)
    (expected,) = processor.post_process_object_detection(outputs, 0.0, target_sizes=[(53, 71)])
    assert len(instances) > 3  # more than are worked on at once
    assert [i["label_id"] for i in instances] == expected["labels"].tolist()
    assert [i["score"] for i in instances] == expected["scores"].tolist()
    corners = torch.tensor([i["bbox"] for i in instances])
    corners[:, 2:] += corners[:, :2]
    torch.testing.assert_close(corners, expected["boxes"])
    sizes = ImageSizes(tuple(outputs.image_sizes[0].tolist()), tuple(outputs.canvas_sizes[0].tolist()), (53, 71))
    masks = query_masks(outputs.pred_masks[0], sizes).numpy()
    decoded = rle.decode([{"size": [53, 71], "counts": i["counts"]} for i in instances])
    assert np.array_equal(decoded.astype(bool), masks)
    without = detect(outputs, 0, (53, 71), with_masks=False)
    assert without == [{key: value for key, value in i.items() if key != "counts"} for i in instances]
