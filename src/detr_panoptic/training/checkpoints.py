"""The output folder of a run. Everything in it is complete, even if the run is killed or the disk is full.

    output/                     the best model so far and its image processor: a folder for `from_pretrained`
    output/checkpoints/step_N/  what the run needs to continue: weights, optimizer, random states, position
    output/training.yaml        the settings
    output/metrics.jsonl        losses and metrics

Files and folders get their final names when they are complete and on the disk.
"""

import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, load

from ..data.files import PARTIAL_PREFIX, reported_failure, sync, written_whole
from ..data.plain_text import first_line
from .settings import TrainingSettings, read_settings
from .state import Progress
from .tracking import METRICS

CHECKPOINTS = "checkpoints"
STEP_PREFIX = "step_"
SETTINGS = "training.yaml"


@contextmanager
def held_output(folder: Path, accelerator: Accelerator, prepare: Callable[[], None]) -> Iterator[None]:
    """Locks the output folder and prepares it on the main process, before any process continues.

    Raises:
        OSError: The folder cannot be written to.
        ValueError: Another run uses the folder, or `prepare` refuses it. All errors are raised on every process.
    """
    with ExitStack() as stack:
        refusal: list[Exception | None] = [None]
        if accelerator.is_main_process:
            try:
                _lock(folder, stack)
                prepare()
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


def open_run(folder: Path, settings: TrainingSettings, *, overwrite: bool = False) -> None:
    """Prepares the output folder for a new run or one to resume, and writes the settings.

    Raises:
        ValueError: The folder holds another model, or a run with other settings.
    """
    if overwrite:
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        for name in (SETTINGS, METRICS):
            (folder / name).unlink(missing_ok=True)
    elif (folder / SETTINGS).is_file():
        if differences := settings.differences(TrainingSettings.from_dict(read_settings(folder / SETTINGS))):
            raise ValueError(
                f"`output` {folder} holds a run with other settings: {', '.join(differences)}. Use the same "
                "settings to resume it, another folder, or `overwrite` to discard it."
            )
    elif (folder / "config.json").is_file():
        raise ValueError(f"`output` {folder} holds a model that was not trained here; use another folder.")
    for leftover in (folder / CHECKPOINTS).glob(PARTIAL_PREFIX + "*"):
        shutil.rmtree(leftover)
    with written_whole(folder / SETTINGS, durable=True) as path:
        path.write_text(yaml.safe_dump(settings.to_dict(), sort_keys=False), encoding="utf-8")


def save_checkpoint(accelerator: Accelerator, folder: Path, progress: Progress, *, keep: int) -> None:
    """Saves a checkpoint and removes the oldest beyond `keep`; called on every process.

    Raises:
        OSError: It could not be written; earlier checkpoints are still there.
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

    Raises:
        ValueError: It cannot be read, or was written by another number of processes, whose updates had other images.
    """
    found = sorted((folder / CHECKPOINTS).glob(STEP_PREFIX + "*"))
    if found:
        try:
            _load_state(accelerator, found[-1])
        except ValueError as error:
            before = found[-2].name if len(found) > 1 else "the beginning"
            text = f"The checkpoint {found[-1]} is damaged: {error} Delete that folder to resume from {before}."
            raise ValueError(text) from error
        if (count := progress.num_processes) != accelerator.num_processes:
            raise ValueError(f"`output` {folder} holds a run of {count} processes, not {accelerator.num_processes}.")
    progress.num_processes = accelerator.num_processes
    metrics = folder / METRICS
    if accelerator.is_main_process and metrics.is_file():
        os.truncate(metrics, min(progress.metrics_bytes, metrics.stat().st_size))


def _load_state(accelerator: Accelerator, checkpoint: Path) -> None:
    path: Any = checkpoint
    try:
        # Accelerate unpickles the former without limits, and ignores errors in the latter.
        for path in (*checkpoint.glob("custom_checkpoint_*.pkl"), *checkpoint.glob("random_states_*.pkl")):
            load(path, map_location="cpu", weights_only=True)
        path = checkpoint
        accelerator.load_state(str(checkpoint))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # torch raises all kinds of errors for damaged files
        is_pickle = isinstance(error, pickle.UnpicklingError)  # torch's own message would advise to trust the file
        reason = "it contains more than tensors and plain values" if is_pickle else first_line(error)
        raise ValueError(f"{path.name} cannot be read: {reason.rstrip('.')}.") from error
