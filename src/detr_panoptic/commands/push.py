"""`detr-panoptic push`: a model folder goes to the Hugging Face Hub, with its code and a card."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.plain_text import one_line
from .frame import add_command

if TYPE_CHECKING:
    import argparse

    from .frame import CommandParser

DESCRIPTION = """
Put a model on the Hugging Face Hub, from where anybody loads it by its name: weights as safetensors, configuration,
image processor, the code of the model, and a card (README.md) with data, recipe, PQ, limits and a picture.

The folder is loaded and checked first, and what is sent is saved anew from what was loaded: nothing else that lies in
the folder leaves this machine, except the card and the pictures that it shows. The card that training wrote is taken
as it is; a folder without one gets a card that says what is known. --evaluation puts the numbers of `evaluate` in it.

Log in once with `hf auth login`, or set HF_TOKEN. An upload that was interrupted goes on with the same command.
"""
EXAMPLES = """
detr-panoptic push my_model OWNER/my-model --dry-run
detr-panoptic push my_model OWNER/my-model --private
detr-panoptic push my_model OWNER/my-model --evaluation val2017 --message "PQ on val2017"
"""


def register(subparsers: argparse._SubParsersAction[CommandParser]) -> None:
    """Add the command and its options."""
    parser = add_command(
        subparsers, "push", run, summary="put a model on the Hub", description=DESCRIPTION, examples=EXAMPLES
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of a saved model and its image processor")
    parser.add_argument("repository", metavar="REPO", help="OWNER/NAME on the Hub; made if it does not exist")
    parser.add_argument("--private", action="store_true", help="only you, or your organization, can see it")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to write to; made if it does not exist")
    parser.add_argument("--message", metavar="TEXT", help="of the commit (default: Upload NAME)")
    parser.add_argument(
        "--evaluation", type=Path, metavar="DIR", help="output of `evaluate` for this model: its PQ goes into the card"
    )
    parser.add_argument(
        "--license",
        metavar="ID",
        help="the Hub's identifier (default: the card's own, or the code's, apache-2.0)",
    )
    parser.add_argument("--dry-run", action="store_true", help="check, show the card and the files, send nothing")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; 0 if everything is on the Hub, or could be."""
    from ..sharing import push

    names = ("private", "revision", "message", "evaluation", "license", "dry_run")
    pushed = push(arguments.folder, arguments.repository, **{name: getattr(arguments, name) for name in names})
    sys.stdout.write(f"{one_line(pushed.card)}\n" if arguments.dry_run else "")
    sys.stdout.write(f"{pushed}\n")
    return 0
