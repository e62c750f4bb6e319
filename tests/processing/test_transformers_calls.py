"""Calls of DETR's image processor as its users type them, on ours: COCO's annotations, sizes, padding."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DetrImageProcessor

from detr_panoptic import DetrPanopticImageProcessor
from detr_panoptic.data.records import ids_to_rgb
from tests.conftest import build_tiny, photo

pytestmark = [
    pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning"),  # transformers reads maps so
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # pycocotools 2.0.11
]
SMALL = {"shortest_edge": 40, "longest_edge": 60}
SIZES = [(71, 53), (64, 90)]  # width, height
NAMES = {"class_labels", "boxes", "masks", "area", "iscrowd", "image_id", "size", "orig_size"}


@pytest.fixture
def coco(tmp_path):
    """Images, and their annotations in both of COCO's formats; the maps are in `tmp_path`."""
    images, panoptic, detection = [], [], []
    for i, (width, height) in enumerate(SIZES):
        ids = np.full((height, width), 70_000)
        boxes = {7: (5, 8, 31, 20), 300: (2, 40, 13, 11)}  # x, y, width, height
        for segment_id, (x, y, w, h) in boxes.items():
            ids[y : y + h, x : x + w] = segment_id
        Image.fromarray(ids_to_rgb(ids)).save(tmp_path / f"{i}.png")
        boxes[70_000] = (0, 0, width, height)
        categories = {7: 3, 300: 1, 70_000: 2}
        areas = {segment_id: int((ids == segment_id).sum()) for segment_id in boxes}
        entries = [
            {"id": n, "category_id": categories[n], "bbox": list(box), "area": areas[n], "iscrowd": 0}
            for n, box in boxes.items()
        ]
        images.append(photo((width, height), seed=i))
        panoptic.append({"image_id": i, "file_name": f"{i}.png", "segments_info": entries})
        polygons = [[[x, y, x + w, y, x + w, y + h, x, y + h]] for x, y, w, h in boxes.values()]
        shapes = [{**entry, "segmentation": shape} for entry, shape in zip(entries, polygons, strict=True)]
        detection.append({"image_id": i, "annotations": shapes})
    return images, panoptic, detection


def both(images, annotations, *, kind, **options):
    """The targets that our processor and transformers' make, in pairs."""
    classes: Any = (DetrPanopticImageProcessor, DetrImageProcessor)
    processors = (cls(size=SMALL, format=kind) for cls in classes)
    batches = [p(images=images, annotations=annotations, return_tensors="pt", **options) for p in processors]
    return list(zip(*(batch["labels"] for batch in batches), strict=True))


def test_panoptic_annotations_and_their_folder(coco, tmp_path):
    images, panoptic, _ = coco
    for image, annotation in zip(images, panoptic, strict=True):
        ((ours, theirs),) = both(image, annotation, kind="coco_panoptic", masks_path=tmp_path)
        assert set(ours) == set(theirs) == NAMES
        for name in NAMES:
            assert (ours[name].dtype, ours[name].shape) == (theirs[name].dtype, theirs[name].shape), name
        for name in ("class_labels", "iscrowd", "image_id", "size", "orig_size"):
            assert torch.equal(ours[name], theirs[name]), name
        assert (ours["masks"] != theirs["masks"]).float().mean() < 0.02
        torch.testing.assert_close(ours["area"], theirs["area"], atol=0, rtol=0.06)
        pixel = 1 / min(image.size)
        torch.testing.assert_close(ours["boxes"], theirs["boxes"], atol=2 * pixel, rtol=0)


def test_file_names_stay_in_their_folder(coco, tmp_path):
    images, panoptic, _ = coco
    (tmp_path / "maps").mkdir()
    for name in ("../0.png", "sub/../../0.png", str(tmp_path / "0.png")):
        annotation = {**panoptic[0], "file_name": name}
        with pytest.raises(ValueError, match=r"`file_name` must lie in `masks_path` .*maps, got .*0\.png"):
            DetrPanopticImageProcessor(size=SMALL)(images[0], annotations=annotation, masks_path=tmp_path / "maps")


