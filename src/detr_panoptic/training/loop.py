"""The training loop: plain steps over Accelerate, each of which can be called alone.

What it follows and where it differs: engine.py of facebookresearch/detr (29901c5), with losses divided by what all
processes and accumulated batches hold together, so that neither number changes the gradient; and with a place that a
stopped run finds again.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from ..losses import LossNormalizers, loss_normalizers
from ..matcher import match
from .arguments import TrainingArguments
from .checkpoints import Progress
from .matching_errors import matching_errors
from .tracking import RunLog

Batch = dict[str, Any]


@dataclass
class TrainingState:
    """All that an update changes; prepared by the accelerator, and registered with it for checkpoints."""

    model: nn.Module
    whole: nn.Module
    """The model without the accelerator's wrapper; where weights are sharded, a copy for `gather` to fill."""
    optimizer: Optimizer
    schedule: LRScheduler
    averaged: AveragedModel | None
    """The moving average of the weights, where there is one: what is measured and saved."""
    progress: Progress

    @torch.no_grad()
    def gather(self) -> nn.Module:
        """The model with all its weights, to be measured or averaged; called on every process."""
        for own, current in zip(self.whole.parameters(), self.model.parameters(), strict=True):
            if own is not current:
                own.copy_(unsharded(current))
        return self.whole


def unsharded(tensor: Tensor) -> Tensor:
    """The whole of a tensor of which each process holds a part (FSDP2), or the tensor; called on every process."""
    gather = getattr(tensor, "full_tensor", None)  # of a `DTensor`, a class that not every build of torch has
    return tensor if gather is None else gather()


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
    model: nn.Module,
    window: Sequence[Batch],
    optimizer: Optimizer,
    accelerator: Accelerator,
    *,
    max_grad_norm: float,
    with_errors: bool = False,
) -> dict[str, Tensor]:
    """One update from the batches of a window.

    Returns:
        Detached loss terms of this process; `gradient_norm` before clipping, of all; `with_errors` also the class and
        cardinality errors of the last batch.

    Raises:
        FloatingPointError: a loss or the gradient is not finite; the weights are as they were.
    """
    normalizers = window_normalizers(window, model, accelerator)
    terms: dict[str, Tensor] = {}
    for i, batch in enumerate(window):
        is_last = i + 1 == len(window)
        with nullcontext() if is_last else accelerator.no_sync(model):
            with accelerator.autocast() if accelerator.is_fsdp2 else nullcontext():  # else the wrapper does it
                output = finite_output(model, batch, normalizers)
            accelerator.backward(output.loss)
        for name, term in {"loss": output.loss, **output.loss_dict}.items():
            terms[name] = terms.get(name, 0) + term.detach()
    norm = accelerator.clip_grad_norm_(model.parameters(), max_grad_norm)
    terms["gradient_norm"] = unsharded(torch.as_tensor(norm).detach())
    # The scaler of float16 meets infinite gradients as a matter of course, and leaves such updates out by itself.
    if accelerator.scaler is None and not terms["gradient_norm"].isfinite():
        ids = [number for batch in window for number in image_ids(batch)]
        raise FloatingPointError(f"The gradient is {terms['gradient_norm'].item()} with the images {ids}.")
    if with_errors:
        terms |= prediction_errors(output, window[-1]["labels"], accelerator.unwrap_model(model).config)
    optimizer.step()
    optimizer.zero_grad()
    return terms


def finite_output(model: nn.Module, batch: Batch, normalizers: LossNormalizers) -> Any:
    """The model's output for a batch of training.

    Raises:
        FloatingPointError: its loss, or what is matched, is not finite; names the images.
    """
    try:
        output = model(**batch, normalizers=normalizers)
    except FloatingPointError as error:  # of the matcher
        raise FloatingPointError(f"{str(error).rstrip('.')}, with the images {image_ids(batch)}.") from error
    if not output.loss.isfinite():
        raise FloatingPointError(f"The loss is {output.loss.item()} with the images {image_ids(batch)}.")
    return output


def image_ids(batch: Batch) -> list[int]:
    """Of a batch's targets."""
    return [int(target["image_id"]) for target in batch["labels"]]


@torch.no_grad()
def prediction_errors(output: Any, labels: Sequence[dict[str, Any]], config: Any) -> dict[str, Tensor]:
    """Class and cardinality errors of the last layer, see `matching_errors`."""
    costs = {name: getattr(config, name) for name in ("class_cost", "bbox_cost", "giou_cost")}
    logits = output.logits.detach()
    matching = match(logits[None], output.pred_boxes.detach()[None], labels, costs=costs)
    return matching_errors(logits, labels, matching)


