"""Defects of the peers that no module's own test holds; the others are listed in docs/deviations.md."""

import pytest
import torch

from detr_panoptic.losses import detection_losses, loss_normalizers, mask_losses
from detr_panoptic.matcher import MatchedLayers, match, matching_costs
from tests.conftest import tiny_labels

COSTS = {"class_cost": 1.0, "bbox_cost": 5.0, "giou_cost": 2.0}
CANVAS = (65, 97)


def predictions():
    """Of two decoder layers: logits (2, 2, 5, 4), boxes (2, 2, 5, 4) and masks (20, 17, 25)."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 2, 5, 4, generator=generator) * 5
    boxes = torch.rand(2, 2, 5, 4, generator=generator) * 0.5 + 0.1
    return logits, boxes, torch.randn(20, 17, 25, generator=generator) * 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_matching_and_losses_of_half_precision_are_computed_in_float32(dtype):
    """Defect 9. transformers crashes in `cdist`; whoever only replaces that adds up thousands of pixels in 8 bits."""
    labels = tiny_labels(torch.Generator().manual_seed(1))
    targets = [{**target, "boxes": target["boxes"].to(dtype)} for target in labels]
    normalizers = loss_normalizers(labels, num_queries=5, eos_coefficient=0.1)
    results = []
    for narrow in (True, False):
        logits, boxes, masks = (value.to(dtype) for value in predictions())
        if not narrow:
            logits, boxes, masks = logits.float(), boxes.float(), masks.float()
            targets = [{**target, "boxes": target["boxes"].float()} for target in targets]
        costs = [matching_costs(logits[:, i], boxes[:, i], t, costs=COSTS) for i, t in enumerate(targets)]
        matching = match(logits, boxes, targets, costs=COSTS)
        matched = MatchedLayers(targets, logits, boxes, matching)
        losses = detection_losses(matched, eos_coefficient=0.1, normalizers=normalizers) | mask_losses(
            masks[: len(matching.image)],
            targets,
            matching,
            canvas_size=CANVAS,
            image_sizes=[CANVAS, (49, 64)],
            num_targets=normalizers.num_targets,
        )
        results.append({"costs": costs, "matching": matching, "losses": losses})
    torch.testing.assert_close(*results, atol=0, rtol=0)
