"""`detr-panoptic data complete-stuff`: things annotated by hand, the rest by a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..inference.long_runs import add_batch_options
from ..inference.old_loading import add_device_option
from .frame import USER_ERROR, add_command
from .sources import add_source_options

if TYPE_CHECKING:
    import argparse

    from .frame import CommandParser

DESCRIPTION = """
Fill what an annotation leaves void with the stuff that a panoptic model sees there, for data of which only things
were annotated. Annotated pixels stay what they are; stuff that is annotated in a part of an image grows. Classes are
matched by name, and stuff that the data does not have becomes a new class.

A pixel stays void if no segment of a score above --threshold owns it, if no mask of such a segment has a probability
of one half there, or if the model sees a thing there that is not to be added.

OUT becomes a folder in COCO panoptic layout: images/, panoptic/ and panoptic.json.
"""
EXAMPLES = """
detr-panoptic data complete-stuff my_boxes_and_masks my_data --model OWNER/NAME
detr-panoptic data complete-stuff coco filled --split val2017 --model my_model --things --report what_was_added
"""


def register(subparsers: argparse._SubParsersAction[CommandParser]) -> None:
    """Add the command and its options."""
    parser = add_command(
        subparsers,
        "complete-stuff",
        run,
        summary="let a model add the stuff to annotated things",
        description=DESCRIPTION,
        examples=EXAMPLES,
    )
    parser.add_argument("source", metavar="SOURCE", help="what `train --data` takes")
    parser.add_argument("output", type=Path, metavar="OUT", help="a folder that is empty or does not exist")
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="folder of a saved model, or its name on the Hugging Face Hub"
    )
    add_source_options(parser)
    parser.add_argument(
        "--things", action="store_true", help="add things, too, of classes that the data does not have"
    )
    parser.add_argument(
        "--threshold", type=float, metavar="SCORE", help="least score of a segment, 0 to 1 (default: the model's own)"
    )
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="write what was added, and sheets of images before and after"
    )
    add_batch_options(parser)
    parser.add_argument(
        "--on-error", choices=("stop", "skip"), default="stop", help="skip: leave broken images out and list them"
    )
    add_device_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; 0 if OUT was written and no image was left out."""
    from ..labeling import complete_stuff

    names = ("model", "threshold", "split", "limit", "batch_size", "device", "dtype", "on_error", "report")
    completion = complete_stuff(
        arguments.source,
        arguments.output,
        with_things=arguments.things,
        data_format=arguments.format,
        num_workers=arguments.workers,
        progress=sys.stderr.isatty(),
        **{name: getattr(arguments, name) for name in names},
    )
    sys.stdout.write(f"{completion}\nWritten to {completion.folder}. Look before you train on it.\n")
    return USER_ERROR if completion.failures else 0
