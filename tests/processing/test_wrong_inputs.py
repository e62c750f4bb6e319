"""Odd images and wrong annotations all the way: file, processor, model, losses, segments.

What each part does with them alone is in its own tests; here nothing may crash late, be silently wrong, or spoil its
neighbors in a batch.
"""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from detr_panoptic import DetrPanopticImageProcessor
from detr_panoptic.data import PanopticCollator
from detr_panoptic.data.categories import Categories
from detr_panoptic.data.records import ids_to_rgb
from detr_panoptic.evaluation import PanopticQuality
from detr_panoptic.scenes import make_scene
from detr_panoptic.training.loop import train_step
from tests.conftest import build_tiny

SIZE = (48, 72)  # height and width
CATEGORIES = Categories(names=("boat", "ball", "sea"), is_thing=(True, True, False), category_ids=(11, 40, 90))
KINDS = ("L", "LA", "P", "RGBA", "CMYK", "I;16")


@pytest.fixture(scope="module")
def gray():
    """A picture that every mode can show exactly."""
    picture = make_scene(3, height=64, width=72)["image"].convert("L")
    return picture.crop((0, 0, SIZE[1], SIZE[0]))


@pytest.fixture(scope="module")
def processor():
    return DetrPanopticImageProcessor(
        size={"shortest_edge": 64, "longest_edge": 96}, threshold=0.0, stuff_label_ids=[2]
    )


def in_mode(picture, mode):
    if mode == "I;16":
        return Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
    if mode in ("RGBA", "CMYK"):
        picture = picture.convert("RGB")
    return picture.convert(mode)


def segment(model, processor, images, sizes):
    """Segments of each image at the given sizes."""
    with torch.no_grad():
        outputs = model(**processor(images, return_tensors="pt"))
    return processor.post_process_panoptic_segmentation(outputs, target_sizes=sizes)


def same_segments(first, second):
    return torch.equal(first["segmentation"], second["segmentation"]) and (
        first["segments_info"] == second["segments_info"]
    )


def assert_consistent(result, size):
    ids = result["segmentation"]
    assert ids.dtype == torch.int32
    assert tuple(ids.shape) == size
    listed = {entry["id"]: entry["area"] for entry in result["segments_info"]}
    values, areas = ids[ids > 0].unique(return_counts=True)
    assert listed == dict(zip(values.tolist(), areas.tolist(), strict=True))


# ------ images


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_of_any_mode_has_the_segments_of_the_same_picture_in_rgb(
    kind, gray, tiny_model, processor, tmp_path
):
    suffix = "jpg" if kind == "CMYK" else "png"
    odd = in_mode(gray, kind)
    odd.save(tmp_path / f"odd.{suffix}", **({"quality": 100, "subsampling": 0} if kind == "CMYK" else {}))
    (expected,) = segment(tiny_model, processor, gray.convert("RGB"), [SIZE])
    assert expected["segments_info"] != []
    (result,) = segment(tiny_model, processor, odd, [SIZE])
    assert same_segments(result, expected)
    (result,) = segment(tiny_model, processor, str(tmp_path / f"odd.{suffix}"), [SIZE])
    assert_consistent(result, SIZE)
    assert kind == "CMYK" or same_segments(result, expected)  # JPEG is not exact


def test_a_turned_photograph_has_the_segments_of_the_upright_one(gray, tiny_model, processor, tmp_path):
    turned = gray.transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[0x0112] = 6  # to be shown turned by 270 degrees
    turned.save(tmp_path / "turned.png", exif=exif)
    (result,) = segment(tiny_model, processor, str(tmp_path / "turned.png"), [SIZE])
    (expected,) = segment(tiny_model, processor, gray, [SIZE])
    assert expected["segments_info"] != []
    assert same_segments(result, expected)


@pytest.mark.parametrize("do_resize", [True, False])
def test_one_pixel_is_an_image(do_resize, tiny_model, processor):
    inputs = processor(Image.new("RGB", (1, 1), "red"), return_tensors="pt", do_resize=do_resize)
    with torch.no_grad():
        outputs = tiny_model(**inputs)
    assert outputs.logits.isfinite().all()
    for name in ("panoptic", "instance"):
        (result,) = getattr(processor, f"post_process_{name}_segmentation")(outputs, target_sizes=[(1, 1)])
        assert_consistent(result, (1, 1))
    assert processor.post_process_semantic_segmentation(outputs, target_sizes=[(1, 1)])[0].shape == (1, 1)


