"""Frozen parameters, batch size, optimizer, schedule and averaged weights.

Follows main.py of facebookresearch/detr (29901c5).
"""

import copy
import logging
import math
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from .settings import ModelSettings, OptimizationSettings, TrainingSettings

logger = logging.getLogger(__name__)

DROP_FACTOR = 0.1
WARMUP_SHARE = 0.1  # of the run, at most: a short one has to learn, too
BACKBONE = "backbone.body."  # without the pyramid of a vision transformer, which is new
MASK_PARTS = ("mask_attention.", "mask_head.")


def freeze(model: nn.Module, settings: ModelSettings) -> None:
    """Freezes the parameters of a `DetrPanopticForSegmentation` that the stage does not train."""
    for name, parameter in model.named_parameters():
        is_mask_part = name.startswith(MASK_PARTS)
        left_alone = {"all": False, "boxes": is_mask_part, "masks": not is_mask_part}[settings.stage]
        if left_alone or (settings.freeze_backbone and BACKBONE in name):
            parameter.requires_grad_(False)


def effective_batch(settings: OptimizationSettings, processes: int) -> int:
    """Returns the images per update of all processes."""
    return int(settings.batch_size) * settings.gradient_accumulation_steps * processes


def rate_factor(settings: OptimizationSettings, effective_batch: int) -> float:
    """Returns the factor on all learning rates, given the images per update of all processes."""
    ratio = effective_batch / settings.reference_batch
    return {"none": 1.0, "sqrt": ratio**0.5, "linear": ratio}[settings.rate_scaling]


def build_optimizer(model: nn.Module, settings: OptimizationSettings, *, factor: float = 1.0) -> Optimizer:
    """Builds AdamW over the parameters that are trained, with `factor` on the two learning rates.

    Raises ValueError if every parameter is frozen.
    """
    groups: dict[float, list[nn.Parameter]] = {settings.learning_rate: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = settings.backbone_learning_rate if BACKBONE in name else settings.learning_rate
            groups.setdefault(rate, []).append(parameter)
    trained = [{"params": own, "lr": rate * factor} for rate, own in groups.items() if own]
    if not trained:
        raise ValueError("Nothing to train: every parameter is frozen.")
    return AdamW(trained, weight_decay=settings.weight_decay)


def build_schedule(optimizer: Optimizer, settings: OptimizationSettings, *, total_steps: int) -> LambdaLR:
    """Builds the learning rate schedule: a factor on every rate as a function of the update."""
    return LambdaLR(optimizer, lambda step: rate_at(settings, step=step, progress=step / total_steps))


def rate_at(settings: OptimizationSettings, *, step: int, progress: float) -> float:
    """Returns the schedule's factor on the learning rates after `step` updates, which are a share of the run."""
    warmup = min(1.0, max((step + 1) / (settings.warmup_steps + 1), progress / WARMUP_SHARE))
    if settings.schedule == "cosine":
        return warmup * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    dropped = settings.schedule == "step" and progress >= settings.drop_at
    return warmup * (DROP_FACTOR if dropped else 1.0)


def average_weights(model: nn.Module, decay: float) -> AveragedModel:
    """Returns a copy of the model that `update_parameters` turns into a moving average of its weights.

    The decay rises to `decay` as (1 + n) / (10 + n), so that the untrained weights are soon forgotten.
    """

    @torch.no_grad()
    def update(averaged: Any, current: Any, updates: Tensor | int) -> None:
        n = float(updates)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(model, multi_avg_fn=update)


# ------ the batch size that fits into memory


def fix_batch_size(
    settings: TrainingSettings, model: nn.Module, accelerator: Accelerator, *, most_segments: int
) -> TrainingSettings:
    """Replaces `batch_size="auto"` by the largest size that fits; accumulation keeps the images per update.

    Every process tries updates of a copy of the model with the largest images and the most segments that occur, until
    a divisor of its share of the images fits into memory. All processes take the smallest result.
    Raises ValueError if not even one image fits, or if the images per update are not a multiple of the processes.
    """
    if settings.optimization.batch_size != "auto":
        return settings
    share, rest = divmod(settings.optimization.images_per_update, accelerator.num_processes)
    if rest:
        raise ValueError(f"`images_per_update` must be a multiple of the {accelerator.num_processes} processes.")
    with unchanged_random_state(accelerator.device):
        found = torch.tensor([_largest_batch(settings, model, accelerator, share, most_segments)])
    size = int(accelerator.gather(found.to(accelerator.device)).min())
    if size == 0:
        raise ValueError("`batch_size` auto: not even one image fits into memory; reduce `short_side`, `long_side`.")
    logger.info("batch size: %d images, %d steps per update", size, share // size)
    return settings.replace(batch_size=size, gradient_accumulation_steps=share // size)


def unchanged_random_state(device: torch.device) -> AbstractContextManager[None]:
    """Keeps trials and evaluations, whose loaders draw seeds, from changing the dropout of later updates."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def _largest_batch(settings: TrainingSettings, model: Any, accelerator: Accelerator, share: int, segments: int) -> int:
    """Returns the largest divisor of `share` that is a batch size with which an update fits into memory, or 0."""
    probe = copy.deepcopy(model).to(accelerator.device).train()
    optimizer = build_optimizer(probe, settings.optimization)
    for size in (divisor for divisor in range(share, 0, -1) if share % divisor == 0):
        try:
            update_once(probe, optimizer, _largest_inputs(settings, size, segments, probe), accelerator)
            return size
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
        clear_device_cache(garbage_collection=True)
    return 0


def update_once(probe: Any, optimizer: Optimizer, inputs: dict[str, Any], accelerator: Accelerator) -> None:
    """Does a forward, a backward and an update."""
    with accelerator.autocast():
        loss = probe(**inputs).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def _largest_inputs(settings: TrainingSettings, batch_size: int, segments: int, model: Any) -> dict[str, Any]:
    """Returns inputs of the size of a batch with a wide and a tall image."""
    width, device = settings.data.long_side, model.device
    height = settings.data.short_side if batch_size == 1 else width
    count, stage = max(1, min(segments, model.config.num_queries)), settings.model.stage
    target = {"class_labels": torch.zeros(count, dtype=torch.int64), "boxes": torch.full((count, 4), 0.5)}
    if stage != "boxes":
        target["masks"] = torch.ones(count, height, width, dtype=torch.bool)
    return {
        "pixel_values": torch.zeros(batch_size, 3, height, width, device=device),
        "pixel_mask": torch.ones(batch_size, height, width, device=device),
        "labels": [{name: value.to(device) for name, value in target.items()}] * batch_size,
        **({"mask_queries": 0} if stage == "boxes" else {}),
    }
