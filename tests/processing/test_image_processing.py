"""The image processor: any image in, targets that agree with their maps, batches that agree with single images."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import DetrImageProcessor

from detr_panoptic.configuration_detr_panoptic import DetrPanopticConfig
from detr_panoptic.data.lazy_records import upright_size
from detr_panoptic.data.records import ids_to_rgb
from detr_panoptic.image_processing_detr_panoptic import DetrPanopticImageProcessor
from detr_panoptic.inference.pictures import open_pictures

SMALL = {"shortest_edge": 40, "longest_edge": 60}
RAMP = np.linspace(0, 255, 7 * 11).round().astype(np.uint8).reshape(7, 11)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def untouched():
    """A processor that neither resizes nor changes values."""
    return DetrPanopticImageProcessor(do_resize=False, do_rescale=False, do_normalize=False)


def pixels_of(image, **settings):
    return untouched()(image, return_tensors="pt", **settings)["pixel_values"][0]


# Images


def test_inputs_are_those_of_transformers():
    images = [Image.fromarray(noise(50, 70)), Image.fromarray(noise(71, 31, seed=1))]
    ours = DetrPanopticImageProcessor(size=SMALL)(images, return_tensors="pt")
    theirs = DetrImageProcessor(size=SMALL)(images, return_tensors="pt")
    assert list(ours) == ["pixel_values", "pixel_mask"]
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
    assert torch.equal(ours["pixel_mask"], theirs["pixel_mask"])


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "I;16", "I;16B", "I"])
def test_every_mode_shows_the_same_picture(mode):
    if mode.startswith("I"):
        values = RAMP.astype({"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]) * 257
        image = Image.frombytes(mode, (11, 7), values.astype(values.dtype.newbyteorder(">" if "B" in mode else "<")))
    else:
        image = Image.fromarray(RAMP).convert("L" if mode == "P" else "RGB").convert(mode)
    assert image.mode == mode
    pixels = pixels_of(image)
    assert pixels.shape == (3, 7, 11)
    rounding = 2 if mode in ("YCbCr", "HSV") else 0
    assert (pixels.int() - torch.from_numpy(RAMP).int()).abs().max() <= rounding


def test_bilevel_and_transparent_palette_pictures():
    bilevel = Image.fromarray(RAMP > 100)
    assert torch.equal(pixels_of(bilevel)[0] == 255, torch.from_numpy(RAMP > 100))
    palette = Image.fromarray(noise(5, 7)).quantize(4)
    palette.info["transparency"] = bytes([0, 255, 255, 255])
    assert torch.equal(
        pixels_of(palette), torch.from_numpy(np.array(palette.convert("RGBA"))[..., :3]).permute(2, 0, 1)
    )


def test_rotation_tag_is_applied(tmp_path):
    image = Image.fromarray(noise(5, 7))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    upright = pixels_of(image.transpose(Image.Transpose.ROTATE_270))
    assert upright.shape == (3, 7, 5)
    assert torch.equal(pixels_of(str(tmp_path / "turned.png")), upright)
    with Image.open(tmp_path / "turned.png") as turned:
        assert torch.equal(pixels_of(turned), upright)


def test_damaged_tags_are_no_reason_to_refuse_an_image(tmp_path):
    image = Image.fromarray(noise(5, 7))
    image.save(tmp_path / "damaged.png", exif=b"garbage!garbage")
    assert torch.equal(pixels_of(str(tmp_path / "damaged.png")), pixels_of(image))
    assert open_pictures(tmp_path / "damaged.png")[0]["image"].size == image.size
    assert upright_size({"path": str(tmp_path / "damaged.png"), "bytes": None}) == image.size


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a,
        lambda a: a.transpose(2, 0, 1),
        lambda a: a[:, ::-1][:, ::-1],
        lambda a: a.astype(np.float32),
        lambda a: a.astype(np.int64),
        lambda a: a.astype(np.uint16) * 257,
        lambda a: np.concatenate([a, a[..., :1]], axis=-1),
        lambda a: torch.from_numpy(a).permute(2, 0, 1),
        lambda a: torch.from_numpy(a),
        lambda a: [a],
        lambda a: a[None],
    ],
    ids=["HWC", "CHW", "strided", "float", "int64", "uint16", "RGBA", "tensor_CHW", "tensor_HWC", "list", "batch"],
)
def test_arrays_and_tensors_show_the_same_picture(change):
    array = noise(5, 7)
    assert torch.equal(pixels_of(change(array)).float(), pixels_of(Image.fromarray(array)).float())


def test_gray_and_boolean_arrays():
    assert torch.equal(pixels_of(RAMP), torch.from_numpy(RAMP).expand(3, -1, -1))
    assert torch.equal(pixels_of(RAMP[..., None]), pixels_of(RAMP))
    assert pixels_of(RAMP > 100).unique().tolist() == [0, 255]


def test_ambiguous_channels():
    array = noise(3, 7)[:, :3]  # (3, 3, 3)
    assert torch.equal(pixels_of(array), torch.from_numpy(array).permute(2, 0, 1))
    assert torch.equal(pixels_of(torch.from_numpy(array)), torch.from_numpy(array))
    assert torch.equal(pixels_of(array, input_data_format="channels_first"), torch.from_numpy(array))


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)])
def test_tiny_and_thin_images(size):
    batch = DetrPanopticImageProcessor(size=SMALL)(noise(*size), return_tensors="pt")
    expected = {(1, 1): (40, 40), (1, 500): (1, 60), (500, 1): (60, 1)}[size]
    assert batch["pixel_values"].shape == (1, 3, *expected)
    assert batch["pixel_values"].isfinite().all()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((5, 7, 2), np.uint8), r"1, 3 or 4 channels.*\(5, 7, 2\)"),
        (np.zeros((0, 7, 3), np.uint8), r"\(0, 7, 3\)"),
        (np.full((5, 7, 3), 300), "from 0 to 255, got 300 to 300"),
        (7, "got int"),
        ([], "at least one image"),
    ],
)
def test_invalid_images_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        untouched()(image)


def test_broken_file_is_named(tmp_path):
    Image.fromarray(noise(50, 70)).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"half\.png"):
        untouched()([tmp_path / "whole.png", tmp_path / "half.png"])


def test_fixed_canvas_and_no_padding():
    processor = untouched()
    batch = processor([noise(5, 7), noise(3, 2)], pad_size={"height": 11, "width": 13}, return_tensors="pt")
    assert batch["pixel_values"].shape == (2, 3, 11, 13)
    assert batch["pixel_mask"].sum((1, 2)).tolist() == [35, 6]
    with pytest.raises(ValueError, match=r"`do_pad` must be True.*\[\(5, 7\), \(3, 2\)\]"):
        processor([noise(5, 7), noise(3, 2)], do_pad=False)
    assert list(processor([noise(5, 7)], do_pad=False)) == ["pixel_values"]


# Annotations

IDS = np.array([[0, 7, 7, 7, 0], [0, 7, 7, 7, 9000], [300, 300, 300, 300, 9000]])
SEGMENTS = [{"id": 300, "label_id": 2}, {"id": 9000, "label_id": 0, "iscrowd": 1}, {"id": 7, "label_id": 2}]


def annotation(**changes):
    return {"image_id": 5, "segmentation": IDS, "segments_info": SEGMENTS} | changes


def target_of(processor=None, image=None, **changes):
    processor = processor or untouched()
    image = np.zeros((*IDS.shape, 3), np.uint8) if image is None else image
    return processor(image, annotations=annotation(**changes), return_tensors="pt")["labels"][0]


def test_targets_by_hand():
    target = target_of()
    assert target["class_labels"].tolist() == [2, 0, 2]
    assert target["iscrowd"].tolist() == [0, 1, 0]
    assert target["area"].tolist() == [4, 2, 6]
    assert [target[name].tolist() for name in ("image_id", "size", "orig_size")] == [[5], [3, 5], [3, 5]]
    for mask, segment in zip(target["masks"], SEGMENTS, strict=True):
        assert torch.equal(mask, torch.from_numpy(segment["id"] == IDS))
    expected = [[2 / 5, 2.5 / 3, 4 / 5, 1 / 3], [4.5 / 5, 2 / 3, 1 / 5, 2 / 3], [2.5 / 5, 1 / 3, 3 / 5, 2 / 3]]
    torch.testing.assert_close(target["boxes"], torch.tensor(expected))


@pytest.mark.parametrize(
    "segmentation",
    [
        IDS.astype(np.int32),
        IDS.astype(np.uint16),
        torch.from_numpy(IDS),
        ids_to_rgb(IDS),
        Image.fromarray(ids_to_rgb(IDS)),
        Image.fromarray(IDS.astype(np.int32)),
    ],
    ids=["int32", "uint16", "tensor", "colors", "picture", "32_bit_picture"],
)
def test_maps_come_in_memory_in_any_form(segmentation):
    expected, target = target_of(), target_of(segmentation=segmentation)
    assert all(torch.equal(expected[key], target[key]) for key in expected)


def test_category_ids_become_labels():
    segments = [{"id": 300, "category_id": 90}, {"id": 9000, "category_id": 11}, {"id": 7, "category_id": 90}]
    processor = DetrPanopticImageProcessor(do_resize=False, category_ids=[11, 40, 90])
    assert target_of(processor, segments_info=segments)["class_labels"].tolist() == [2, 0, 2]
    assert target_of(segments_info=segments)["class_labels"].tolist() == [90, 11, 90]


def test_resized_targets_follow_the_image():
    # Each segment has its own gray, so the resized image itself says where it belongs.
    ids = np.kron(IDS, np.ones((4, 4), np.int64))
    image = np.stack([np.vectorize({0: 0, 7: 80, 300: 160, 9000: 240}.get)(ids)] * 3, axis=-1).astype(np.uint8)
    processor = DetrPanopticImageProcessor(
        size={"shortest_edge": 35, "longest_edge": 99}, do_rescale=False, do_normalize=False, resample=0
    )
    batch = processor(image, annotations=annotation(segmentation=ids), return_tensors="pt")
    target, pixels = batch["labels"][0], batch["pixel_values"][0, 0]
    assert target["size"].tolist() == list(pixels.shape) == [35, 58]
    assert target["orig_size"].tolist() == [12, 20]
    for mask, gray in zip(target["masks"], (160, 240, 80), strict=True):
        assert torch.equal(mask, pixels == gray)


def test_vanished_segments_are_dropped():
    ids = np.ones((40, 40), np.int64)
    ids[3, 5] = 2
    segments = [{"id": 2, "label_id": 0}, {"id": 1, "label_id": 1, "iscrowd": 1}]
    processor = DetrPanopticImageProcessor(size={"shortest_edge": 4, "longest_edge": 4})
    target = target_of(processor, np.zeros((40, 40, 3), np.uint8), segmentation=ids, segments_info=segments)
    assert [target[key].tolist() for key in ("class_labels", "iscrowd", "area")] == [[1], [1], [16]]
    assert target["boxes"].tolist() == [[0.5, 0.5, 1, 1]]


def test_image_without_objects():
    target, full = target_of(segmentation=np.zeros_like(IDS), segments_info=[]), target_of()
    assert {key: value.dtype for key, value in target.items()} == {key: value.dtype for key, value in full.items()}
    shapes = {key: tuple(target[key].shape) for key in ("class_labels", "boxes", "masks", "iscrowd", "area")}
    assert shapes == {"class_labels": (0,), "boxes": (0, 4), "masks": (0, 3, 5), "iscrowd": (0,), "area": (0,)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segments_info": SEGMENTS[:2]}, r"Image 5: segment ids \[7\] must have an entry"),
        ({"segments_info": [*SEGMENTS, {"id": 8, "label_id": 0}]}, r"Image 5: segment ids \[8\] must have pixels"),
        ({"segments_info": [*SEGMENTS, SEGMENTS[0]]}, r"Image 5: .* once .*got \[300\]"),
        ({"segments_info": [*SEGMENTS, {"id": 0, "label_id": 0}]}, r"Image 5: .* not 0, got \[0\]"),
        ({"segmentation": IDS.T}, r"Image 5: .* the image's size \(3, 5\), got \(5, 3\)"),
        ({"segmentation": IDS.astype(float)}, "Image 5: .* map of integers.* float64"),
        ({"segmentation": Image.fromarray(ids_to_rgb(IDS)).convert("P")}, "Image 5: .* got mode P"),
        (
            {"segments_info": [*SEGMENTS[:2], {"id": 7, "label_id": -1}]},
            "Image 5: segment 7 .* `label_id` from 0, got -1",
        ),
        (
            {"segments_info": [*SEGMENTS[:2], {"id": 7}]},
            "Image 5: segment 7 must have a `label_id` or a `category_id`",
        ),
    ],
)
def test_annotations_that_disagree_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        target_of(**changes)


def test_labels_that_do_not_exist_are_refused():
    processor = DetrPanopticImageProcessor(do_resize=False, category_ids=[11, 40, 90])
    with pytest.raises(ValueError, match=r"segment 7 must have a `label_id` from 0 to 2, got 3"):
        target_of(processor, segments_info=[*SEGMENTS[:2], {"id": 7, "label_id": 3}])
    with pytest.raises(ValueError, match=r"segment 7 must have a `category_id` out of \[11, 40, 90\], got 12"):
        target_of(processor, segments_info=[*SEGMENTS[:2], {"id": 7, "category_id": 12}])


def test_annotations_are_one_per_image_and_complete():
    with pytest.raises(ValueError, match="got 1 for 2 images"):
        untouched()([noise(3, 5), noise(3, 5)], annotations=[annotation()])
    with pytest.raises(ValueError, match=r"with `masks_path`\), got \['file_name', 'image_id'\]"):
        untouched()(noise(3, 5), annotations={"image_id": 5, "file_name": "5.png"})


def test_datasets_transform_on_the_fly():
    rows = Dataset.from_dict({"seed": [0, 1]})

    def transform(examples):
        images = [noise(3, 5, seed) for seed in examples["seed"]]
        return untouched()(images, annotations=[annotation()] * len(images), return_tensors="pt")

    row = rows.with_transform(transform)[1]
    assert torch.equal(row["pixel_values"], torch.from_numpy(noise(3, 5, seed=1)).permute(2, 0, 1))
    assert row["labels"]["boxes"].shape == (3, 4)


# Outputs

NUM_LABELS = 3
SIZES = [(24, 52), (45, 30)]  # the second is neither as wide as the canvas nor a multiple of the stride
CANVAS = (45, 52)
TARGETS = [(48, 104), (31, 17)]
METHODS = ("panoptic", "instance", "semantic")


def outputs_alone(seed):
    """Random outputs for one image: large blobs, confident and different classes."""
    g = torch.Generator().manual_seed(seed)
    height, width = (-(-n // 4) for n in SIZES[seed])
    blobs = torch.nn.functional.interpolate(torch.randn(1, 6, 3, 3, generator=g) * 9, (height, width), mode="bilinear")
    logits = torch.eye(NUM_LABELS + 1)[[0, 1, 2, 0, 1, 2]][None] * 9 + torch.randn(1, 6, NUM_LABELS + 1, generator=g)
    return SimpleNamespace(
        logits=logits,
        pred_masks=blobs - blobs.topk(2, dim=1).values.mean(1, keepdim=True),  # positive for one query per pixel
        pred_boxes=torch.rand(1, 6, 4, generator=g),
        image_sizes=torch.tensor([SIZES[seed]]),
        canvas_sizes=torch.tensor([SIZES[seed]]),
    )


def outputs_padded():
    """The same two images in one padded batch, with the opposite prediction in the padding."""
    alone = [outputs_alone(seed) for seed in range(2)]
    masks = torch.empty(2, 6, -(-CANVAS[0] // 4), -(-CANVAS[1] // 4))
    for padded, output in zip(masks, alone, strict=True):
        height, width = output.pred_masks.shape[-2:]
        padded[:] = -output.pred_masks.mean((0, 2, 3))[:, None, None] * 99
        padded[:, :height, :width] = output.pred_masks[0]
    batch = {
        key: torch.cat([getattr(output, key) for output in alone]) for key in ("logits", "pred_boxes", "image_sizes")
    }
    canvas_sizes = [CANVAS] * 2  # not a tensor, as from a program that runs an exported graph
    return SimpleNamespace(**batch, pred_masks=masks, canvas_sizes=canvas_sizes)


def post_process(processor, task, outputs, **kwargs):
    results = getattr(processor, f"post_process_{task}_segmentation")(outputs, **kwargs)
    return [r if isinstance(r, dict) else {"segmentation": r, "segments_info": []} for r in results]


@pytest.mark.parametrize("merging", ["paper", "score_weighted"])
@pytest.mark.parametrize("task", METHODS)
@pytest.mark.parametrize("targets", [None, TARGETS, torch.tensor(TARGETS)], ids=["processed", "list", "tensor"])
def test_a_batch_gives_what_each_image_gives_alone(task, merging, targets):
    processor = DetrPanopticImageProcessor(merging=merging, threshold=0.5, stuff_label_ids=[1])
    batched = post_process(processor, task, outputs_padded(), target_sizes=targets)
    for i, together in enumerate(batched):
        size = None if targets is None else targets[i : i + 1]
        (alone,) = post_process(processor, task, outputs_alone(i), target_sizes=size)
        assert alone["segmentation"].shape == (SIZES[i] if targets is None else TARGETS[i])
        assert torch.equal(alone["segmentation"], together["segmentation"])
        assert alone["segments_info"] == together["segments_info"]
        assert alone["segmentation"].unique().numel() > 1


def one_segment_per_half(labels, size=(96, 40)):
    """An image of two halves, top and bottom, in the upper part of a canvas twice as high."""
    masks = torch.full((1, 2, size[0] // 2, size[1] // 4), -9.0)
    masks[0, 0, : size[0] // 8] = 9
    masks[0, 1, size[0] // 8 : size[0] // 4] = 9
    logits = torch.full((1, 2, NUM_LABELS + 1), -9.0)
    logits[0, [0, 1], labels] = 9
    return SimpleNamespace(logits=logits, pred_masks=masks, image_sizes=torch.tensor([size]))


def test_a_border_stays_where_it_is():
    result = DetrPanopticImageProcessor().post_process_panoptic_segmentation(one_segment_per_half([0, 2]))[0]
    assert result["segmentation"].shape == (96, 40)
    assert (result["segmentation"][:48] == 1).all()
    assert (result["segmentation"][48:] == 2).all()


def test_sizes_that_outputs_do_not_say():
    outputs = one_segment_per_half([0, 2])
    del outputs.image_sizes
    processor = DetrPanopticImageProcessor()
    assert processor.post_process_panoptic_segmentation(outputs)[0]["segmentation"].shape == (192, 40)
    outputs.image_sizes = [(96, 40)]
    (result,) = processor.post_process_panoptic_segmentation(outputs)
    assert torch.equal(result["segmentation"][:, 0], torch.arange(96).div(48, rounding_mode="floor").int() + 1)


@pytest.mark.parametrize("merging", ["paper", "score_weighted"])
def test_stuff_is_fused_by_default(merging):
    processor = DetrPanopticImageProcessor(merging=merging, stuff_label_ids=[1])
    outputs = one_segment_per_half([1, 1])
    (fused,) = processor.post_process_panoptic_segmentation(outputs)[0]["segments_info"]
    assert (fused["label_id"], fused["area"], fused["was_fused"]) == (1, 96 * 40, True)
    apart = processor.post_process_panoptic_segmentation(outputs, label_ids_to_fuse=set())[0]["segments_info"]
    assert [segment["was_fused"] for segment in apart] == [False, False]
    assert processor.post_process_instance_segmentation(outputs)[0]["segments_info"] == []  # stuff is no instance


@pytest.mark.parametrize("merging", ["paper", "score_weighted"])
@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_nothing_found_is_a_map_like_others(task, merging):
    outputs = outputs_alone(0)
    outputs.logits[..., -1] = 99
    processor = DetrPanopticImageProcessor(merging=merging)
    (empty,) = post_process(processor, task, outputs, target_sizes=[(5, 7)])
    (other,) = post_process(processor, task, outputs_alone(0), target_sizes=[(5, 7)])
    assert torch.equal(empty["segmentation"], torch.zeros(5, 7, dtype=torch.int32))
    assert empty["segments_info"] == []
    assert other["segmentation"].dtype == torch.int32


def test_thresholds_default_to_the_processors():
    outputs = one_segment_per_half([0, 2])
    outputs.logits[0, 1] = torch.tensor([0.0, 0.0, 2.0, 0.0])  # confidence 0.71

    def labels(task="panoptic", *, own, **call):
        result = post_process(DetrPanopticImageProcessor(merging="score_weighted", **own), task, outputs, **call)
        return [segment["label_id"] for segment in result[0]["segments_info"]]

    for task in ("panoptic", "instance"):
        assert labels(task, own={}) == [0]
        assert labels(task, own={"threshold": 0.7}) == labels(task, own={}, threshold=0.7) == [0, 2]
        assert labels(task, own={"threshold": 0.0}, threshold=0.99) == [0]
        assert labels(task, own={"mask_threshold": 1.0}) == labels(task, own={}, mask_threshold=1.0) == []
    outputs.pred_masks[0, 1, :12] = 9  # the second query would have all of the image, and gets the lower half
    for task in ("panoptic", "instance"):
        assert labels(task, own={"threshold": 0.7}) == [0]
        lenient = {"overlap_mask_area_threshold": 0.4}
        assert (
            labels(task, own={"threshold": 0.7} | lenient) == labels(task, own={"threshold": 0.7}, **lenient) == [0, 2]
        )
    boxes = outputs_alone(0)
    boxes.logits /= 4
    scores = boxes.logits.softmax(-1)[..., :-1].amax(-1)
    for own in (0.0, float(scores.median())):
        (found,) = DetrPanopticImageProcessor(threshold=own).post_process_object_detection(boxes)
        assert len(found["scores"]) == (scores > own).sum()


def test_the_whole_images_box_comes_back_whole():
    # In a padded batch transformers scales targets to the canvas and reads predictions as relative to the image.
    sizes = [(48, 64), (24, 31)]
    ids = [np.ones(size, np.int64) for size in sizes]
    ids[1][3:11, 5:20] = 2
    annotations = [
        {"image_id": i, "segmentation": m, "segments_info": [{"id": int(k), "label_id": 0} for k in np.unique(m)]}
        for i, m in enumerate(ids)
    ]
    processor = DetrPanopticImageProcessor(size={"shortest_edge": 24, "longest_edge": 99})
    images = [np.zeros((*size, 3), np.uint8) for size in (sizes[0], sizes[1])]
    batch = processor(images, annotations=annotations, return_tensors="pt")
    assert batch["pixel_values"].shape[-2:] == (24, 32)
    logits = torch.tensor([9.0, -9.0]).expand(1, 2, 2)
    expected = [[[0, 0, 64, 48]], [[0, 0, 31, 24], [5, 3, 20, 11]]]
    for target, size, boxes in zip(batch["labels"], sizes, expected, strict=True):
        outputs = SimpleNamespace(logits=logits[:, : len(boxes)], pred_boxes=target["boxes"][None])
        (found,) = processor.post_process_object_detection(outputs, target_sizes=[size])
        torch.testing.assert_close(found["boxes"], torch.tensor(boxes).float())
        (relative,) = processor.post_process_object_detection(outputs)
        torch.testing.assert_close(relative["boxes"][0], torch.tensor([0.0, 0, 1, 1]))


def test_semantic_scores_explain_the_map():
    outputs = outputs_padded()
    processor = DetrPanopticImageProcessor()
    results: Any = processor.post_process_semantic_segmentation(outputs, TARGETS, return_segmentation_scores=True)
    maps: Any = processor.post_process_semantic_segmentation(outputs, TARGETS)
    for result, labels, size in zip(results, maps, TARGETS, strict=True):
        assert result["segmentation_scores"].shape == (NUM_LABELS, *size)
        assert torch.equal(result["segmentation_scores"].argmax(0), labels)
        assert torch.equal(result["segmentation"], labels)


def test_run_length_codes_of_instances():
    processor = DetrPanopticImageProcessor()
    (result,) = processor.post_process_instance_segmentation(one_segment_per_half([0, 2]), return_coco_annotation=True)
    assert result["segmentation"] == [[1, 48 * 40], [48 * 40 + 1, 48 * 40]]


def test_wrong_sizes_and_thresholds_are_refused():
    processor = DetrPanopticImageProcessor()
    with pytest.raises(ValueError, match=r"`target_sizes` must be .* each of the 2 images"):
        processor.post_process_panoptic_segmentation(outputs_padded(), target_sizes=[(5, 7)])
    with pytest.raises(ValueError, match=r"`threshold` must be a number from 0 to 1, got 85"):
        processor.post_process_panoptic_segmentation(outputs_padded(), threshold=85)


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"merging": "weighted"}, "`merging` must be one of .*paper.*, got 'weighted'"),
        ({"threshold": 1.5}, "`threshold` must be a number from 0 to 1, got 1.5"),
        ({"mask_threshold": -0.1}, "`mask_threshold`"),
        ({"overlap_mask_area_threshold": "0.8"}, "`overlap_mask_area_threshold`"),
        ({"stuff_label_ids": [1, 1]}, r"`stuff_label_ids` must be distinct whole numbers from 0, got \[1, 1\]"),
        ({"category_ids": [-1]}, "`category_ids`"),
        ({"category_ids": [4, 5], "stuff_label_ids": [2]}, r"`stuff_label_ids` must be labels from 0 to 1.*\[2\]"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DetrPanopticImageProcessor(**settings)


def test_saved_and_loaded_again(tmp_path):
    settings = {
        "stuff_label_ids": [1, 2],
        "category_ids": [11, 40, 90],
        "merging": "score_weighted",
        "threshold": 0.0,
        "mask_threshold": 0.25,
        "overlap_mask_area_threshold": 0.0,
        "size": SMALL,
        "do_normalize": False,
    }
    DetrPanopticImageProcessor(**settings).save_pretrained(tmp_path)
    loaded = DetrPanopticImageProcessor.from_pretrained(tmp_path)
    assert {key: getattr(loaded, key) for key in settings if key != "size"} | {"size": dict(loaded.size)} == settings
    assert DetrPanopticImageProcessor().stuff_label_ids == []  # instances share nothing


def test_settings_of_a_model():
    names = {0: "boat", 1: "sky", 2: "dog"}
    config = DetrPanopticConfig(id2label=names, stuff_label_ids=[1], category_ids=[4, 7, 9], threshold=0.7)
    processor = DetrPanopticImageProcessor.for_model(config, threshold=0.6, size=SMALL)
    assert (processor.stuff_label_ids, processor.category_ids, processor.threshold) == ([1], [4, 7, 9], 0.6)
    assert DetrPanopticImageProcessor.for_model(config).threshold == 0.7


@pytest.mark.parametrize(
    "theirs",
    [
        {"feature_extractor_type": "DetrFeatureExtractor", "format": "coco_panoptic", "size": 40, "max_size": 60},
        {"image_processor_type": "DetrImageProcessorFast", "size": SMALL},
        json.loads(DetrImageProcessor(size=SMALL).to_json_string()),
    ],
    ids=["version_4", "fast", "version_5"],
)
def test_settings_of_transformers_checkpoints(tmp_path, theirs):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(theirs))
    processor = DetrPanopticImageProcessor.from_pretrained(tmp_path)
    assert dict(processor.size) == SMALL
    assert processor.stuff_label_ids == []
    model = {"model_type": "detr", "id2label": {str(i): f"LABEL_{i}" for i in range(250)}}
    (tmp_path / "config.json").write_text(json.dumps(model))
    stuff = DetrPanopticImageProcessor.from_pretrained(tmp_path).stuff_label_ids
    assert (len(stuff), stuff[0], stuff[-1]) == (53, 92, 200)
    assert (
        json.loads(processor.to_json_string()).keys()
        == json.loads(DetrPanopticImageProcessor().to_json_string()).keys()
    )


@pytest.mark.parametrize("height", [2, 9, 400])
def test_an_image_of_one_pixels_width_keeps_its_colors(height):
    """PyTorch's resize of bytes mixes rows and channels there, or stops with an internal error."""
    image = torch.tensor([250, 130, 10], dtype=torch.uint8)[:, None, None].expand(3, height, 2).contiguous()
    processor = DetrPanopticImageProcessor(
        size={"shortest_edge": 1, "longest_edge": 200}, do_rescale=False, do_normalize=False
    )
    found = processor(image, return_tensors="pt")["pixel_values"]
    assert found.shape[-1] == 1
    assert torch.equal(found.amax((0, 2, 3)).long(), torch.tensor([250, 130, 10]))
    assert torch.equal(found.amin((0, 2, 3)).long(), torch.tensor([250, 130, 10]))
