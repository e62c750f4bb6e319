"""`detr-panoptic data check`: lists everything that is wrong with a dataset."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .frame import CommandError, add_command
from .sources import SCENES, add_source_options, prepare_reading, read_source

if TYPE_CHECKING:
    import argparse

    from .frame import CommandParser

WRONG = 1  # exit code
DESCRIPTION = """
Check a dataset: ids, categories, areas, boxes, sizes, broken files. The exit code is 1 if there is an error, 0 if
not, 2 if there is no dataset to check.
"""
EXAMPLES = "detr-panoptic data check coco --split val2017 --report coco_check"


def register(subparsers: argparse._SubParsersAction[CommandParser]) -> None:
    """Adds the command and its options."""
    parser = add_command(
        subparsers, "check", run, summary="find what is wrong", description=DESCRIPTION, examples=EXAMPLES
    )
    parser.add_argument("source", metavar="SOURCE", help="what `train --data` takes")
    add_source_options(parser)
    parser.add_argument("--queries", type=int, default=100, metavar="N", help="of the model that will be trained")
    parser.add_argument("--report", type=Path, metavar="DIR", help="write check.md, check.json and images of findings")
    parser.add_argument("--workers", type=int, metavar="N", help="threads that open files")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns 1 if training on the data would be wrong."""
    from ..data.checking import check_data
    from ..visualization.data_report import save_data_sheets

    if arguments.report is not None and arguments.report.is_file():
        raise CommandError(f"`--report {arguments.report}` is a file: name a folder.")
    prepare_reading()
    options = {"split": arguments.split, "data_format": arguments.format}
    source = arguments.source
    if source == SCENES:
        source, options = read_source(source, limit=arguments.limit), {}
    check = check_data(
        source,
        num_queries=arguments.queries,
        workers=arguments.workers,
        limit=arguments.limit,
        progress=sys.stderr.isatty(),
        **options,
    )
    print(check)
    if arguments.report is not None:
        print(f"Report: {check.save(arguments.report)}")
        save_data_sheets(check, arguments.report)
    return WRONG if check.has_errors else 0
