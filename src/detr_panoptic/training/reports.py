"""What a run tells: its plan, a log of losses and metrics, and what a finished run leaves to read."""

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from ..data.files import written_whole
from ..data.hub_names import hub_name
from ..evaluation import Evaluation
from ..evaluation.tables import percent
from ..sharing.card import MeasuredQuality, write_card
from ..visualization.curves import draw_curves
from ..visualization.report import Section, write_report
from .data import SPLIT_FILE, TrainingData
from .optimization import BACKBONE, WARMUP_SHARE, effective_batch, rate_factor
from .settings import OptimizationSettings, TrainingSettings

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
PICTURE, CURVES, REPORT = "validation.png", "training_curves.png", "report.html"
SHOWN_TERMS = ("loss", "loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice")


def describe_plan(
    settings: TrainingSettings, data: TrainingData, model: nn.Module, processes: int
) -> tuple[list[str], int]:
    """Returns lines about data, parameters, updates and learning rates, and the number of updates of the run."""
    optimization, stage = settings.optimization, settings.model.stage
    batch = effective_batch(optimization, processes)
    steps_per_epoch = math.ceil(len(data.train) / batch)
    total_steps = min(filter(None, (steps_per_epoch * (optimization.epochs or 0), optimization.max_steps)))
    warmup = min(optimization.warmup_steps, round(WARMUP_SHARE * total_steps))
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    frozen = sum(p.numel() for p in model.parameters()) - sum(trained.values())
    lines = [
        *(f"{name}: {text}" for name, text in data.describe().items()),
        f"recipe: {settings.recipe}, stage {stage}"
        + (", with aids" if settings.model.aids and stage != "boxes" else ""),
        f"parameters: {sum(trained.values()) / 1e6:.3f} M trained, {frozen / 1e6:.3f} M frozen",
        f"steps: {total_steps} updates of {batch} images, {steps_per_epoch} per epoch, "
        f"{total_steps / steps_per_epoch:.4g} epochs",
        *describe_rates(optimization, batch, is_backbone_frozen=not any(BACKBONE in n for n in trained)),
        f"schedule: {optimization.schedule}, {warmup} updates of warm-up"
        + (f", drop after {optimization.drop_at:.0%} of the run" if optimization.schedule == "step" else ""),
    ]
    if optimization.ema_decay is not None:
        lines.append(f"evaluated and saved: moving average of the weights, decay {optimization.ema_decay}")
    return lines, total_steps


def describe_rates(settings: OptimizationSettings, batch: int, *, is_backbone_frozen: bool = False) -> list[str]:
    """Returns a line for each learning rate, with its scaling."""
    factor, ratio = rate_factor(settings, batch), f"{batch}/{settings.reference_batch}"
    scale = {"none": "", "linear": f" x {ratio}", "sqrt": f" x sqrt({ratio})"}[settings.rate_scaling]
    rates = (settings.learning_rate, settings.backbone_learning_rate)
    texts = [f"{rate:.3g}{scale}" + (f" = {rate * factor:.3g}" if scale else "") for rate in rates]
    return [f"learning rate: {texts[0]}", f"backbone: {'frozen' if is_backbone_frozen else texts[1]}"]


class RunLog:
    """Shows and records numbers on the main process: a progress bar, the log, `metrics.jsonl` and trackers.

    A bar on a terminal takes the place of logged losses. Of the run's updates, some may be `done` already.
    """

    def __init__(
        self, accelerator: Accelerator, folder: Path, *, total_steps: int, done: int, progress: bool = True
    ) -> None:
        self.accelerator, self.path = accelerator, folder / METRICS
        self.images, self.since = 0, time.perf_counter()
        is_shown = progress and accelerator.is_main_process
        self.bar: Any = tqdm(total=total_steps, initial=done, unit="update", disable=None if is_shown else True)

    def advance(self, *, images: int) -> None:
        """Counts an update of some images."""
        self.images += images
        self.bar.update()

    def losses(self, step: int, epoch: int, *, rate: float, **terms: float) -> None:
        """Records the loss terms of an update, with the images per second since the last call and the memory."""
        speed = self._restart_clock()
        used = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else psutil.Process().memory_info().rss
        memory = used / 2**30  # GiB: the peak on the GPU, or of this process without one
        self._record(step, epoch, {"rate": rate, **terms, "images_per_second": speed, "memory_gib": memory})
        shown = "  ".join(f"{name.removeprefix('loss_')} {terms[name]:.3g}" for name in SHOWN_TERMS if name in terms)
        if self.bar.disable:
            text = "step %d  epoch %d  %s  rate %.2g  %.3g images/s  %.1f GiB"
            logger.info(text, step, epoch, shown, rate, speed, memory)
        self.bar.set_postfix_str(shown)

    def evaluation(self, step: int, epoch: int, metrics: Mapping[str, float], *, on_training: bool) -> None:
        """Records an evaluation; metrics of single classes, which have a slash in their names, are not shown."""
        self._record(step, epoch, metrics)
        on = "training " if on_training else ""
        shown = "  ".join(f"{on}{name} {value:.4g}" for name, value in metrics.items() if "/" not in name)
        with tqdm.external_write_mode():
            logger.info("step %d  epoch %d  %s", step, epoch, shown)
        self._restart_clock()  # an evaluation is not training time

    def pictures(self, step: int, pictures: Sequence[Image.Image]) -> None:
        """Hands pictures to the trackers that accept them, each separately because their sizes differ."""
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images") and tracker.name != "aim":  # Aim does not accept lists
                named = {f"validation/{i}": np.asarray(picture)[None] for i, picture in enumerate(pictures)}
                options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images(named, step=step, **options)

    def _restart_clock(self) -> float:
        now = time.perf_counter()
        speed = self.images / (now - self.since)
        self.images, self.since = 0, now
        return speed

    def _record(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        if self.accelerator.is_main_process:
            rounded = {name: float(f"{value:.6g}") for name, value in values.items()}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "epoch": epoch, **rounded}) + "\n")
        self.accelerator.log(dict(values), step=step)


