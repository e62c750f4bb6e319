"""What all commands share: their parser, the style of their help pages, and how they report what went wrong."""

from __future__ import annotations

import argparse
import difflib
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from ..data.plain_text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

PROGRAM = "detr-panoptic"
USER_ERROR = 2  # exit code, as argparse has it
EXIT_CODES = """  0    everything was done
  1    `data check` found an error in the data
  2    something was wrong, which one line on stderr says; also if only some images could not be read
  130  interrupted (Ctrl-C)
  141  nobody read the output any more (`| head`)
  143  stopped by SIGTERM: `train` has saved where it was, `app` has removed what it kept"""
WORKER_FAILED = ("Caught ", " in DataLoader worker process ")  # how torch passes an error on, with a traceback


class CommandError(Exception):
    """Something that the user can mend; its text is the one line to show."""


EXPECTED = (CommandError, OSError, ValueError)
"""Kinds of errors whose text says enough; any other is shown with its kind."""


class CommandParser(argparse.ArgumentParser):
    """An argument parser that reports an error in one line instead of the usage and the error."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Refuse what is unknown, and name the option that was meant; argparse would leave it to the main program."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flags = self._option_string_actions
            close = difflib.get_close_matches(unknown[0].partition("=")[0], flags, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]}?" if close else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return parsed, unknown

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
    sys.stderr.write(f"{PROGRAM}: error: {one_line(message)}\n")


def plain(text: str) -> str:
    """Text from a file for a table of `rich`: on one line, and no markup."""
    from rich.markup import escape

    return escape(one_line(text))


def error_line(error: Exception, *, debug: bool) -> str:
    """What a command ends with; `debug`: the traceback was shown."""
    is_expected = isinstance(_told(error), EXPECTED)
    return explain(error) + ("" if is_expected or debug else " (--debug shows where it happened)")


def explain(error: Exception) -> str:
    """An error as one line: the first of its text, with its kind where the text alone would puzzle."""
    error = _told(error)
    lines = str(error).strip().splitlines()
    kind = type(error).__name__
    if isinstance(error, OSError) and error.strerror and error.filename:
        return one_line(f"{error.filename}: {error.strerror}")
    if lines and all(part in lines[0] for part in WORKER_FAILED):
        lines = [line.removeprefix(f"{kind}: ") for line in lines if line.startswith(f"{kind}: ")] or lines[-1:]
    if isinstance(error, EXPECTED) and lines:
        return one_line(lines[0])
    return one_line(f"{kind}: {lines[0]}") if lines else kind


def _told(error: Exception) -> Exception:
    """The error that says it: of a configuration, what was wrong with a field."""
    is_wrapped = type(error).__name__.startswith("StrictDataclass") and isinstance(error.__cause__, Exception)
    return error.__cause__ if is_wrapped and error.__cause__ is not None else error  # type: ignore[return-value]
