"""Losses and metrics of a run: a progress bar, the log, `metrics.jsonl`, and trackers of Accelerate."""

import importlib.util
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from PIL import Image
from tqdm.auto import tqdm

from .settings import TrainingSettings

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
SHOWN_TERMS = ("loss", "loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice")
GIB = 2**30


class RunLog:
    """Shows and records numbers on the main process; does nothing on the others.

    Args:
        accelerator: with its trackers.
        folder: receives `metrics.jsonl`.
        total_steps: updates of the run.
        done: updates that are done already.
        progress: whether to show a progress bar on a terminal, in place of logged losses.
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
        values = {"rate": rate, **terms, "images_per_second": speed, "memory_gib": memory_gib()}
        shown = "  ".join(f"{name.removeprefix('loss_')} {terms[name]:.3g}" for name in SHOWN_TERMS if name in terms)
        self._record(step, epoch, values)
        if self.bar.disable:
            speed_and_memory = f"{speed:.3g} images/s  {values['memory_gib']:.1f} GiB"
            logger.info("step %d  epoch %d  %s  rate %.2g  %s", step, epoch, shown, rate, speed_and_memory)
        self.bar.set_postfix_str(shown)

    def evaluation(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Records an evaluation; metrics of single classes, which have a slash in their names, are not shown."""
        self._record(step, epoch, metrics)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if "/" not in name)
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


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Reads the lines of `metrics.jsonl` in the output folder of a run."""
    path = folder / METRICS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def memory_gib() -> float:
    """Returns the peak memory of this process on its GPU, or its resident memory if there is none, in GiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    return psutil.Process().memory_info().rss / GIB


def tracker_names(tracker: str | None) -> list[str]:
    """Splits names of trackers at commas; raises ValueError for one that is not installed."""
    names = [name.strip() for name in (tracker or "").split(",") if name.strip()]
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(
                f"`tracker` must be an installed tracker of Accelerate, such as tensorboard, got {name!r}."
            )
    return names


def start_trackers(accelerator: Accelerator, settings: TrainingSettings) -> None:
    """Opens the trackers and tells them the settings."""
    config = {n: v if isinstance(v, bool | int | float) else str(v) for n, v in settings.to_dict().items()}
    accelerator.init_trackers("detr-panoptic", config, init_kwargs={"wandb": {"dir": str(settings.run.output)}})
