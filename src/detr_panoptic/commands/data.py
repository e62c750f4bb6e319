"""`detr-panoptic data …`: commands that look at datasets and rewrite them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import data_check, data_complete, data_convert
from .frame import USER_ERROR, CommandParser, add_command

if TYPE_CHECKING:
    import argparse
    from types import ModuleType

COMMANDS: tuple[ModuleType, ...] = (data_check, data_convert, data_complete)
"""Modules of this folder, `data_*.py`, each with a `register`."""
DESCRIPTION = "Look at datasets, check them, convert them."
EXAMPLES = "detr-panoptic data --help"


def register(subparsers: argparse._SubParsersAction[CommandParser]) -> None:
    """Add the group and its commands."""
    parser = add_command(
        subparsers, "data", run, summary="check and convert datasets", description=DESCRIPTION, examples=EXAMPLES
    )
    parser.set_defaults(help_page=parser.format_help)
    group = parser.add_subparsers(dest="data_command", metavar="COMMAND", title="commands", parser_class=CommandParser)
    for command in COMMANDS:
        command.register(group)


def run(arguments: argparse.Namespace) -> int:
    """Without one of its commands, the group shows its help page."""
    print(arguments.help_page())
    return USER_ERROR
