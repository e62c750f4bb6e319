"""Datasets as the user names them on the command line."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    from datasets import Dataset

    from ..data import PanopticData

SCENES = "scenes"
SCENE_COUNT = 1000
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


def read_source(
    source: str, *, scene_side: int = SCENE_SIDE, scene_seed: int = 0, scene_workers: int = 0, **options: Any
) -> PanopticData:
    """Records and categories of a dataset, or of generated pictures.

    Args:
        source: what `read_panoptic` takes, or `scenes`.
        scene_side: height and width of scenes, pixels.
        scene_seed: other scenes for another number.
        scene_workers: processes that make them; 0: this one.
        options: of `read_panoptic`.

    Raises:
        ValueError: as `read_panoptic`, or other categories are wanted than those of scenes.
    """
    from ..data import PanopticData, read_panoptic
    from ..scenes import SCENE_CATEGORIES, scenes_dataset

    if source != SCENES:
        prepare_reading()
        return read_panoptic(source, **options)
    wanted = options.get("categories")
    if wanted is not None and wanted.names != SCENE_CATEGORIES.names:
        raise ValueError(f"`{SCENES}` has classes of its own: {', '.join(SCENE_CATEGORIES.names)}.")
    count = options.get("limit") or SCENE_COUNT
    scenes = scenes_dataset(count, seed=scene_seed, height=scene_side, width=scene_side, workers=scene_workers)
    return PanopticData(scenes, SCENE_CATEGORIES)


def read_pictures(source: str, **options: Any) -> Dataset:
    """The pictures of a dataset, which need not be annotated, or generated ones; arguments as of `read_source`."""
    from ..data import read_images

    if source == SCENES:
        return read_source(source, **options).records
    prepare_reading()
    return read_images(source, **options)


def prepare_reading() -> None:
    """Before files of strangers are read in this process: no other formats of pictures, no bars that nobody sees."""
    from datasets import disable_progress_bars

    from ..image_reading import refuse_other_formats

    refuse_other_formats()
    if not sys.stderr.isatty():
        disable_progress_bars()
