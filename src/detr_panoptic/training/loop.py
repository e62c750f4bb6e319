"""The training loop: plain steps over Accelerate, each of which can be called alone.

What it follows and where it differs: engine.py of facebookresearch/detr (29901c5), with losses divided by what all
processes and accumulated batches hold together, so that neither number changes the gradient.
"""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..losses import LossNormalizers, loss_normalizers
from .arguments import TrainingArguments

logger = logging.getLogger(__name__)

Batch = dict[str, Any]


def window_normalizers(window: Sequence[Batch], model: nn.Module, accelerator: Accelerator) -> LossNormalizers:
    """What the losses of one update are divided by: the sums over its batches on all processes, per process.

    DDP averages gradients over processes, and the batches of a window add theirs up: the update is that of one process
    with one batch of everything.
    """
    config = accelerator.unwrap_model(model).config
    local = loss_normalizers(
        [target for batch in window for target in batch["labels"]],
        num_queries=config.num_queries,
        eos_coefficient=config.eos_coefficient,
        device=accelerator.device,
        least_targets=0,
    )
    total = accelerator.reduce(torch.stack(list(local)), reduction="sum") / accelerator.num_processes
    return LossNormalizers(num_targets=total[0].clamp(min=1), class_weight=total[1])


def train_step(
    model: nn.Module, window: Sequence[Batch], optimizer: Optimizer, accelerator: Accelerator, *, max_grad_norm: float
) -> dict[str, Tensor]:
    """One update from the batches of a window; returns detached loss terms of this process.

    Raises:
        FloatingPointError: a loss is not finite.
    """
    normalizers = window_normalizers(window, model, accelerator)
    terms: dict[str, Tensor] = {}
    for i, batch in enumerate(window):
        is_last = i + 1 == len(window)
        with nullcontext() if is_last else accelerator.no_sync(model):
            inputs = {name: batch[name] for name in ("pixel_values", "pixel_mask", "labels")}
            output = model(**inputs, normalizers=normalizers)
            if not output.loss.isfinite():
                image_ids = [int(target["image_id"]) for target in batch["labels"]]
                raise FloatingPointError(f"The loss is {output.loss.item()} with the images {image_ids}.")
            accelerator.backward(output.loss)
        for name, term in {"loss": output.loss, **output.loss_dict}.items():
            terms[name] = terms.get(name, 0) + term.detach()
    accelerator.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return terms


def train(
    model: nn.Module,
    batches: Iterable[Batch],
    optimizer: Optimizer,
    schedule: LRScheduler,
    accelerator: Accelerator,
    arguments: TrainingArguments,
    *,
    evaluate: Callable[[nn.Module], dict[str, float]],
    start_epoch: Callable[[int], None],
) -> dict[str, float]:
    """Trains and evaluates; everything is prepared by the accelerator.

    Args:
        model: the model.
        batches: one epoch of collated batches, again at every pass.
        optimizer: see `build_optimizer`.
        schedule: advanced once per update.
        accelerator: knows the processes and the precision.
        arguments: settings of the run.
        evaluate: the model to its metrics; called on every process.
        start_epoch: called with the number of each epoch before its first batch.

    Returns:
        The metrics of the last evaluation.
    """
    optimization, run = arguments.optimization, arguments.run
    step, metrics = 0, {}
    for epoch in range(optimization.epochs):
        model.train()
        start_epoch(epoch)
        started = time.perf_counter()
        for window in _windows(batches, optimization.gradient_accumulation_steps):
            terms = train_step(model, window, optimizer, accelerator, max_grad_norm=optimization.max_grad_norm)
            schedule.step()
            step += 1
            if step % run.log_every == 0:
                rate = schedule.get_last_lr()[0]
                record(
                    accelerator, run.output, {"step": step, "epoch": epoch, "rate": rate, **_mean(terms, accelerator)}
                )
            if step == optimization.max_steps:
                break
        is_last = epoch + 1 == optimization.epochs or step == optimization.max_steps
        if is_last or (epoch + 1) % run.evaluate_every == 0:
            seconds = time.perf_counter() - started
            metrics = evaluate(model)
            record(accelerator, run.output, {"step": step, "epoch": epoch, "epoch_seconds": seconds, **metrics})
        if is_last:
            break
    return metrics


def record(accelerator: Accelerator, output: str, values: dict[str, Any]) -> None:
    """Prints a line of numbers on the main process, and appends it to `metrics.jsonl`."""
    if not accelerator.is_main_process:
        return
    rounded = {name: round(v, 6) if isinstance(v, float) else v for name, v in values.items()}
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(rounded) + "\n")
    shown = {name: v for name, v in rounded.items() if not name[-1].isdigit()}
    logger.info("  ".join(f"{name} {v:.4g}" if isinstance(v, float) else f"{name} {v}" for name, v in shown.items()))


def _windows(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Consecutive lists of `size` batches; the last may be shorter."""
    iterator = iter(batches)
    while window := list(islice(iterator, size)):
        yield window


def _mean(terms: dict[str, Tensor], accelerator: Accelerator) -> dict[str, float]:
    values = accelerator.reduce(torch.stack(list(terms.values())), reduction="mean")
    return dict(zip(terms, values.tolist(), strict=True))
