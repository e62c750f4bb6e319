"""Half precision, autocast, extreme sizes and counts: what stays finite, and how near to float32 it is."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from detr_panoptic.checkpoints import BUNDLED
from detr_panoptic.data import PanopticCollator, PanopticData
from detr_panoptic.evaluation import evaluate
from detr_panoptic.inference import load
from detr_panoptic.scenes import SCENE_CATEGORIES, UNSEEN_SEED, scenes_dataset
from tests.conftest import build_tiny

SIDE = 256  # pixels
HALVES = (torch.float16, torch.bfloat16)
BOUNDS = {
    # Mean distance of class and mask logits, share of equal best classes and of equal sides of a mask's border,
    # relative distance of the loss: two to three times what docs/reliability.md measured.
    torch.float16: (0.01, 0.1, 0.99, 0.9995, 0.01),
    torch.bfloat16: (0.09, 0.9, 0.97, 0.997, 0.06),
}
PQ_BOUND = 0.03  # on four scenes, where one segment of thirty decides 0.02
WAYS = [(dtype, autocast) for dtype in HALVES for autocast in (False, True)]
SLOW = pytest.mark.slow  # CPUs compute float16 ten times as slowly
MARKED_WAYS = [pytest.param(*way, marks=SLOW if way[0] == torch.float16 else ()) for way in WAYS]
WAY_NAMES = ["float16", "float16-autocast", "bfloat16", "bfloat16-autocast"]


@pytest.fixture(scope="module")
def shipped():
    """The model, its processor, two scenes as a batch and what float32 makes of it."""
    model, processor = load(BUNDLED, device="cpu")
    scenes = scenes_dataset(4, seed=UNSEEN_SEED, height=SIDE, width=SIDE)
    batch = PanopticCollator(processor)([scenes[0], scenes[1]])
    with torch.no_grad():
        return model, processor, scenes, batch, model(**batch, mask_queries="all")


def in_precision(model, dtype, autocast):
    """The model in that precision, and the surroundings to run it in."""
    if autocast:
        return model, torch.autocast("cpu", dtype)
    return copy.deepcopy(model).to(dtype), nullcontext()


def mean_distance(found, expected):
    return float((found.float() - expected).abs().mean())


@pytest.mark.parametrize(("dtype", "autocast"), MARKED_WAYS, ids=WAY_NAMES)
@torch.no_grad()
def test_half_precision_is_near_float32(dtype, autocast, shipped):
    model, _, _, batch, expected = shipped
    narrow, surroundings = in_precision(model, dtype, autocast)
    with surroundings:
        found = narrow(
            batch["pixel_values"].to(narrow.dtype), batch["pixel_mask"], batch["labels"], mask_queries="all"
        )
    of_logits, of_masks, same_class, same_side, of_loss = BOUNDS[dtype]
    assert mean_distance(found.logits, expected.logits) < of_logits
    assert mean_distance(found.pred_masks, expected.pred_masks) < of_masks
    assert (found.logits.argmax(-1) == expected.logits.argmax(-1)).float().mean() >= same_class
    assert ((found.pred_masks > 0) == (expected.pred_masks > 0)).float().mean() > same_side
    assert found.loss.dtype == torch.float32
    assert abs(found.loss / expected.loss - 1) < of_loss
    assert mean_distance(found.logits, expected.logits) > 1e-4, "it ran in float32"


@pytest.mark.parametrize("dtype", [pytest.param(torch.float16, marks=SLOW), torch.bfloat16], ids=str)
def test_half_precision_reaches_the_pq_of_float32(dtype, shipped):
    model, processor, scenes, *_ = shipped
    quality = []
    for precise in (model, copy.deepcopy(model).to(dtype)):
        data = PanopticData(scenes, SCENE_CATEGORIES)
        quality.append(evaluate((precise, processor), data, average_precision=False, progress=False).pq)
    assert quality[0] > 0.4
    assert abs(quality[0] - quality[1]) < PQ_BOUND


@torch.no_grad()
def test_float64_shows_that_float32_rounds_by_no_more_than_it_must(shipped):
    model, _, _, batch, expected = shipped
    exact = copy.deepcopy(model).double()(
        batch["pixel_values"].double(), batch["pixel_mask"], batch["labels"], mask_queries="all"
    )
    torch.testing.assert_close(expected.logits.double(), exact.logits, atol=1e-3, rtol=0)
    torch.testing.assert_close(expected.pred_masks.double(), exact.pred_masks, atol=2e-2, rtol=0)
    torch.testing.assert_close(expected.loss.double(), exact.loss.double(), atol=0, rtol=1e-5)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@torch.no_grad()
def test_results_are_the_same_inside_of_autocast(dtype, shipped):
    """Post-processing computes in float32, also where somebody leaves it inside the block."""
    _, processor, _, _, outputs = shipped
    expected = processor.post_process_semantic_segmentation(outputs, return_segmentation_scores=True)
    with torch.autocast("cpu", dtype):
        found = processor.post_process_semantic_segmentation(outputs, return_segmentation_scores=True)
        panoptic = processor.post_process_panoptic_segmentation(outputs)
    assert torch.equal(found[0].segmentation_scores, expected[0].segmentation_scores)
    assert panoptic[1]["segments_info"] == processor.post_process_panoptic_segmentation(outputs)[1]["segments_info"]


# ------ extremes


def targets(count, size):
    """So many targets of an image, each pixel of one of them."""
    generator = torch.Generator().manual_seed(count)
    owner = torch.randint(max(count, 1), size, generator=generator)
    return {
        "class_labels": torch.randint(3, (count,), generator=generator),
        "boxes": torch.rand(count, 4, generator=generator),
        "masks": (owner == torch.arange(count)[:, None, None]),
    }


def not_finite(value, name="output"):
    """Names of all tensors inside that are not finite."""
    if isinstance(value, Tensor):
        return [] if value.isfinite().all() else [name]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return [found for key, item in items for found in not_finite(item, f"{name}.{key}")]


@pytest.mark.parametrize("count", [0, 1, 12])  # the model has five queries
@pytest.mark.parametrize("size", [(131, 97), (1, 1), (3, 1999)])
@pytest.mark.parametrize(("dtype", "autocast"), [(torch.float32, False), *WAYS], ids=["float32", *WAY_NAMES])
def test_none_one_and_many_objects_have_finite_losses_and_gradients(dtype, autocast, size, count):
    model, surroundings = in_precision(build_tiny().train(), dtype, autocast)
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(model.dtype)
    with surroundings:
        outputs = model(image, labels=[targets(count, size)])
    assert not_finite(dict(outputs)) == []
    if dtype == torch.bfloat16 and size == (1, 1):
        return  # PyTorch's convolutions return weight gradients of 1 x 1 maps that they never wrote
    outputs.loss.backward()
    assert not_finite({name: p.grad for name, p in model.named_parameters() if p.requires_grad}, "gradient") == []


@pytest.mark.parametrize("count", [pytest.param(0, marks=SLOW), 12])
@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [
        (torch.float32, False),
        pytest.param(torch.float16, False, marks=pytest.mark.slow),  # CPUs compute it ten times as slowly
        (torch.bfloat16, False),
        (torch.bfloat16, True),
    ],
)
def test_large_images_stay_finite(dtype, autocast, count):
    size = (1333, 2000)
    model, surroundings = in_precision(build_tiny().train(), dtype, autocast)
    image = 4 * torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(model.dtype)
    with surroundings:
        outputs = model(image, labels=[targets(count, size)])
    outputs.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert not_finite([dict(outputs), gradients]) == []


@torch.no_grad()
def test_one_mask_of_one_cell_is_predicted():
    """PyTorch's `nn.GroupNorm` refuses a single value per group: "expected more than 1 value per channel"."""
    model = build_tiny().eval()
    image = torch.ones(1, 3, 1, 1)
    masks = model(image, mask_queries=1).pred_masks
    together = model(image, mask_queries="all").pred_masks
    chosen = int(masks.amax((0, 2, 3)).argmax())
    torch.testing.assert_close(masks[:, chosen], together[:, chosen])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@torch.no_grad()
