"""Where the numbers of a run go: a bar or lines on the terminal, `metrics.jsonl`, and trackers by Accelerate."""

import importlib.util
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from PIL import Image
from rich import progress as rich_progress

from .arguments import TrainingArguments
from .checkpoints import METRICS, Progress

logger = logging.getLogger(__name__)

PROJECT = "detr-panoptic"
BAR_TERMS = ("loss", "loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice")
GIB = 2**30


class RunLog:
    """Shows and keeps numbers; nothing happens on other processes than the main one.

    Args:
        accelerator: with its trackers.
        folder: gets `metrics.jsonl`.
        progress: of the run.
        total_steps: of the run.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, progress: Progress, *, total_steps: int) -> None:
        """Nothing is shown before the log is entered."""
        self.accelerator = accelerator
        self.path = folder / METRICS
        self.images, self.since = 0, time.perf_counter()
        columns = (
            rich_progress.BarColumn(20),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TimeElapsedColumn(),
            rich_progress.TimeRemainingColumn(),
            rich_progress.TextColumn("{task.description}"),
        )
        has_terminal = accelerator.is_main_process and sys.stderr.isatty()
        self.bar = rich_progress.Progress(*columns, disable=not has_terminal)
        self.task = self.bar.add_task("", total=total_steps, completed=progress.step)

    def __enter__(self) -> "RunLog":
        """Shows the bar."""
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves the terminal as it was."""
        self.bar.stop()

    def advance(self, *, images: int) -> None:
        """Counts an update."""
        self.images += images
        self.bar.advance(self.task)

    def losses(self, progress: Progress, *, rate: float, **terms: float) -> None:
        """Records what an update gave, with the speed since the last time and the memory now."""
        now = time.perf_counter()
        speed, self.images, self.since = self.images / (now - self.since), 0, now
        values = {"rate": rate, **terms, "images_per_second": speed, "memory_gib": memory_gib()}
        shown = "  ".join(f"{name.removeprefix('loss_')} {terms[name]:.3g}" for name in BAR_TERMS if name in terms)
        line = f"{shown}  rate {rate:.2g}  {speed:.3g} images/s  {values['memory_gib']:.1f} GiB"
        self._record(progress, values)
        if self.bar.disable:
            self.say(f"step {progress.step}  epoch {progress.epoch}  {line}")
        else:
            self.bar.update(self.task, description=line)

    def evaluation(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Records an evaluation; the names of single classes have a slash, and are not shown."""
        self._record(progress, metrics)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if "/" not in name)
        self.say(f"step {progress.step}  epoch {progress.epoch}  {shown}")
        self.since, self.images = time.perf_counter(), 0  # the time was not the updates'

    def pictures(self, progress: Progress, pictures: Sequence[Image.Image]) -> None:
        """Hands pictures to those trackers that take lists of them; each on its own, as their sizes differ."""
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images") and tracker.name != "aim":  # which takes no list
                named = {f"validation/{i}": np.asarray(picture)[None] for i, picture in enumerate(pictures)}
                options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images(named, step=progress.step, **options)

    def say(self, line: str) -> None:
        """Shows a line, above the bar if there is one."""
        if not self.bar.disable:
            self.bar.console.print(line, markup=False, highlight=False)
        elif self.accelerator.is_main_process:
            logger.info(line)

    def _record(self, progress: Progress, values: Mapping[str, float]) -> None:
        if self.accelerator.is_main_process:
            rounded = {name: float(f"{value:.6g}") for name, value in values.items()}
            line = json.dumps({"step": progress.step, "epoch": progress.epoch, **rounded})
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        self.accelerator.log(dict(values), step=progress.step)


def memory_gib() -> float:
    """The most that torch has held on this process's GPU; without one, what the process holds now."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    return psutil.Process().memory_info().rss / GIB


def tracker_names(tracker: str | None) -> list[str]:
    """Names of trackers in a text with commas.

    Raises:
        ValueError: Accelerate knows no such tracker, or its package is not installed.
    """
    names = [name.strip() for name in (tracker or "").split(",") if name.strip()]
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ValueError(f"`tracker` must be of {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}, got {name!r}.")
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"`tracker` {name} needs a package: pip install {name}")
    return names


def start_trackers(accelerator: Accelerator, arguments: TrainingArguments) -> None:
    """Opens the trackers and tells them the settings."""
    flat = {
        f"{section}.{name}": value if isinstance(value, bool | int | float) else str(value)
        for section, values in arguments.to_dict().items()
        for name, value in (values.items() if isinstance(values, dict) else [("name", values)])
    }
    accelerator.init_trackers(PROJECT, config=flat, init_kwargs={"wandb": {"dir": arguments.run.output}})
