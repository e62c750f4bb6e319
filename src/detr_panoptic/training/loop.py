"""The training loop and its evaluations: plain steps over Accelerate, each of which can be called alone.

Follows engine.py of facebookresearch/detr (29901c5), with these differences:
  * losses are divided by the targets of all processes and accumulated batches, so that neither number changes the
    gradient;
  * a run can be stopped and resumed at any update.
"""

import logging
import math
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from datasets import Dataset
from PIL import Image
from torch import Tensor, nn
from torch.optim import Optimizer

from ..box_ops import fetch
from ..data import NamedRecords, PanopticCollator, PanopticData
from ..data.files import whole_files
from ..data.records import segmentation_ids
from ..data.target_batch import TargetBatch
from ..evaluation import evaluate
from ..inference import Predictor
from ..inference.loading import quiet_transformers
from ..losses import LossNormalizers, loss_normalizers
from ..matcher import Labels, match, moved_labels
from ..visualization import draw_side_by_side, stack
from .data import Batch, collate
from .optimization import unchanged_random_state
from .reports import PICTURE, write_run_report
from .state import Run

logger = logging.getLogger(__name__)

PICTURED_IMAGES = 4
UPDATES_BETWEEN_EVALUATIONS = 50


def run_epochs(run: Run) -> int | None:
    """Trains to the end of the run, or until a signal stops it after an update; returns the number of the signal."""
    progress, settings, every = run.progress, run.settings, epochs_between_evaluations(run)
    with stop_signals(run.accelerator) as received:
        while not progress.is_finished:
            run.batches.start_epoch(progress.epoch, (progress.step - progress.windows) / run.total_steps)
            if train_epoch(run):
                return received[0] if received else signal.SIGTERM  # another process received it
            progress.epoch, progress.windows = progress.epoch + 1, 0
            is_last = progress.step == run.total_steps
            if is_last or progress.epoch % every == 0:
                quality = validate(run)
                without_gain = 0 if quality > progress.best else progress.evaluations_without_gain + 1
                progress.best, progress.evaluations_without_gain = max(quality, progress.best), without_gain
                progress.is_finished = is_last or without_gain == settings.optimization.patience
                run.save()
    return None


def epochs_between_evaluations(run: Run) -> int:
    """Returns `evaluate_every`; few images have short epochs, each of which would otherwise cost an evaluation."""
    every = run.settings.run.evaluate_every
    if every != "auto":
        return every
    updates = math.ceil(len(run.loader) / run.settings.optimization.gradient_accumulation_steps)
    return math.ceil(UPDATES_BETWEEN_EVALUATIONS / updates)


def train_epoch(run: Run) -> bool:
    """Does the remaining updates of an epoch; returns whether a signal stopped them."""
    settings, accelerator, progress = run.settings, run.accelerator, run.progress
    steps, max_grad_norm = settings.optimization.gradient_accumulation_steps, settings.optimization.max_grad_norm
    run.model.train()
    done = progress.windows * steps
    batches = iter(accelerator.skip_first_batches(run.loader, done) if done else run.loader)
    while progress.step < run.total_steps and (window := list(islice(batches, steps))):
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
        if is_stopped:
            return True
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
    """Does one update with the gradients of all batches of a window, clipped to a norm.

    Returns detached loss terms of this process, `gradient_norm` of all processes before clipping and, if asked for,
    the errors of the last batch. Raises FloatingPointError before the update if a loss or gradient is not finite.
    """
    normalizers = window_normalizers(window, model, accelerator)
    terms: dict[str, Tensor] = {}
    losses: list[Tensor] = []
    for i, batch in enumerate(window):
        is_last = i + 1 == len(window)
        with nullcontext() if is_last else accelerator.no_sync(model):
            output = matched_output(model, batch, normalizers)
            accelerator.backward(output.loss)
        losses.append(output.loss)
        for name, term in {"loss": output.loss, **output.loss_dict}.items():
            terms[name] = terms.get(name, 0) + term.detach()
    terms["gradient_norm"] = torch.as_tensor(accelerator.clip_grad_norm_(model.parameters(), max_grad_norm)).detach()
    check_finite(window, losses, terms["gradient_norm"], scaled=accelerator.scaler is not None)
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
    settings: dict[str, Any] = {name: getattr(config, name) for name in ("num_queries", "eos_coefficient")}
    local = loss_normalizers(labels, **settings, device=accelerator.device, least_targets=0)
    total = accelerator.reduce(torch.stack(list(local)), reduction="sum") / accelerator.num_processes
    return LossNormalizers(num_targets=total[0].clamp(min=1), class_weight=total[1])


def matched_output(model: nn.Module, batch: Batch, normalizers: LossNormalizers) -> Any:
    """Returns the model's output; raises FloatingPointError if the matching's input is not finite."""
    labels = batch["labels"]
    if isinstance(labels, TargetBatch):
        batch = batch | {"labels": labels.with_masks()}
    try:
        return model(**batch, normalizers=normalizers)
    except FloatingPointError as error:
        raise FloatingPointError(f"{str(error).rstrip('.')}, for the images {image_ids(batch)}.") from error


