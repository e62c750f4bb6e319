"""The training loop: plain steps over Accelerate, each of which can be called alone.

Follows engine.py of facebookresearch/detr (29901c5), with these differences:
  * losses are divided by the targets of all processes and accumulated batches, so that neither number changes the
    gradient;
  * a run can be stopped and resumed at any update.
"""

import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from ..losses import LossNormalizers, loss_normalizers
from ..matcher import Labels, match
from .batches import Batch
from .state import Run
from .validation import validate

logger = logging.getLogger(__name__)


def run_epochs(run: Run) -> int | None:
    """Trains to the end of the run, or until a signal stops it after an update; returns the number of the signal."""
    progress, settings = run.progress, run.settings
    with stop_signals(run.accelerator) as received:
        while not progress.is_finished:
            run.batches.start_epoch(progress.epoch)
            if train_epoch(run):
                return received[0] if received else signal.SIGTERM  # another process received it
            progress.epoch, progress.windows = progress.epoch + 1, 0
            is_last = progress.step == run.total_steps
            if is_last or progress.epoch % settings.run.evaluate_every == 0:
                quality = validate(run)
                without_gain = 0 if quality > progress.best else progress.evaluations_without_gain + 1
                progress.best, progress.evaluations_without_gain = max(quality, progress.best), without_gain
                progress.is_finished = is_last or without_gain == settings.optimization.patience
                run.save()
    return None


def train_epoch(run: Run) -> bool:
    """Does the remaining updates of an epoch; returns whether a signal stopped them."""
    settings, accelerator, progress = run.settings, run.accelerator, run.progress
    steps, max_grad_norm = settings.optimization.gradient_accumulation_steps, settings.optimization.max_grad_norm
    run.model.train()
    done = progress.windows * steps
    batches = iter(accelerator.skip_first_batches(run.loader, done) if done else run.loader)
    while window := list(islice(batches, steps)):
        progress.step += 1
        progress.windows += 1
        is_logged = progress.step % settings.run.log_every == 0
        terms = train_step(
            run.model, window, run.optimizer, accelerator, max_grad_norm=max_grad_norm, with_errors=is_logged
        )
        rate = float(run.schedule.get_last_lr()[0])
        run.schedule.step()
        if run.averaged is not None:
            run.averaged.update_parameters(accelerator.unwrap_model(run.model))
        run.log.advance(images=sum(len(batch["labels"]) for batch in window) * accelerator.num_processes)
        if is_logged:
            means = accelerator.reduce(torch.stack(list(terms.values())), reduction="mean").tolist()
            run.log.losses(progress.step, progress.epoch, rate=rate, **dict(zip(terms, means, strict=True)))
        is_stopped = accelerator.check_trigger()
        if is_stopped or progress.step % settings.run.checkpoint_every == 0:
            run.save()
        if is_stopped or progress.step == run.total_steps:
            return is_stopped
    return False


def train_step(
    model: nn.Module,
    window: Sequence[Batch],
    optimizer: Optimizer,
    accelerator: Accelerator,
    *,
    max_grad_norm: float,
    with_errors: bool = False,
) -> dict[str, Tensor]:
    """Does one update with the gradients of all batches of a window.

    Args:
        model: in training mode; prepared by the accelerator, as the optimizer.
        window: batches whose gradients are accumulated.
        optimizer: of the model.
        accelerator: of the run.
        max_grad_norm: the gradient is clipped to this norm.
        with_errors: whether to return `class_error` and `cardinality_error` of the last batch.

    Returns:
        Detached loss terms of this process, and `gradient_norm` of all processes before clipping.

    Raises:
        FloatingPointError: a loss or the gradient is not finite; the weights are unchanged.
    """
    normalizers = window_normalizers(window, model, accelerator)
    terms: dict[str, Tensor] = {}
    for i, batch in enumerate(window):
        is_last = i + 1 == len(window)
        with nullcontext() if is_last else accelerator.no_sync(model):
            output = finite_output(model, batch, normalizers)
            accelerator.backward(output.loss)
        for name, term in {"loss": output.loss, **output.loss_dict}.items():
            terms[name] = terms.get(name, 0) + term.detach()
    terms["gradient_norm"] = torch.as_tensor(accelerator.clip_grad_norm_(model.parameters(), max_grad_norm)).detach()
    # Infinite gradients are normal with the gradient scaler of float16, which skips such updates.
    if accelerator.scaler is None and not terms["gradient_norm"].isfinite():
        ids = [number for batch in window for number in image_ids(batch)]
        raise FloatingPointError(f"The gradient is {terms['gradient_norm'].item()} for the images {ids}.")
    if with_errors:
        config = accelerator.unwrap_model(model).config
        costs = {name: getattr(config, name) for name in ("class_cost", "bbox_cost", "giou_cost")}
        terms |= prediction_errors(output.logits, output.pred_boxes, window[-1]["labels"], costs=costs)
    optimizer.step()
    optimizer.zero_grad()
    return terms


