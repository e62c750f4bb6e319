"""Frozen parameters, optimizer, schedule and averaged weights; follows main.py of facebookresearch/detr (29901c5)."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from .settings import ModelSettings, OptimizationSettings

DROP_FACTOR = 0.1
BACKBONE = "backbone."
MASK_PARTS = ("mask_attention.", "mask_head.")


def freeze(model: nn.Module, settings: ModelSettings) -> None:
    """Freezes the parameters of a `DetrPanopticForSegmentation` that the stage does not train."""
    for name, parameter in model.named_parameters():
        is_mask_part = name.startswith(MASK_PARTS)
        left_alone = (
            (settings.stage == "boxes" and is_mask_part)
            or (settings.stage == "masks" and not is_mask_part)
            or (settings.freeze_backbone and BACKBONE in name)
        )
        if left_alone:
            parameter.requires_grad_(False)


def rate_factor(settings: OptimizationSettings, effective_batch: int) -> float:
    """Returns the factor on all learning rates, given the images per update of all processes."""
    ratio = effective_batch / settings.reference_batch
    return {"none": 1.0, "sqrt": ratio**0.5, "linear": ratio}[settings.rate_scaling]


def build_optimizer(model: nn.Module, settings: OptimizationSettings, *, factor: float = 1.0) -> Optimizer:
    """Builds AdamW over the parameters that are trained; the backbone has its own learning rates.

    Args:
        model: a `DetrPanopticForSegmentation`.
        settings: learning rates and weight decay.
        factor: on every rate, see `rate_factor`.

    Raises:
        ValueError: every parameter is frozen.
    """
    groups: dict[float, list[nn.Parameter]] = {settings.learning_rate: []}
    stages = backbone_stages(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = settings.learning_rate
            if BACKBONE in name:
                to_last = max(stages.values()) - stages[name.split(BACKBONE)[1]]
                rate = settings.backbone_learning_rate * settings.backbone_rate_decay**to_last
            groups.setdefault(rate, []).append(parameter)
    trained: list[dict[str, Any]] = [{"params": own, "lr": rate * factor} for rate, own in groups.items() if own]
    if not trained:
        raise ValueError("Nothing to train: every parameter is frozen.")
    return AdamW(trained, weight_decay=settings.weight_decay)


def backbone_stages(model: nn.Module) -> dict[str, int]:
    """Returns the stage, from 0, of each backbone parameter; a stage ends where its feature map is taken."""
    backbone: Any = model.get_submodule("model.backbone")
    ends = [name.replace(".", "_") + "_" for name in backbone.body.feature_info.module_name()]
    names = [name for name, _ in backbone.named_parameters()]
    flat = [name.removeprefix("body.").replace(".", "_") for name in names]
    lasts = [max((i for i, name in enumerate(flat) if name.startswith(end)), default=-1) for end in ends]
    return {name: min(sum(i > last for last in lasts), len(ends) - 1) for i, name in enumerate(names)}


def build_schedule(optimizer: Optimizer, settings: OptimizationSettings, *, total_steps: int) -> LambdaLR:
    """Builds the learning rate schedule: a factor on every rate as a function of the update."""

    def factor(step: int) -> float:
        warmup = min(1.0, (step + 1) / (settings.warmup_steps + 1))
        progress = step / total_steps
        if settings.schedule == "cosine":
            return warmup * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        dropped = settings.schedule == "step" and progress >= settings.drop_at
        return warmup * (DROP_FACTOR if dropped else 1.0)

    return LambdaLR(optimizer, factor)


def average_weights(model: nn.Module, decay: float) -> AveragedModel:
    """Returns a copy of the model that `update_parameters` turns into a moving average of its weights.

    The decay rises to `decay` as (1 + n) / (10 + n), so that the untrained weights are soon forgotten.
    """

    @torch.no_grad()
    def update(averaged: Any, current: Any, updates: Tensor | int) -> None:
        n = float(updates)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(model, multi_avg_fn=update)
