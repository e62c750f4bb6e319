"""Datasets as the user names them on the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .frame import CommandError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

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
    """Turns progress bars off where nobody sees them."""
    from datasets import disable_progress_bars
    from PIL import EpsImagePlugin

    EpsImagePlugin.gs_binary = False  # as the program does
    if not sys.stderr.isatty():
        disable_progress_bars()


IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def expand_images(names: Sequence[str], *, output: Path) -> tuple[list[Path], list[str]]:
    """The files that the user means, and a line for each name that means none.

    Args:
        names: files and folders; of a folder, the images right inside, sorted.
        output: folder of the results, which must not be read as input.

    Raises:
        CommandError: an input folder is the output folder.
    """
    paths: list[Path] = []
    missing = []
    for name in names:
        path = Path(name)
        if not path.is_dir():
            if path.is_file():
                paths.append(path)
            else:
                missing.append(f"No such file or folder: {name}")
            continue
        if path.resolve() == output.resolve():
            raise CommandError(f"`--output {output}` is an input folder too: its results would be read as images.")
        inside = sorted(
            child for child in path.iterdir() if child.suffix.lower() in IMAGE_SUFFIXES and child.is_file()
        )
        paths += inside
        if not inside:
            missing.append(f"No images in {name} (looked for {', '.join(IMAGE_SUFFIXES)})")
    return paths, missing