@dataclass(frozen=True)
class Surroundings:
    """What the loop calls at its turns; on every process."""

    start_epoch: Callable[[int], None]
    """Takes the number of an epoch before its first batch."""
    evaluate: Callable[[], float]
    """Returns the quality of the state as it is, and saves the model if it is the best."""
    save: Callable[[], None]
    """Writes a checkpoint."""
    log: RunLog


def train(
    state: TrainingState,
    batches: Any,
    accelerator: Accelerator,
    arguments: TrainingArguments,
    *,
    total_steps: int,
    surroundings: Surroundings,
) -> None:
    """Trains from where the state is to the end of the run, or to a SIGTERM.

    Args:
        state: see `TrainingState`; `progress.is_finished` tells how it ended.
        batches: a prepared data loader: one epoch of collated batches, again at every pass.
        accelerator: knows the processes and the precision.
        arguments: settings of the run.
        total_steps: updates of the whole run.
        surroundings: see `Surroundings`.
    """
    optimization, progress = arguments.optimization, state.progress
    with sigterm_as_trigger(accelerator):
        while not progress.is_finished:
            surroundings.start_epoch(progress.epoch)
            is_stopped = train_epoch(
                state, batches, accelerator, arguments, total_steps=total_steps, surroundings=surroundings
            )
            if is_stopped:
                return
            progress.epoch, progress.windows = progress.epoch + 1, 0
            is_last = progress.step == total_steps
            if is_last or progress.epoch % arguments.run.evaluate_every == 0:
                quality = surroundings.evaluate()
                is_better = quality > progress.best
                progress.best = max(quality, progress.best)
                progress.evaluations_without_gain = 0 if is_better else progress.evaluations_without_gain + 1
                progress.is_finished = is_last or progress.evaluations_without_gain == optimization.patience
                surroundings.save()


def train_epoch(
    state: TrainingState,
    batches: Any,
    accelerator: Accelerator,
    arguments: TrainingArguments,
    *,
    total_steps: int,
    surroundings: Surroundings,
) -> bool:
    """The updates of one epoch that are left to do; True if a SIGTERM ended them. Arguments as in `train`."""
    optimization, run, progress, log = arguments.optimization, arguments.run, state.progress, surroundings.log
    state.model.train()
    for window in windows(batches, optimization.gradient_accumulation_steps, progress.windows, accelerator):
        progress.step += 1
        progress.windows += 1
        is_logged = progress.step % run.log_every == 0
        terms = train_step(
            state.model,
            window,
            state.optimizer,
            accelerator,
            max_grad_norm=optimization.max_grad_norm,
            with_errors=is_logged,
        )
        rate = float(state.schedule.get_last_lr()[0])
        state.schedule.step()
        if state.averaged is not None:
            state.averaged.update_parameters(state.gather())
        log.advance(images=sum(len(batch["labels"]) for batch in window) * accelerator.num_processes)
        if is_logged:
            log.losses(progress, rate=rate, **mean_over_processes(terms, accelerator))
        is_stopped = accelerator.check_trigger()
        if is_stopped or progress.step % run.checkpoint_every == 0:
            surroundings.save()
        if is_stopped:
            return True
        if progress.step == total_steps:
            break
    return False


def windows(batches: Any, size: int, done: int, accelerator: Accelerator) -> Iterator[list[Batch]]:
    """Lists of `size` consecutive batches, the last may be shorter; without the first `done` lists."""
    iterator = iter(accelerator.skip_first_batches(batches, done * size) if done else batches)
    while window := list(islice(iterator, size)):
        yield window


def mean_over_processes(terms: dict[str, Tensor], accelerator: Accelerator) -> dict[str, float]:
    """Each term's mean, on every process."""
    values = accelerator.reduce(torch.stack(list(terms.values())), reduction="mean")
    return dict(zip(terms, values.tolist(), strict=True))


@contextmanager
def sigterm_as_trigger(accelerator: Accelerator) -> Iterator[None]:
    """Lets `accelerator.check_trigger` say on every process that one of them was asked to end."""
    previous = signal.signal(signal.SIGTERM, lambda *_: accelerator.set_trigger())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class EpochOrder(torch.utils.data.Sampler[int]):
    """A shuffled order that is known from the seed and the epoch, so that a run that goes on finds its place."""

    def __init__(self, count: int, seed: int) -> None:
        """Order of `count` records."""
        self.count, self.seed, self.epoch = count, seed, 0

    def __len__(self) -> int:
        """Number of records."""
        return self.count

    def __iter__(self) -> Iterator[int]:
        """The records' numbers in the order of the epoch."""
        generator = torch.Generator().manual_seed((self.seed << 32) + self.epoch)
        yield from torch.randperm(self.count, generator=generator).tolist()