def check_finite(window: Sequence[Batch], losses: Sequence[Tensor], gradient_norm: Tensor, *, scaled: bool) -> None:
    """Raises FloatingPointError if a batch's loss is not finite, or the gradient; the CPU waits for the GPU once."""
    *values, norm = (float(value) for value in fetch(*losses, gradient_norm))
    for batch, value in zip(window, values, strict=True):
        if not math.isfinite(value):
            raise FloatingPointError(f"The loss is {value} for the images {image_ids(batch)}.")
    # Infinite gradients are normal with the gradient scaler of float16, which skips such updates.
    if not scaled and not math.isfinite(norm):
        ids = [number for batch in window for number in image_ids(batch)]
        raise FloatingPointError(f"The gradient is {norm} for the images {ids}.")


def image_ids(batch: Batch) -> list[int]:
    """Returns the image ids of a batch's targets."""
    return [int(target["image_id"]) for target in batch["labels"]]


@torch.no_grad()
def prediction_errors(logits: Tensor, boxes: Tensor, labels: Labels, *, costs: dict[str, float]) -> dict[str, Tensor]:
    """Compares one layer's logits (B, Q, K+1) and boxes (B, Q, 4) with B targets, as the reference logs it.

    Returns `class_error`, the percentage of matched queries whose best class is wrong, and `cardinality_error`, the
    mean difference between the numbers of predicted and true objects of an image. Places of queries do not count.
    """
    labels = moved_labels(labels, logits.device)
    matching = match(logits[None], boxes[None], labels, costs=costs).to(logits.device)
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
    """Turns SIGTERM and the first Ctrl-C into `accelerator.check_trigger`; yields a list of those received."""
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


# ------ evaluation


def validate(run: Run) -> float:
    """Measures the current model, logs the metrics and saves the model if it is the best so far.

    Returns PQ in [0, 1]; in stage "boxes", which trains no masks, the negative loss.
    """
    model, accelerator, progress = run.evaluated, run.accelerator, run.progress
    with unchanged_random_state(accelerator.device):
        metrics = measure(run, model)
    quality = metrics["pq"] if "pq" in metrics else -metrics["validation_loss"]
    on_training = run.data.is_measured_on_training
    run.log.evaluation(progress.step, progress.epoch, metrics, on_training=on_training)
    if accelerator.is_main_process:
        pictures = draw_validation(run, model)
        run.log.pictures(progress.step, pictures)
        if quality >= progress.best:  # of equal models, the one that has seen more images
            publish(run, model, pictures)
    accelerator.wait_for_everyone()
    return quality


def measure(run: Run, model: Any) -> dict[str, float]:
    """Returns the metrics of the validation images and, if the settings ask for it, PQ of some training images."""
    if run.settings.model.stage == "boxes":
        return {"validation_loss": detection_loss(run, model)}
    metrics = panoptic_metrics(run, model, run.data.validation)
    if count := min(run.settings.run.evaluate_training, len(run.data.train)):
        training = panoptic_metrics(run, model, run.data.train.select(range(count)))
        metrics |= {f"training_{name}": training[name] for name in ("pq", "pq_things", "pq_stuff")}
    return metrics


def panoptic_metrics(run: Run, model: Any, records: Dataset) -> dict[str, float]:
    """Returns PQ, SQ and RQ in [0, 1] of all classes, things and stuff, and `pq/NAME` of each class that occurs."""
    data = PanopticData(records, run.data.categories)
    evaluation = evaluate(Predictor(model, run.processor), data, average_precision=False, progress=False)
    if records is run.data.validation:
        run.validation = evaluation
    quality = evaluation.quality
    groups = {"": quality.overall, "_things": quality.things, "_stuff": quality.stuff}
    metrics = {f"{name}{end}": getattr(group, name) for end, group in groups.items() for name in ("pq", "sq", "rq")}
    return metrics | {f"pq/{name}": row.pq for name, row in quality.per_class.items() if row.occurs}


@torch.no_grad()
def detection_loss(run: Run, model: Any) -> float:
    """Returns the mean loss of the validation images without masks and without augmentation."""
    records, accelerator = NamedRecords(run.data.validation), run.accelerator
    collator, total = PanopticCollator(run.processor, as_maps=True), torch.zeros((), device=accelerator.device)
    model.eval()
    for index in range(accelerator.process_index, len(records), accelerator.num_processes):
        batch = collate(collator, [records[index]], with_masks=False)
        total += model(**send_to_device(batch, accelerator.device)).loss
    return float(accelerator.reduce(total, reduction="sum")) / len(records)


def draw_validation(run: Run, model: Any) -> list[Image.Image]:
    """Draws annotation and prediction of the first validation images."""
    predictor, names, pictures = Predictor(model, run.processor), run.data.categories.id2label, []
    for record in islice(NamedRecords(run.data.validation), PICTURED_IMAGES):
        truth = {**record, "segmentation": segmentation_ids(record["segmentation"])}
        found = predictor(record["image"])
        prediction = {"segmentation": found.segmentation, "segments_info": found.segments_info}
        pictures.append(draw_side_by_side(record["image"], truth, prediction, names))
    return pictures


def publish(run: Run, model: Any, pictures: list[Image.Image]) -> None:
    """Saves the model, its image processor and the pictures in the output folder."""
    with whole_files(run.folder, "The model") as folder, quiet_transformers():
        model.save_pretrained(folder)
        run.processor.save_pretrained(folder)
        stack(pictures).save(folder / PICTURE)
    run.best = run.validation
    write_run_report(run.folder, run.data, run.plan, run.best)
