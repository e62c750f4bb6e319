"""The state of a run: its parts, and its output folder.

    output/                     the best model so far and its image processor: a folder for `from_pretrained`
    output/checkpoints/step_N/  what the run needs to continue: weights, optimizer, random states, position
    output/training.yaml        the settings
    output/metrics.jsonl        losses and metrics

Files and folders get their final names when they are complete and on the disk, so everything in the output folder is
complete, even if the run is killed or the disk is full.
"""

import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, load, set_seed

from ..data.files import PARTIAL_PREFIX, check_folder, reported_failure, sync, written_whole
from ..data.plain_text import first_line
from ..evaluation import Evaluation
from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
from ..modeling_detr_panoptic import DetrPanopticForSegmentation
from .data import SPLIT_FILE, Batches, TrainingData
from .optimization import average_weights, build_optimizer, build_schedule, effective_batch, rate_factor
from .reports import METRICS, RunLog, describe_plan
from .settings import TrainingSettings, read_settings

CHECKPOINTS = "checkpoints"
STEP_PREFIX = "step_"
SETTINGS = "training.yaml"


@dataclass
class Progress:
    """Position of a run; part of every checkpoint."""

    step: int = 0  # updates
    epoch: int = 0  # complete passes over the data
    windows: int = 0  # updates of the current pass
    best: float = float("-inf")  # quality of an evaluation
    evaluations_without_gain: int = 0
    metrics_bytes: int = 0  # of `metrics.jsonl`; a resumed run repeats what comes after
    num_processes: int = 1
    is_finished: bool = False

    def state_dict(self) -> dict[str, Any]:
        """Returns what Accelerate saves."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        vars(self).update(state)


@contextmanager
def open_run(
    folder: Path, settings: TrainingSettings, accelerator: Accelerator, *, overwrite: bool = False
) -> Iterator[None]:
    """Locks the output folder and prepares it for a new run or one to resume, before any process continues.

    Raises on every process what `_prepare` raises, and ValueError if another run uses the folder.
    """
    refusal: list[Exception | None] = [None]
    with ExitStack() as stack:
        if accelerator.is_main_process:
            try:
                _lock(folder, stack)
                _prepare(folder, settings, overwrite)
            except (OSError, ValueError) as error:
                refusal = [error]
        broadcast_object_list(refusal)
        if refusal[0] is not None:
            raise refusal[0]
        yield


def _lock(folder: Path, stack: ExitStack) -> None:
    """Locks a folder until the stack or the process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    file = stack.enter_context((folder / ".lock").open("w"))
    with suppress(ImportError):  # Windows has no such lock
        import fcntl

        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock, data workers do not inherit it
        except BlockingIOError as error:
            raise ValueError(f"`output` {folder} belongs to another run that has not ended.") from error


def check_output(folder: Path, settings: TrainingSettings) -> None:
    """Raises ValueError if a folder holds the data, another model or a run with other settings."""
    check_folder(folder)
    if settings.data.data is not None and folder.resolve() == Path(settings.data.data).resolve():
        raise ValueError(f"`output` must not be the folder of the data, got {folder}.")
    if (folder / SETTINGS).is_file():
        if differences := settings.differences(TrainingSettings.from_dict(read_settings(folder / SETTINGS))):
            raise ValueError(
                f"`output` {folder} holds a run with other settings: {', '.join(differences)}. Use the same "
                "settings to resume it, another folder, or `overwrite` to discard it."
            )
    elif found := [name for name in ("config.json", "README.md") if (folder / name).is_file()]:
        raise ValueError(f"`output` {folder} holds a {found[0]} that no training wrote; use another folder.")


def recipe_of(folder: Path) -> str | None:
    """Returns the recipe of the run in a folder; None if there is no run."""
    return read_settings(folder / SETTINGS).get("recipe") if (folder / SETTINGS).is_file() else None


def _prepare(folder: Path, settings: TrainingSettings, overwrite: bool) -> None:
    """Writes the settings; raises what `check_output` raises, unless an earlier run is to be deleted."""
    if overwrite:
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        for name in (SETTINGS, METRICS, SPLIT_FILE):
            (folder / name).unlink(missing_ok=True)
    else:
        check_output(folder, settings)
    for leftover in (folder / CHECKPOINTS).glob(PARTIAL_PREFIX + "*"):
        shutil.rmtree(leftover)
    with written_whole(folder / SETTINGS, durable=True) as path:
        path.write_text(yaml.safe_dump(settings.to_dict(), sort_keys=False), encoding="utf-8")


