"""What `evaluate` and `predict` share: a model over any number of images, in several processes, interrupted or not.

Nothing is kept per image but its line in the journal. Heavy imports are inside the functions.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING

from ..commands.frame import CommandError
from .old_loading import add_device_option

if TYPE_CHECKING:
    import argparse

    import torch


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


def num_workers(wanted: int | None, device: torch.device, num_processes: int = 1) -> int:
    """Processes that read images for each process that runs the model; `wanted` is what the user said."""
    if wanted is not None:
        return wanted
    return 0 if device.type == "cpu" else min((os.cpu_count() or 1) // num_processes, MAX_WORKERS)