def test_a_query_without_a_mask_is_finite_and_improbable_in_half_precision(dtype):
    model = build_tiny().to(dtype).eval()
    masks = model(torch.zeros(1, 3, 65, 97, dtype=dtype), mask_queries=1).pred_masks
    skipped = masks.flatten(2).amax(2) < -9000
    assert skipped.sum() == 4
    resized = torch.nn.functional.interpolate(masks, size=(130, 194), mode="bilinear")
    assert resized.isfinite().all()
    assert resized[skipped].sigmoid().max() == 0


# ------ training


@pytest.mark.slow
@pytest.mark.promise
def test_float16_trains_with_a_gradient_scaler(tiny_batch):
    """Updates with overflowing gradients are skipped and lower the scale; the others lower the loss."""
    model = build_tiny().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    losses, skipped = [], 0
    for _ in range(40):
        before, weights = scaler.get_scale(), copy.deepcopy(model.state_dict())
        with torch.autocast("cpu", torch.float16):
            loss = model(**tiny_batch).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.item())
        if scaler.get_scale() < before:
            skipped += 1
            torch.testing.assert_close(model.state_dict(), weights, atol=0, rtol=0)
    assert 0 < skipped < 25
    assert not_finite(model.state_dict()) == []
    assert losses[-1] < 0.8 * losses[0]


def test_gradients_of_a_bfloat16_update_point_where_those_of_float32_do(tiny_batch):
    gradients = []
    for autocast in (False, True):
        model = build_tiny().train()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(**tiny_batch).loss
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert gradients[1].dtype == torch.float32
    assert torch.cosine_similarity(gradients[0], gradients[1], dim=0) > 0.99
    assert gradients[1].norm() / gradients[0].norm() == pytest.approx(1, abs=0.05)
