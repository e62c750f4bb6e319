"""The output folder of a run, and what in it is always whole.

    output/                     the best model so far and its image processor: what `from_pretrained` reads
    output/checkpoints/step_N/  everything that the run needs to go on: weights, optimizer, random numbers, place
    output/training.yaml        the settings; output/metrics.jsonl, the numbers

A file or folder gets its name when all of it is on the disk: a run that is killed, or finds the disk full, leaves what
was there before.
"""

import os
import pickle
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from accelerate.utils import load

from ..data.files import PARTIAL_PREFIX, reported_failure, sync, written_whole
from ..data.plain_text import first_line
from .arguments import TrainingArguments
from .plan import is_out_of_memory

CHECKPOINTS = "checkpoints"
STEP_PREFIX = "step_"
SETTINGS = "training.yaml"
METRICS = "metrics.jsonl"


@dataclass
class Progress:
    """Where a run is; part of every checkpoint."""

    step: int = 0
    """Updates."""
    epoch: int = 0
    """Passes over the data that are complete."""
    windows: int = 0
    """Updates of the pass that is not."""
    best: float = float("-inf")
    """Of the quality that evaluations return."""
    evaluations_without_gain: int = 0
    metrics_bytes: int = 0
    """Length of `metrics.jsonl`: what comes after was written by updates that are done again."""
    num_processes: int = 1
    is_finished: bool = False

    def state_dict(self) -> dict[str, Any]:
        """What Accelerate saves."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for name, value in state.items():
            setattr(self, name, value)


def open_run(folder: Path, arguments: TrainingArguments, *, overwrite: bool = False) -> None:
    """Finds a run to go on with, or makes room for a new one, and writes down its settings.

    Raises:
        ValueError: the folder holds another model, or a run whose settings were others.
    """
    if overwrite:
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        for name in (SETTINGS, METRICS):
            (folder / name).unlink(missing_ok=True)
    elif (folder / SETTINGS).is_file():
        earlier = TrainingArguments.from_dict(yaml.safe_load((folder / SETTINGS).read_text()))
        differences = arguments.differences(earlier)
        if differences:
            raise ValueError(
                f"`output` {folder} holds a run with other settings: {', '.join(differences)}. Start it again as it "
                "was, name another folder, or throw it away with --overwrite."
            )
    elif (folder / "config.json").is_file():
        raise ValueError(f"`output` {folder} holds a model that is no run of this command: name another folder.")
    for leftover in (folder / CHECKPOINTS).glob(PARTIAL_PREFIX + "*"):
        shutil.rmtree(leftover)
    with written_whole(folder / SETTINGS, durable=True) as part:
        part.write_text(yaml.safe_dump(arguments.to_dict(), sort_keys=False), encoding="utf-8")


def save_checkpoint(accelerator: Accelerator, folder: Path, progress: Progress, *, keep: int) -> None:
    """Writes a folder beside the earlier ones and drops the oldest beyond `keep`; called on every process.

    Raises:
        OSError: it could not be written; what was there before is still there.
    """
    metrics, checkpoints = folder / METRICS, folder / CHECKPOINTS
    progress.metrics_bytes = metrics.stat().st_size if metrics.is_file() else 0
    # At the end of a pass there may be two with one step: before the evaluation, and after it.
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
        removed = old.rename(checkpoints / (PARTIAL_PREFIX + old.name))  # what has its name is whole
        shutil.rmtree(removed)


def load_checkpoint(accelerator: Accelerator, folder: Path, progress: Progress) -> None:
    """Takes up the run where its last checkpoint left it, if there is one; called on every process.

    Raises:
        ValueError: it cannot be read; or it was another number of processes, so that an update had other images.
    """
    found = sorted((folder / CHECKPOINTS).glob(STEP_PREFIX + "*"))
    num_processes = accelerator.num_processes
    if found:
        try:
            _load_state(accelerator, found[-1])
        except ValueError as error:
            before = found[-2].name if len(found) > 1 else "the beginning"
            raise ValueError(
                f"The checkpoint {found[-1]} is damaged: {error} Delete that folder, and the same command goes on "
                f"from {before}."
            ) from error
        if progress.num_processes != num_processes:
            raise ValueError(
                f"`output` {folder} holds a run of {progress.num_processes} processes; this one has {num_processes}."
            )
    progress.num_processes = num_processes
    metrics = folder / METRICS
    if accelerator.is_main_process and metrics.is_file():
        os.truncate(metrics, min(progress.metrics_bytes, metrics.stat().st_size))


def _load_state(accelerator: Accelerator, checkpoint: Path) -> None:
    """`Accelerator.load_state` that runs no code from a file.

    Raises:
        ValueError: a file is damaged, or made of more than tensors and plain values.
    """
    path = checkpoint
    try:
        # Accelerate unpickles the first without limits, and without the others goes on with other random numbers.
        for path in (*checkpoint.glob("custom_checkpoint_*.pkl"), *checkpoint.glob("random_states_*.pkl")):
            load(path, map_location="cpu", weights_only=True)
        path = checkpoint
        accelerator.load_state(str(checkpoint))
    except Exception as error:  # a damaged file makes torch raise anything
        if is_out_of_memory(error):
            raise
        is_pickle = isinstance(error, pickle.UnpicklingError)  # torch's text would advise to trust the file
        reason = "it is not made of tensors and plain values alone" if is_pickle else first_line(error)
        raise ValueError(f"{path.name} cannot be read: {reason.rstrip('.')}.") from error