def test_odd_images_share_a_batch(gray, tiny_model, processor):
    images = [in_mode(gray, kind) for kind in KINDS] + [Image.new("L", (1, 1)), Image.new("RGB", (200, 3))]
    sizes = [SIZE] * len(KINDS) + [(1, 1), (3, 200)]
    results = segment(tiny_model, processor, images, sizes)
    for result, size in zip(results, sizes, strict=True):
        assert_consistent(result, size)
    for result in results[1 : len(KINDS)]:
        assert torch.equal(result["segmentation"], results[0]["segmentation"])


def test_a_broken_file_in_a_list_is_named(gray, processor, tmp_path):
    gray.save(tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "good.png").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"Cannot read the image .*broken\.png"):
        processor([str(tmp_path / "good.png"), str(tmp_path / "broken.png")], return_tensors="pt")


# ------ annotations


def record(ids, label_ids, image_id=7):
    """A canonical record of an id map (H, W) whose segments 1, 2, ... have these labels."""
    return {
        "image": Image.fromarray(np.full((*ids.shape, 3), 90, np.uint8)),
        "image_id": image_id,
        "segmentation": Image.fromarray(ids_to_rgb(ids)),
        "segments_info": [{"id": i, "label_id": label} for i, label in enumerate(label_ids, start=1)],
    }


def stripes(count):
    """An id map of as many segments, without void."""
    return np.repeat(np.arange(1, count + 1), 48)[None].repeat(40, 0)


def odd_records():
    speck = np.zeros((40, 60), np.int64)
    speck[0, 0], speck[39, 20:] = 1, 2  # one pixel, and a line on the border
    return [
        record(np.zeros((40, 60), np.int64), [], image_id=1),  # nothing but void
        record(stripes(9), [0, 1, 2] * 3, image_id=2),  # more than the five queries
        record(speck, [0, 1], image_id=3),
    ]


def test_odd_annotations_are_learned_from_together(processor):
    model = build_tiny().train()
    batch = dict(PanopticCollator(processor)(odd_records()))
    assert [len(target["boxes"]) for target in batch["labels"]] == [0, 9, 2]
    batch["labels"][2]["boxes"][0, 2:] = 0  # a box without size
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(6):
        terms = train_step(model, [batch], optimizer, Accelerator(cpu=True), max_grad_norm=0.1)
        assert all(term.isfinite() for term in terms.values()), terms
        losses.append(float(terms["loss"]))
    assert losses[-1] < losses[0]
    assert all(p.isfinite().all() for p in model.parameters())


def test_odd_annotations_are_measured(tiny_model, processor):
    quality = PanopticQuality(CATEGORIES)
    for odd in odd_records():
        (result,) = processor.post_process_panoptic_segmentation(
            tiny_model(**processor(odd["image"], return_tensors="pt")), target_sizes=[odd["image"].size[::-1]]
        )
        quality.update(odd, result)
    assert [row.tp + row.fn for row in quality.compute().per_class.values()] == [4, 4, 3]


def test_class_ids_outside_the_labels_stop_before_the_loss(processor):
    """An index error inside a CUDA kernel, far from its cause, is what is to be prevented."""
    batch = dict(PanopticCollator(processor)([record(stripes(2), [0, 3])]))  # the processor knows no labels
    with pytest.raises(ValueError, match=r"`class_labels` must lie between 0 and 2.* got \[3\]"):
        build_tiny().train()(**batch)
    knowing = DetrPanopticImageProcessor(category_ids=[11, 40, 90])
    with pytest.raises(ValueError, match=r"Image 7: segment 2 must have a `label_id` from 0 to 2, got 3"):
        PanopticCollator(knowing)([record(stripes(2), [0, 3])])


@pytest.mark.parametrize(
    ("label_ids", "message"),
    [
        ([0], r"Image 7: segment ids \[2\] must have an entry in `segments_info`"),
        ([0, 1, 2], r"Image 7: segment ids \[3\] must have pixels in `segmentation`"),
    ],
)
def test_a_map_and_its_entries_that_disagree_are_refused_in_a_batch(label_ids, message, processor):
    with pytest.raises(ValueError, match=message):
        PanopticCollator(processor)([*odd_records(), record(stripes(2), label_ids)])