def test_boxes_of_instances_are_those_of_transformers(coco):
    images, _, detection = coco
    for image, annotation in zip(images, detection, strict=True):
        ((ours, theirs),) = both(image, annotation, kind="coco_detection", return_segmentation_masks=True)
        assert set(ours) == set(theirs) == NAMES
        for name in NAMES - {"masks"}:
            torch.testing.assert_close(ours[name], theirs[name])
        assert ours["masks"].dtype == torch.bool
        assert (ours["masks"] != theirs["masks"]).float().mean() < 0.02


def test_targets_of_a_padded_batch_are_those_of_each_image(coco, tmp_path):
    """Transformers' masks and `size` have the canvas there, and its boxes are relative to it."""
    images, panoptic, detection = coco
    for annotations, kind in ((panoptic, "coco_panoptic"), (detection, "coco_detection")):
        options: Any = {"kind": kind, "masks_path": tmp_path, "return_segmentation_masks": True}
        for place, (ours, theirs) in enumerate(both(images, annotations, **options)):
            ((alone, _),) = both(images[place], annotations[place], **options)
            assert all(torch.equal(ours[name], alone[name]) for name in NAMES)
            assert list(theirs["masks"].shape[1:]) == theirs["size"].tolist() == [56, 53]


def test_masks_on_request(coco, tmp_path):
    images, panoptic, detection = coco
    processor = DetrPanopticImageProcessor(size=SMALL)
    for annotation, options, expected in (
        (panoptic[0], {"masks_path": str(tmp_path)}, True),
        (panoptic[0], {"masks_path": tmp_path, "return_segmentation_masks": False}, False),
        (detection[0], {}, False),
        (detection[0], {"return_segmentation_masks": True}, True),
    ):
        (target,) = processor(images[0], annotation, return_tensors="pt", **options)["labels"]
        assert set(target) == NAMES - (set() if expected else {"masks"})


def test_crowds_are_left_out_of_instances(coco):
    images, _, detection = coco
    crowd = {**detection[0]["annotations"][0], "iscrowd": 1, "segmentation": {"counts": [0, 9], "size": [3, 3]}}
    annotation = {**detection[0], "annotations": [crowd, *detection[0]["annotations"][1:]]}
    processor = DetrPanopticImageProcessor(size=SMALL, category_ids=[2, 1])
    options: Any = {"return_segmentation_masks": True, "return_tensors": "pt"}
    (target,) = processor(images[0], annotations=annotation, **options)["labels"]
    assert target["class_labels"].tolist() == [1, 0]
    assert len(target["masks"]) == len(target["boxes"]) == 2
    (empty,) = processor(images[0], annotations={"image_id": 3, "annotations": []}, **options)["labels"]
    assert {name: len(empty[name]) for name in ("boxes", "masks", "area")} == {"boxes": 0, "masks": 0, "area": 0}


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("coco_panoptic", {}, r"`format` must be 'coco_detection' for annotations of .*got 'coco_panoptic'"),
        ("yolo", {}, r"`format` must be 'coco_detection'.*got 'yolo'"),
        (None, {"image_id": None}, r"Image \?: COCO annotations must have \['image_id'\]"),
        (None, {"bbox": None}, r"Image 0: COCO annotations must have \['area', 'bbox'\]"),
        (None, {"category_id": None}, r"Image 0: segment 7 must have a `label_id` or a `category_id`"),
    ],
)
def test_annotations_of_another_format_are_refused(coco, kind, change, message):
    images, _, detection = coco
    (name,) = change or ["nothing"]
    entries = [{k: v for k, v in entry.items() if k != name} for entry in detection[0]["annotations"]]
    annotation = {k: v for k, v in detection[0].items() if k != name} | {"annotations": entries}
    with pytest.raises(ValueError, match=message):
        DetrPanopticImageProcessor(size=SMALL, format=kind)(images[0], annotations=annotation)


