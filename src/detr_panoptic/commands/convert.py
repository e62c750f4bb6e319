"""`detr-panoptic convert`: checkpoints of other DETR implementations become folders that this package loads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..inference.old_loading import without_progress_bars
from .frame import PROGRAM, CommandError, add_command, explain

if TYPE_CHECKING:
    from .frame import CommandParser

DESCRIPTION = """
Turn a DETR checkpoint of another implementation into a model folder of this package, with the image processor
beside it. Every weight stays the same to the bit. Sources are

  FILE.pth    what facebookresearch/detr publishes and trains, detection-only models included
  FOLDER      what transformers saves for DetrForSegmentation and DetrForObjectDetection
  OWNER/NAME  such a folder on the Hugging Face Hub, which is downloaded

A detection-only model gets a new mask head, which has to be trained.
"""
EXAMPLES = """
detr-panoptic convert detr-r50-panoptic-00ce5173.pth detr_r50
detr-panoptic convert facebook/detr-resnet-50-panoptic detr_r50 --compact
detr-panoptic convert detr-r50-dc5-panoptic.pth detr_r50_dc5 --dilation
"""


def register(subparsers: argparse._SubParsersAction[CommandParser]) -> None:
    """Add the command and its options."""
    parser = add_command(
        subparsers,
        "convert",
        run,
        summary="make a model folder of another DETR's checkpoint",
        description=DESCRIPTION,
        examples=EXAMPLES,
    )
    parser.add_argument("source", metavar="SOURCE", help="file, folder or name on the Hub to read")
    parser.add_argument(
        "output", type=Path, metavar="OUT", help="folder to write the model and its image processor to"
    )
    parser.add_argument(
        "--dilation",
        action=argparse.BooleanOptionalAction,
        help="whether it is a DC5 model, which weights cannot tell (default: as the source's config or name says)",
    )
    parser.add_argument(
        "--compact",
        action="store_true",
        help="leave out the classes that the dataset never has: of COCO's 250 remain 133; scores rise or stay",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command; 0 if the model was written."""
    from ..checkpoints.conversion import convert_checkpoint

    with without_progress_bars():
        try:
            result = convert_checkpoint(
                arguments.source, arguments.output, dilation=arguments.dilation, compact=arguments.compact
            )
        except (OSError, ValueError) as error:
            raise CommandError(explain(error)) from error
    print_result(result, f"{PROGRAM} predict photo.jpg --model {result.folder}")
    return 0


def print_result(result: object, following: str) -> None:
    """Show what was made, and a command to try it."""
    from rich.console import Console

    Console().print(f"{result}\nTry it: {following}", markup=False, highlight=False, soft_wrap=True)
