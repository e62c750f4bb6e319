"""What all commands share: their parser, the style of their help pages, and how they report what went wrong."""

from __future__ import annotations

import argparse
import re
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

PROGRAM = "detr-panoptic"
USER_ERROR = 2  # exit code, as argparse has it
HUB_NAME_PARTS = 2  # OWNER/NAME
WORKER_ERROR = re.compile(r"Caught \w+ in DataLoader worker process")  # torch puts that, and a traceback, before it


class CommandError(Exception):
    """Something that the user can mend; its text is the one line to show."""


class CommandParser(argparse.ArgumentParser):
    """An argument parser that reports an error in one line instead of the usage and the error."""

    def error(self, message: str) -> NoReturn:
        """Print the line and leave with exit code 2."""
        self.exit(USER_ERROR, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of descriptions and examples, and names the default of each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.required:
            return action.help
        return super()._get_help_string(action)


def add_command(
    subparsers: argparse._SubParsersAction[CommandParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    summary: str,
    description: str,
    examples: str,
) -> CommandParser:
    """Add a command with its help page; the caller adds the options.

    Args:
        subparsers: of the program's parser.
        name: what the user types.
        run: takes the parsed options and returns the exit code; raises what `main` reports.
        summary: one line for the program's own help page.
        description: what the command does.
        examples: command lines to copy, one per line.

    Returns:
        The command's parser.
    """
    parser = subparsers.add_parser(
        name,
        help=summary,
        description=description.strip(),
        epilog="examples:\n" + "\n".join(f"  {line.strip()}" for line in examples.strip().splitlines()),
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    parser.set_defaults(run=run)
    return parser


def report(message: str) -> None:
    """Print one line about a part that failed while the rest goes on."""
    sys.stderr.write(f"{PROGRAM}: error: {message}\n")


def explain(error: Exception) -> str:
    """An error as one line: the first of its text, with its kind where the text alone would puzzle."""
    lines = str(error).strip().splitlines()
    if lines and WORKER_ERROR.match(lines[0]):
        lines = [lines[-1].partition(": ")[2]]  # what was raised there, without its kind
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, (CommandError, OSError, ValueError)) and lines:
        return lines[0]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