def window_normalizers(window: Sequence[Batch], model: nn.Module, accelerator: Accelerator) -> LossNormalizers:
    """Returns what the losses of an update are divided by: sums over its batches on all processes, per process.

    DDP averages gradients over processes, and the gradients of a window are added, so the update equals that of one
    process with all images in one batch.
    """
    config, labels = accelerator.unwrap_model(model).config, [target for batch in window for target in batch["labels"]]
    settings = {"num_queries": config.num_queries, "eos_coefficient": config.eos_coefficient, "least_targets": 0}
    local = loss_normalizers(labels, **settings, device=accelerator.device)
    total = accelerator.reduce(torch.stack(list(local)), reduction="sum") / accelerator.num_processes
    return LossNormalizers(num_targets=total[0].clamp(min=1), class_weight=total[1])


def finite_output(model: nn.Module, batch: Batch, normalizers: LossNormalizers) -> Any:
    """Returns the model's output; raises FloatingPointError if the matching's input or the loss is not finite."""
    try:
        output = model(**batch, normalizers=normalizers)
    except FloatingPointError as error:  # from the matcher
        raise FloatingPointError(f"{str(error).rstrip('.')}, for the images {image_ids(batch)}.") from error
    if not output.loss.isfinite():
        raise FloatingPointError(f"The loss is {output.loss.item()} for the images {image_ids(batch)}.")
    return output


def image_ids(batch: Batch) -> list[int]:
    """Returns the image ids of a batch's targets."""
    return [int(target["image_id"]) for target in batch["labels"]]


@torch.no_grad()
def prediction_errors(logits: Tensor, boxes: Tensor, labels: Labels, *, costs: dict[str, float]) -> dict[str, Tensor]:
    """Computes what the reference logs beside the losses.

    Args:
        logits: (B, Q, K+1) of one layer.
        boxes: (B, Q, 4) of this layer, cxcywh.
        labels: B targets.
        costs: weights of the matching.

    Returns:
        `class_error`: percentage of matched queries whose best class is wrong; `cardinality_error`: mean difference
        between the numbers of predicted and true objects of an image.
    """
    matching = match(logits[None], boxes[None], labels, costs=costs)
    classes = torch.cat([target["class_labels"] for target in labels])
    best = logits.argmax(-1)
    wrong = best[matching.image, matching.query[-1]] != classes[matching.target[-1]]
    predicted = (best != logits.shape[-1] - 1).sum(1)
    counts = torch.tensor([len(target["class_labels"]) for target in labels], device=logits.device)
    return {
        "class_error": 100 * wrong.float().sum() / max(len(wrong), 1),
        "cardinality_error": (predicted - counts).abs().float().mean(),
    }


@contextmanager
def stop_signals(accelerator: Accelerator) -> Iterator[list[int]]:
    """Turns SIGTERM and Ctrl-C into `accelerator.check_trigger` on every process, and yields a list of those received.

    A second Ctrl-C stops at once.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # other threads cannot handle signals
        yield received
        return

    def stop(number: int, _frame: Any) -> None:
        logger.info("%s: stopping after this update", signal.Signals(number).name)
        received.append(number)
        accelerator.set_trigger()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
