"""`detr-panoptic data convert`: writes a dataset in another format."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .frame import add_command
from .sources import SCENES, add_source_options, prepare_reading, read_source

if TYPE_CHECKING:
    import argparse

    from .frame import CommandParser

COCO, DATASET, PARQUET = TARGETS = ("coco", "dataset", "parquet")
DESCRIPTION = f"""
Write a dataset again: id maps, segments and categories in one format, image files copied byte by byte.

  {COCO}  images/, panoptic/ and panoptic.json, which every panoptic tool reads
  {DATASET}        a folder for load_from_disk of `datasets`
  {PARQUET}        data/SPLIT-*.parquet, the layout of datasets on the Hub
"""
EXAMPLES = """
detr-panoptic data convert my_export my_data
detr-panoptic data convert scenes my_scenes --limit 30000 --workers 16 --to dataset
"""


def register(subparsers: argparse._SubParsersAction[CommandParser]) -> None:
    """Adds the command and its options."""
    parser = add_command(
        subparsers, "convert", run, summary="write it in another format", description=DESCRIPTION, examples=EXAMPLES
    )
    parser.add_argument("source", metavar="SOURCE", help="what `train --data` takes")
    parser.add_argument("output", type=Path, metavar="OUT", help="a folder that is empty or does not exist")
    add_source_options(parser)
    parser.add_argument("--seed", type=int, default=0, help=f"of `{SCENES}`: another number gives others")
    parser.add_argument("--workers", type=int, default=0, help=f"processes that make `{SCENES}`; 0: this one")
    parser.add_argument("--to", choices=TARGETS, default=COCO, help="format of OUT")
    parser.add_argument(
        "--on-error", choices=("stop", "skip"), default="stop", help="skip: leave broken images out and list them"
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns 0 if OUT was written."""
    from ..data.converting import convert_data

    prepare_reading()
    options = {"split": arguments.split, "data_format": arguments.format, "limit": arguments.limit}
    source = arguments.source
    if source == SCENES:
        source = read_source(source, limit=arguments.limit, scene_seed=arguments.seed, scene_workers=arguments.workers)
    progress = sys.stderr.isatty()
    conversion = convert_data(
        source, arguments.output, to=arguments.to, on_error=arguments.on_error, progress=progress, **options
    )
    print(conversion)
    return 0
