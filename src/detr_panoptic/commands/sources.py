"""Datasets as the user names them on the command line."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    from datasets import Dataset, IterableDataset

    from ..data import PanopticData

SCENES = "scenes"
SCENE_SIDE = 256  # pixels
FORMATS = ("coco-panoptic", "rows", "two-channel", "coco-instances", "cityscapes", "semantic")  # of `..data`


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add `--split`, `--format` and `--limit`, to be read by `source_options`."""
    parser.add_argument("--split", metavar="NAME", help="split of the data, where it has several: val2017")
    parser.add_argument("--format", metavar="NAME", help=f"{', '.join(FORMATS)}, if it is not recognized")
    parser.add_argument(
        "--limit", type=int, metavar="N", help=f"take only the first images; of `{SCENES}`, how many to make"
    )


def source_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_source_options` and, if the command has it, `--on-error` were given, as arguments of `read_source`."""
    return {
        "split": arguments.split,
        "data_format": arguments.format,
        "limit": arguments.limit,
        "files_may_be_missing": getattr(arguments, "on_error", "stop") == "skip",
    }


def read_source(source: str, **options: Any) -> PanopticData:
    """`scenes.read_source`, in a process that opens no unusual image formats."""
    from ..scenes import source as scenes

    prepare_reading()
    return scenes.read_source(source, **options)


def read_pictures(source: str, **options: Any) -> Dataset | IterableDataset:
    """`scenes.read_pictures`, in a process that opens no unusual image formats."""
    from ..scenes import source as scenes

    prepare_reading()
    return scenes.read_pictures(source, **options)


def prepare_reading() -> None:
    """Before files of strangers are read in this process: no other formats of pictures, no bars that nobody sees."""
    from datasets import disable_progress_bars

    from ..image_reading import refuse_other_formats

    refuse_other_formats()
    if not sys.stderr.isatty():
        disable_progress_bars()
