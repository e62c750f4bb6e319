"""What is trained, its optimizer and its schedule, after main.py of facebookresearch/detr (29901c5)."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from .arguments import ModelArguments, OptimizationArguments

DROP_FACTOR = 0.1
BACKBONE = "backbone."
MASK_PARTS = ("mask_attention.", "mask_head.")


def freeze(model: nn.Module, arguments: ModelArguments) -> None:
    """Takes the gradient from what the stage leaves alone; batch norms and the stem are frozen in any case.

    Args:
        model: a `DetrPanopticForSegmentation`.
        arguments: `stage` and `freeze_backbone` count.
    """
    for name, parameter in model.named_parameters():
        is_mask_part = name.startswith(MASK_PARTS)
        left_alone = (
            (arguments.stage == "boxes" and is_mask_part)
            or (arguments.stage == "masks" and not is_mask_part)
            or (arguments.freeze_backbone and BACKBONE in name)
        )
        if left_alone:
            parameter.requires_grad_(False)


def rate_factor(arguments: OptimizationArguments, effective_batch: int) -> float:
    """What the rates are multiplied with, given the images of one update on all processes."""
    ratio = effective_batch / arguments.reference_batch
    return {"none": 1.0, "sqrt": ratio**0.5, "linear": ratio}[arguments.rate_scaling]


def build_optimizer(model: nn.Module, arguments: OptimizationArguments, *, factor: float = 1.0) -> Optimizer:
    """AdamW over what has a gradient: the backbone at its own rates, the rest at another.

    Args:
        model: a `DetrPanopticForSegmentation`.
        arguments: rates, decay of the rates over the backbone's stages, weight decay.
        factor: on every rate, see `rate_factor`.

    Raises:
        ValueError: nothing has a gradient.
    """
    groups: dict[float, list[nn.Parameter]] = {arguments.learning_rate: []}
    stages = backbone_stages(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = arguments.learning_rate
            if BACKBONE in name:
                to_last = max(stages.values()) - stages[name.split(BACKBONE)[1]]
                rate = arguments.backbone_learning_rate * arguments.backbone_rate_decay**to_last
            groups.setdefault(rate, []).append(parameter)
    trained: list[dict[str, Any]] = [{"params": own, "lr": rate * factor} for rate, own in groups.items() if own]
    if not trained:
        raise ValueError("Nothing is left to train: every parameter is frozen.")
    return AdamW(trained, weight_decay=arguments.weight_decay)


def backbone_stages(model: nn.Module) -> dict[str, int]:
    """The stage, from 0, of each parameter of the backbone by its name in there: its end is where its map is taken."""
    backbone: Any = model.get_submodule("model.backbone")
    ends = [name.replace(".", "_") + "_" for name in backbone.body.feature_info.module_name()]
    names = [name for name, _ in backbone.named_parameters()]
    flat = [name.removeprefix("body.").replace(".", "_") for name in names]
    lasts = [max((i for i, name in enumerate(flat) if name.startswith(end)), default=-1) for end in ends]
    return {name: min(sum(i > last for last in lasts), len(ends) - 1) for i, name in enumerate(names)}


def build_schedule(optimizer: Optimizer, arguments: OptimizationArguments, *, total_steps: int) -> LambdaLR:
    """The factor on every rate, as a function of the update."""

    def factor(step: int) -> float:
        warmup = min(1.0, (step + 1) / (arguments.warmup_steps + 1))
        progress = step / total_steps
        if arguments.schedule == "cosine":
            return warmup * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        dropped = arguments.schedule == "step" and progress >= arguments.drop_at
        return warmup * (DROP_FACTOR if dropped else 1.0)

    return LambdaLR(optimizer, factor)


def average_weights(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of the model that follows it as a moving average, `update_parameters` after each update.

    The decay rises to `decay` as (1 + n) / (10 + n), so that the first, untrained weights are forgotten.
    """

    @torch.no_grad()
    def update(averaged: Any, current: Any, updates: Tensor | int) -> None:
        n = float(updates)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(model, multi_avg_fn=update)