def save_checkpoint(accelerator: Accelerator, folder: Path, progress: Progress, *, keep: int) -> None:
    """Saves a checkpoint and removes the oldest beyond `keep`; called on every process.

    Raises OSError if it could not be written; earlier checkpoints are still there.
    """
    metrics, checkpoints = folder / METRICS, folder / CHECKPOINTS
    progress.metrics_bytes = metrics.stat().st_size if metrics.is_file() else 0
    # The end of an epoch may have two checkpoints of the same step: before the evaluation, and after it.
    name = f"{progress.step:08d}" + ("" if progress.windows else f"_epoch_{progress.epoch}")
    partial, final = checkpoints / (PARTIAL_PREFIX + name), checkpoints / (STEP_PREFIX + name)
    what = f"The checkpoint of step {progress.step}"
    with reported_failure(what, checkpoints, partial):
        accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return
    with reported_failure(what, checkpoints, partial):
        sync([*partial.rglob("*"), partial, *([metrics] if metrics.is_file() else [])])
        partial.rename(final)
        sync([checkpoints])
    for old in sorted(checkpoints.glob(STEP_PREFIX + "*"))[:-keep]:
        shutil.rmtree(old.rename(checkpoints / (PARTIAL_PREFIX + old.name)))


def load_checkpoint(accelerator: Accelerator, folder: Path, progress: Progress) -> None:
    """Restores the last checkpoint of a run, if there is one; called on every process.

    Raises ValueError if it cannot be read, or if another number of processes wrote it, whose updates had other images.
    """
    found = sorted((folder / CHECKPOINTS).glob(STEP_PREFIX + "*"))
    if found:
        path = last = found[-1]
        try:
            # Accelerate unpickles the former without limits, and ignores errors in the latter.
            for path in (*last.glob("custom_checkpoint_*.pkl"), *last.glob("random_states_*.pkl")):
                load(path, map_location="cpu", weights_only=True)
            path = last
            accelerator.load_state(str(last))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # torch raises all kinds of errors for damaged files
            is_unsafe = isinstance(error, pickle.UnpicklingError)
            reason = f"{path.name} contains more than tensors and plain values." if is_unsafe else first_line(error)
            before = found[-2].name if len(found) > 1 else "the beginning"
            text = f"The checkpoint {last} is damaged: {reason} Delete that folder to resume from {before}."
            raise ValueError(text) from error
        if (count := progress.num_processes) != accelerator.num_processes:
            raise ValueError(f"`output` {folder} holds a run of {count} processes, not {accelerator.num_processes}.")
    progress.num_processes = accelerator.num_processes
    metrics = folder / METRICS
    if accelerator.is_main_process and metrics.is_file():
        os.truncate(metrics, min(progress.metrics_bytes, metrics.stat().st_size))


class Run:
    """The parts of a run, prepared by the accelerator, at the last checkpoint or at the beginning.

    The settings have a fixed batch size. Raises ValueError if the checkpoint cannot be read, or if nothing is trained.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        accelerator: Accelerator,
        data: TrainingData,
        model: DetrPanopticForSegmentation,
        processor: DetrPanopticImageProcessor,
        batches: Batches,
        *,
        progress: bool,
    ) -> None:
        self.settings, self.accelerator, self.data, self.processor = settings, accelerator, data, processor
        self.batches, self.folder, optimization = batches, Path(str(settings.run.output)), settings.optimization
        model = model.to(accelerator.device)
        self.averaged = None if optimization.ema_decay is None else average_weights(model, optimization.ema_decay)
        factor = rate_factor(optimization, effective_batch(optimization, accelerator.num_processes))
        optimizer = build_optimizer(model, optimization, factor=factor)
        if settings.run.compile:
            model.model.compile(dynamic=True)  # in place, so that names of weights stay; sizes of images differ
        self.model, self.optimizer, self.loader = accelerator.prepare(model, optimizer, batches.loader)
        self.validation: Evaluation | None = None  # the last one of this process
        self.best: Evaluation | None = None
        self.plan, self.total_steps = describe_plan(settings, data, model, accelerator.num_processes)
        self.schedule = build_schedule(self.optimizer, optimization, total_steps=self.total_steps)
        self.progress, averages = Progress(), [] if self.averaged is None else [self.averaged]
        accelerator.register_for_checkpointing(self.schedule, self.progress, *averages)
        set_seed(settings.run.seed, device_specific=True)  # dropout differs between processes
        load_checkpoint(accelerator, self.folder, self.progress)
        done = self.progress.step
        self.log = RunLog(accelerator, self.folder, total_steps=self.total_steps, done=done, progress=progress)

    @property
    def evaluated(self) -> Any:
        """The model that is evaluated and saved, averaged or not, without the accelerator's wrapper."""
        return self.accelerator.unwrap_model(self.model) if self.averaged is None else self.averaged.module

    def save(self) -> None:
        """Saves a checkpoint; called on every process."""
        save_checkpoint(self.accelerator, self.folder, self.progress, keep=self.settings.run.keep_checkpoints)
