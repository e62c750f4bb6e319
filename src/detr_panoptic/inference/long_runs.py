"""What `evaluate` and `predict` share: a model over any number of images, in several processes, interrupted or not.

Nothing is kept per image but its line in the journal. Heavy imports are inside the functions.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..commands.frame import CommandError, report
from .old_loading import add_device_option, resolve_device

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    import torch
    from accelerate import PartialState

    from ..evaluation.journal import Journal
    from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
    from ..modeling_detr_panoptic import DetrPanopticForSegmentation
    from .batching import Loaded
    from .loop import Batch

DTYPES = ("float32", "bfloat16", "float16")
JOURNAL = ".journal"  # folder inside the output folder
PATIENCE = timedelta(days=7)  # one process may wait for another that has the slow images
MAX_WORKERS = 8  # more loaders than that outrun any GPU


def add_batch_options(parser: argparse.ArgumentParser) -> None:
    """Add what decides how images get through the model: `--batch-size`, `--dtype` and `--workers`."""
    parser.add_argument(
        "--batch-size",
        type=int,
        default=1,
        metavar="N",
        help="images of alike shape that go through the model at once; the padding between them changes results a bit",
    )
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="what the model computes in")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help=f"processes that read images (default: none on a CPU, up to {MAX_WORKERS} for a GPU)",
    )


def add_run_options(parser: argparse.ArgumentParser, *, on_error: str) -> None:
    """Add the options of a run over many images; `on_error` is the default of that option."""
    add_batch_options(parser)
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default=on_error,
        help="at an image that cannot be read: stop, or list it and go on; the exit code is 2 either way",
    )
    add_device_option(parser)


def check_run_options(arguments: argparse.Namespace) -> None:
    """Refuse numbers out of range before anything is loaded."""
    if arguments.output.is_file():
        raise CommandError(f"`--output {arguments.output}` is a file: name a folder for the results.")
    if arguments.batch_size < 1:
        raise CommandError(f"`--batch-size` must be at least 1, got {arguments.batch_size}.")
    if arguments.workers is not None and arguments.workers < 0:
        raise CommandError(f"`--workers` must be at least 0, got {arguments.workers}.")
    if arguments.threshold is not None and not 0 <= arguments.threshold <= 1:
        raise CommandError(f"`--threshold` must be from 0 to 1, got {arguments.threshold}.")


@contextmanager
def processes(device: str) -> Iterator[tuple[PartialState, torch.device]]:
    """This process among those that `accelerate launch` started, and its device.

    Args:
        device: as the user names it; "auto" gives each process a GPU of its own.
    """
    from accelerate import PartialState

    resolved = resolve_device(device)
    state = PartialState(cpu=resolved.type == "cpu", timeout=PATIENCE)
    yield state, state.device if state.num_processes > 1 and device == "auto" else resolved
    if state.num_processes > 1:
        state.destroy_process_group()


def run_over(
    pictures: Any,
    model: DetrPanopticForSegmentation,
    processor: DetrPanopticImageProcessor,
    journal: Journal,
    state: PartialState,
    arguments: argparse.Namespace,
    describe: Callable[[Batch, Any], Iterable[dict[str, Any]]],
    mask_queries: str | int | None = None,
) -> float:
    """Run the model over this process's share of what is not done; returns the images per second of all processes.

    Args:
        pictures: all images.
        model: on its device.
        processor: the model's.
        journal: gets what `describe` says; knows what is done.
        state: which process this is, of how many.
        arguments: of `add_run_options`.
        describe: makes an entry of the journal for each image of a batch, after it has written the image's files.
        mask_queries: which queries get masks.

    Raises:
        CommandError: an image could not be read, and `--on-error` says stop; or the journal has lost lines.
        FloatingPointError: the model's outputs are not finite.
    """
    from .batching import load_batches, plan_batches
    from .loop import run_model

    batches = enumerate(plan_batches(pictures, arguments.batch_size))
    own = (batch for number, batch in batches if number % state.num_processes == state.process_index)
    open_ones = (batch for batch in own if not all(map(journal.is_done, batch)))
    before = len(journal)
    started = time.perf_counter()
    with journal:
        state.wait_for_everyone()  # no line without the settings that it belongs to
        workers = num_workers(arguments.workers, model.device, state.num_processes)
        loaded: Any = load_batches(pictures, open_ones, processor, workers=workers)
        shown = _with_progress(loaded, total=(len(pictures) - before) // state.num_processes, state=state)
        readable = _readable(shown, journal, stop=arguments.on_error == "stop")
        for batch, outputs in run_model(model, readable, mask_queries=mask_queries):
            for record, entry in zip(batch.records, describe(batch, outputs), strict=True):
                if not journal.is_done(record["index"]):  # others of its batch may be what is missing
                    journal.write(record["index"], entry)
    state.wait_for_everyone()
    seconds = time.perf_counter() - started
    journal.reload()
    state.wait_for_everyone()  # only now may the main process remove it
    lost = len(pictures) - len(journal) - len(journal.failures)
    if lost:
        raise CommandError(
            f"{journal.folder} lacks {lost} of {len(pictures)} images, all of which were done: it was changed or "
            "removed meanwhile. Start the same command again, and they are done again."
        )
    return (len(journal) - before) / seconds


def _readable(loaded: Iterable[Loaded], journal: Journal, *, stop: bool) -> Iterator[Batch]:
    """The batches; images that could not be read end the run, or are reported and noted."""
    for batch, failures in loaded:
        for failure in failures:
            if stop:
                raise CommandError(failure.message)
            report(failure.message)
            journal.write_failure(failure.place, failure.message)
        if batch is not None:
            yield batch


def num_workers(wanted: int | None, device: torch.device, num_processes: int = 1) -> int:
    """Processes that read images for each process that runs the model; `wanted` is what the user said."""
    if wanted is not None:
        return wanted
    return 0 if device.type == "cpu" else min((os.cpu_count() or 1) // num_processes, MAX_WORKERS)


def _with_progress(loaded: Iterable[Loaded], *, total: int, state: PartialState) -> Iterator[Loaded]:
    """The same again, with a bar on the terminal of the main process if there are several images."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    speed = TextColumn("{task.fields[speed]:.2f} images/s")
    columns = (TextColumn("segmenting"), BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn())
    hidden = total <= 1 or not console.is_terminal or not state.is_main_process
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task("", total=total, speed=0.0)
        started = time.perf_counter()
        num_done = 0
        for some in loaded:
            yield some
            num_done += len(some.failures) + (0 if some.batch is None else len(some.batch.records))
            speed_now = num_done / (time.perf_counter() - started)
            progress.update(task, completed=num_done, speed=speed_now)


def journal_folder(output: Path) -> Path:
    """Where the journal of a run lies."""
    return output / JOURNAL