def test_a_number_and_the_longest_edge(tmp_path):
    processor = DetrPanopticImageProcessor(size=30, max_size=50)
    assert dict(processor.size) == {"shortest_edge": 30, "longest_edge": 50}
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert (saved["size"], "max_size" in saved) == ({"shortest_edge": 30, "longest_edge": 50}, False)
    loaded = DetrPanopticImageProcessor.from_pretrained(tmp_path, size=20, max_size=25)
    image = photo((71, 53), seed=0)
    assert loaded(image, return_tensors="pt")["pixel_values"].shape[-2:] == (19, 25)
    assert loaded(image, size=40, max_size=45, return_tensors="pt")["pixel_values"].shape[-2:] == (34, 45)
    assert loaded(photo((90, 20), seed=0), size=400, return_tensors="pt")["pixel_values"].shape[-2:] == (296, 1333)
    with pytest.raises(ValueError, match="`max_size` must come with a `size` of one number"):
        loaded(image, max_size=45)


@pytest.mark.parametrize(
    ("images", "settings", "expected"),
    [
        ([(200, 100)], {"size": {"max_height": 100, "max_width": 100}, "do_pad": False}, (100, 50)),
        ([(200, 100)], {"size": {"max_height": 300, "max_width": 100}, "do_pad": False}, (200, 100)),
        ([(100, 120)], {"size": {"longest_edge": 118, "shortest_edge": 100}, "do_pad": False}, (98, 118)),
        ([(200, 100)], {"size": {"height": 33, "width": 70}}, (33, 70)),
        (
            [(200, 100), (100, 150)],
            {"size": {"max_height": 150, "max_width": 100}, "pad_size": {"height": 150, "width": 101}},
            (150, 101),
        ),
        ([(50, 60), (70, 40)], {"do_resize": False}, (70, 60)),
    ],
)
def test_sizes_are_those_of_transformers(images, settings, expected):
    arrays = [np.random.default_rng(i).integers(256, size=(*size, 3), dtype=np.uint8) for i, size in enumerate(images)]
    every: Any = ({}, {"do_rescale": False}, {"do_normalize": False}, {"do_normalize": False, "do_rescale": False})
    for flags in every:
        ours, theirs = (
            cls(**settings)(arrays, return_tensors="pt", **flags)
            for cls in (DetrPanopticImageProcessor, DetrImageProcessor)
        )
        assert ours["pixel_values"].shape[-2:] == expected
        assert set(ours) == set(theirs)
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=1e-5)


def test_a_fine_tuning_loop_of_a_notebook(coco, tmp_path):
    """A dataset that calls the processor for each image, a collate function that pads, a step of training."""
    images, panoptic, _ = coco
    processor = DetrPanopticImageProcessor(size=64, max_size=96)
    items = []
    for image, annotation in zip(images, panoptic, strict=True):
        encoding = processor(images=image, annotations=annotation, masks_path=tmp_path, return_tensors="pt")
        items.append((encoding["pixel_values"].squeeze(), encoding["labels"][0]))
    batch = processor.pad([pixels for pixels, _ in items], return_tensors="pt")
    labels = [{name: value.to("cpu") for name, value in target.items()} for _, target in items]
    together = processor(images=images, annotations=panoptic, masks_path=tmp_path, return_tensors="pt")
    assert torch.equal(batch["pixel_values"], together["pixel_values"])
    assert torch.equal(batch["pixel_mask"], together["pixel_mask"])
    model = build_tiny(num_labels=4, stuff_label_ids=[2]).train()
    outputs = model(pixel_values=batch["pixel_values"], pixel_mask=batch["pixel_mask"], labels=labels)
    assert {"loss_mask", "loss_dice"} < set(outputs.loss_dict)
    sizes = torch.stack([target["orig_size"] for target in labels])
    results = processor.post_process_panoptic_segmentation(outputs, threshold=0.0, target_sizes=sizes)
    assert [tuple(result["segmentation"].shape) for result in results] == [(h, w) for w, h in SIZES]