def write_split(folder: Path, data: TrainingData, *, is_writer: bool) -> None:
    """Lets one process write which images are held out; ValueError if an earlier part of the run held out others."""
    file = folder / SPLIT_FILE
    if data.held_out is None:
        return
    if file.is_file() and json.loads(file.read_text(encoding="utf-8")) != data.held_out:
        raise ValueError(f"`data` has changed since {file} was written: use another `output` or `overwrite`.")
    if not is_writer:
        return
    with written_whole(file) as part:
        part.write_text(json.dumps(data.held_out, indent=1, ensure_ascii=False), encoding="utf-8")


# ------ after the run


def best_evaluation(folder: Path) -> dict[str, Any]:
    """Returns the metrics of the best evaluation of a run; empty if masks were never evaluated."""
    return max((line for line in _read_metrics(folder) if "pq" in line), key=lambda line: line["pq"], default={})


def _read_metrics(folder: Path) -> list[dict[str, Any]]:
    path = folder / METRICS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def write_reports(
    folder: Path,
    model: Any,
    settings: TrainingSettings,
    data: TrainingData,
    plan: Sequence[str],
    best: Evaluation | None,
) -> None:
    """Draws the curves of a run, and writes its report and the model card beside its model."""
    if best is not None or not (folder / REPORT).is_file():  # a resumed run may have its best evaluation behind it
        write_run_report(folder, data, plan, best)
    else:
        draw_curves(_read_metrics(folder), folder / CURVES, on_training=data.is_measured_on_training)
    write_card(
        folder,
        model,
        data=data.describe(),
        recipe=plan,
        quality=measured_quality(best_evaluation(folder), data),
        picture=PICTURE,
        datasets=[name for name in (hub_name(settings.data.data or ""),) if name],
        base_model=hub_name(settings.model.model or ""),
    )


def write_run_report(folder: Path, data: TrainingData, plan: Sequence[str], best: Evaluation | None) -> None:
    """Writes losses so far, the plan, and the metrics and errors of the best evaluation as one page."""
    lines, measured = _read_metrics(folder), best_evaluation(folder)
    draw_curves(lines, folder / CURVES, on_training=data.is_measured_on_training)
    with Image.open(folder / CURVES) as curves:
        sections = [Section("Losses and panoptic quality", pictures=[("over the updates", curves.convert("RGB"))])]
    figures = []
    if best is not None and measured:
        on = " on training images" if data.is_measured_on_training else ""
        groups = {"PQ": best.quality.overall, "things": best.things, "stuff": best.stuff}
        figures = [(f"{name}{on}", percent(group.pq)) for name, group in groups.items()]
        about = f"{best.images} {'training ' if on else ''}images, after update {measured['step']}"
        sections += [Section(f"Best evaluation: {about}"), *best.sections()]
    sections.append(Section("The run", lines=plan))
    write_report(folder / REPORT, f"Training: {folder.name}", sections, figures=figures)


def measured_quality(best: Mapping[str, Any], data: TrainingData) -> MeasuredQuality | None:
    """Returns the quality for the model card, given the metrics of the best evaluation."""
    if not best:
        return None
    is_trained_on = data.is_measured_on_training
    groups = {"all": "", "things": "_things", "stuff": "_stuff"}
    return MeasuredQuality(
        dataset=data.train_name if is_trained_on else data.validation_name,
        how=f"{len(data.validation)} images, after update {best['step']}",
        groups={name: tuple(best[f"{key}{ending}"] for key in ("pq", "sq", "rq")) for name, ending in groups.items()},
        classes={name.removeprefix("pq/"): value for name, value in best.items() if name.startswith("pq/")},
        on_training_images=is_trained_on,
    )
