"""Teaches a pretrained backbone where things are, before the training proper begins. Not in the paper.

DETR adds positions to queries and keys, never to values, and the keys of its mask attention have none. An object can
therefore be told from another of its class only as far as the backbone's features tell where they are, through the
zero padding at the borders. ImageNet's classes do not ask for that; detection teaches it in thousands of updates. If
each cell of the last map has to name its own position, a hundred updates of the last stage alone are sufficient, and
then the backbone can stay frozen, which halves the cost of every further update (docs/learning.md).

Legend: B images, D hidden size, (h, w) the projected map.
"""

import logging
import math
from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the field's name for it
from torch.optim import AdamW

from ..backbone import Backbone, resize_mask
from ..modeling_detr_panoptic import DetrPanopticForSegmentation
from .aids import HEAD_SCALE
from .optimization import rate_at
from .settings import OptimizationSettings

logger = logging.getLogger(__name__)

PERIODS = (0.5, 1.0, 2.0)
"""Periods per side of the image. Sines make near cells alike and far ones different; a plain coordinate would not."""
TOLERANCE = 0.2  # of a sine, from which on its error counts in proportion instead of squared
WARMUP_STEPS = 10


def position_code(mask: Tensor) -> Tensor:
    """Computes sines and cosines of each cell's position in its image: (B, h, w), True on the image, to (B, h, w, 12).

    Example:
        >>> position_code(torch.ones(1, 2, 2, dtype=torch.bool))[0, 0, 0, :2]
        tensor([0.7071, 1.0000])
    """
    rows, columns = mask.float().cumsum(1), mask.float().cumsum(2)
    rows = (rows - 0.5) / rows[:, -1:].clamp(min=1)
    columns = (columns - 0.5) / columns[:, :, -1:].clamp(min=1)
    angles = torch.stack((columns, rows), -1)[..., None] * (2 * math.pi * torch.tensor(PERIODS, device=mask.device))
    return torch.cat((angles.sin(), angles.cos()), -1).flatten(-2)


def position_loss(predicted: Tensor, mask: Tensor) -> Tensor:
    """Compares predicted codes (B, h, w, 12) with those of the cells; the mean over cells that lie on an image."""
    error = F.smooth_l1_loss(predicted, position_code(mask), reduction="none", beta=TOLERANCE).sum(-1)
    return (error * mask).sum() / mask.sum().clamp(min=1)


def teach_positions(
    model: DetrPanopticForSegmentation,
    batches: Iterable[dict[str, Any]],
    settings: OptimizationSettings,
    *,
    updates: int,
    factor: float = 1.0,
) -> None:
    """Trains the backbone's last stage and the projection to tell where each cell is.

    Args:
        model: changed in place; which parameters are frozen stays as it was.
        batches: `pixel_values` and `pixel_mask`; at least as many as there are updates.
        settings: its learning rates and weight decay; the rates fall as half a cosine.
        updates: their number.
        factor: on both rates.
    """
    backbone, projection = model.model.backbone, model.model.input_projection
    head = nn.Linear(projection.out_channels, 4 * len(PERIODS)).to(model.device)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.requires_grad_(False)
    stage = last_stage(backbone)
    rates = [settings.backbone_learning_rate * factor, settings.learning_rate * factor]
    trained = [stage, [*projection.parameters(), *head.parameters()]]
    groups = [{"params": own, "lr": rate} for own, rate in zip(trained, rates, strict=True)]
    for parameter in (*stage, *projection.parameters()):
        parameter.requires_grad_(True)
    optimizer = AdamW(groups, weight_decay=settings.weight_decay)
    schedule = OptimizationSettings(schedule="cosine", warmup_steps=WARMUP_STEPS)
    for step, batch in enumerate(islice(batches, updates)):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * rate_at(schedule, step=step, progress=step / updates)
        pixel_values, pixel_mask = batch["pixel_values"].to(model.device), batch.get("pixel_mask")
        pixel_mask = None if pixel_mask is None else pixel_mask.to(model.device)  # None where nothing is padded
        pixel_values, pixel_mask = backbone.padded(pixel_values, pixel_mask)
        projected = projection(backbone(pixel_values)[-1])
        loss = position_loss(HEAD_SCALE * head(projected.movedim(1, -1)), resize_mask(pixel_mask, projected))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if updates:
        logger.info("the backbone learned positions: loss %.2f after %d updates", loss.item(), updates)
    for parameter, was_required in required.items():
        parameter.requires_grad_(was_required)


def last_stage(backbone: Backbone) -> list[nn.Parameter]:
    """Returns the parameters after the last map but one; of a vision transformer, those of its pyramid."""
    if backbone.pyramid is not None:
        return list(backbone.pyramid.parameters())
    name = backbone.body.feature_info.module_name()[-2].replace(".", "_")
    named = list(backbone.body.named_parameters())
    earlier = [i for i, (own, _) in enumerate(named) if own.replace(".", "_").startswith(name + "_")]
    return [parameter for _, parameter in named[max(earlier, default=-1) + 1 :]]
