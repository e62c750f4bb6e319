"""The program `detr-panoptic`."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING

from . import data_check, data_convert, train
from .frame import EXIT_CODES, PROGRAM, USER_ERROR, CommandParser, HelpFormatter, error_line

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = (train,)
INTERRUPTED, CLOSED_PIPE = 130, 141  # as a shell has them after SIGINT and SIGPIPE
DESCRIPTION = "DETR for panoptic segmentation: every pixel of a photograph gets its thing or stuff."
EPILOG = f"""`{PROGRAM} COMMAND --help` explains a command and shows examples.

exit codes:
{EXIT_CODES}"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after the program's name; None reads the command line.

    Returns:
        The exit code (`EXIT_CODES`). An error is one line on stderr; with `--debug`, after a traceback.
    """
    try:
        code = _run(argv)
        sys.stdout.flush()  # what is left goes to a closed pipe here, not while the interpreter ends
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _let_go_of_closed_pipe()
        return CLOSED_PIPE
    return code


def _run(argv: Sequence[str] | None) -> int:
    parser = build_parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:  # argparse leaves that way, after the help page as well
        return stop.code if isinstance(stop.code, int) else 0
    if arguments.command is None:
        parser.print_help(sys.stderr)
        return USER_ERROR
    try:
        return arguments.run(arguments)
    except BrokenPipeError:
        raise
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # `rich` leaves that way
            raise BrokenPipeError from stop
        raise
    except Exception as error:  # the last stop: nobody above could do more than show it
        if arguments.debug:
            traceback.print_exc()
        line = error_line(error, debug=arguments.debug)
        print(f"{PROGRAM} {arguments.command}: error: {line}", file=sys.stderr)
        return USER_ERROR


def _let_go_of_closed_pipe() -> None:
    """Point stdout at nothing: the interpreter flushes it when it ends, and would complain."""
    with suppress(OSError, ValueError):  # replaced by something that is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def build_parser() -> CommandParser:
    """The program's parser with all commands."""
    parser = CommandParser(
        prog=PROGRAM, description=DESCRIPTION, epilog=EPILOG, formatter_class=HelpFormatter, allow_abbrev=False
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", parser_class=CommandParser)
    for command in COMMANDS:
        command.register(subparsers)
    group = subparsers.add_parser("data").add_subparsers(dest="data_command", parser_class=CommandParser)
    for data_command in (data_check, data_convert):
        data_command.register(group)
    return parser


if __name__ == "__main__":
    sys.exit(main())
