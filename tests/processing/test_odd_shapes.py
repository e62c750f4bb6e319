"""Backbones that depend on the parity of their input see whole strides, so that odd shapes cost no quality."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from detr_panoptic import DetrPanopticForSegmentation, DetrPanopticImageProcessor
from detr_panoptic.backbone import Backbone
from detr_panoptic.checkpoints import BUNDLED
from detr_panoptic.data import PanopticData
from detr_panoptic.evaluation import evaluate
from detr_panoptic.scenes import SCENE_CATEGORIES, scenes_dataset
from tests.conftest import build_tiny, tiny_labels

SHAPES = ((213, 320), (320, 227), (199, 320), (306, 320))
MORE = ((320, 181), (301, 320), (320, 239), (250, 320), (320, 263), (227, 320), (287, 320), (320, 275))
MOST_LOST = 2.0  # points of PQ


@pytest.fixture(scope="module")
def bundled():
    model = DetrPanopticForSegmentation.from_pretrained(BUNDLED, dtype=torch.float32).eval()
    return model, DetrPanopticImageProcessor.from_pretrained(BUNDLED)


@pytest.mark.parametrize(
    ("name", "multiple"),
    [
        ("test_resnet", 1),
        ("resnet50", 1),
        ("test_efficientnet", 1),
        ("tf_efficientnet_lite0", 32),
        ("test_convnext", 32),
        ("dla34", 32),  # adds maps of lengths rounded up and down
        ("densenet121", 32),  # rounds down
    ],
)
def test_only_backbones_without_centered_padding_need_whole_strides(name, multiple):
    with torch.device("meta"):
        assert Backbone(name).canvas_multiple == multiple


@pytest.mark.parametrize("with_mask", [True, False])
@torch.no_grad()
def test_an_odd_shape_gives_what_its_padded_canvas_gives(bundled, with_mask):
    model, _ = bundled
    images = torch.randn(2, 3, 213, 307, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 213, 307, dtype=torch.int64)
    if with_mask:
        mask[1, 190:], mask[1, :, 250:] = 0, 0
        images[1] *= mask[1]
    odd = model(images, mask if with_mask else None, mask_queries="all")
    margins = (0, 13, 0, 11)  # to 224 x 320
    whole = model(F.pad(images, margins), F.pad(mask, margins), mask_queries="all")
    assert torch.equal(odd.logits, whole.logits)
    assert torch.equal(odd.pred_boxes, whole.pred_boxes)
    assert odd.pred_masks.shape[-2:] == (54, 77)
    assert torch.equal(odd.pred_masks, whole.pred_masks[..., :54, :77])
    assert torch.equal(odd.image_sizes, whole.image_sizes)
    assert odd.canvas_sizes.tolist() == [[213, 307]] * 2


@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite0", "test_convnext"])
def test_odd_shapes_can_be_learned_from(backbone):
    model = build_tiny(backbone=backbone).train()
    labels = tiny_labels(torch.Generator().manual_seed(1))
    labels[1]["masks"] = F.pad(labels[1]["masks"], (0, 97 - 64, 0, 65 - 49))
    output = model(torch.randn(2, 3, 65, 97), labels=labels)
    output.loss.backward()
    assert all(value.isfinite() for value in output.loss_dict.values())


def losses_of_quality(bundled, shapes, count):
    """PQ points that each shape loses against the same images on a canvas of whole strides."""
    model, processor = bundled
    lost = {}
    for height, width in shapes:
        size = {"height": height * 4 // 5, "width": width * 4 // 5}  # of the scenes; they are enlarged to `shape`
        data = PanopticData(scenes_dataset(count, seed=77_000_000, **size), SCENE_CATEGORIES)
        whole = DetrPanopticImageProcessor.from_pretrained(
            BUNDLED, pad_size={"height": -(-height // 32) * 32, "width": -(-width // 32) * 32}
        )
        quality = [
            evaluate((model, each), data, average_precision=False, progress=False).pq for each in (whole, processor)
        ]
        lost[height, width] = 100 * (quality[0] - quality[1])
    return lost


def test_odd_shapes_lose_no_quality(bundled):
    lost = losses_of_quality(bundled, SHAPES[:2], 6)
    assert max(lost.values()) <= MOST_LOST, lost


@pytest.mark.slow
@pytest.mark.promise
def test_twelve_odd_shapes_lose_no_quality(bundled):
    lost = losses_of_quality(bundled, SHAPES + MORE, 16)
    assert max(lost.values()) <= MOST_LOST, lost
