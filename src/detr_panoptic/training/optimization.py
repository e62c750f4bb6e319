"""Optimizer and schedule, after main.py of facebookresearch/detr (29901c5)."""

import math

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from .arguments import OptimizationArguments

DROP_FACTOR = 0.1


def build_optimizer(model: nn.Module, arguments: OptimizationArguments) -> Optimizer:
    """AdamW over what has a gradient: the backbone at its own rate, the rest at another."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    backbone = [p for name, p in trained if "backbone." in name]
    rest = [p for name, p in trained if "backbone." not in name]
    groups = [
        {"params": rest, "lr": arguments.learning_rate},
        {"params": backbone, "lr": arguments.backbone_learning_rate},
    ]
    return AdamW([g for g in groups if g["params"]], weight_decay=arguments.weight_decay)


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
