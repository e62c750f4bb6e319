"""The program `detr-panoptic`."""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING

from .commands import app, convert, data, demo, evaluate, explain, export, predict, train
from .commands.frame import PROGRAM, USER_ERROR, CommandParser, HelpFormatter
from .commands.frame import explain as explain_error

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = (demo, app, predict, explain, train, evaluate, convert, data, export)
INTERRUPTED = 130  # exit code of the shell after Ctrl-C
DESCRIPTION = "DETR for panoptic segmentation: every pixel of a photograph gets its thing or stuff."
EPILOG = f"`{PROGRAM} COMMAND --help` explains a command and shows examples."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after the program's name; None reads the command line.

    Returns:
        The exit code: 0 if all went well, 2 after an error, which is one line on stderr (`--debug`: a traceback too).
    """
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
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:  # the last stop: nobody above could do more than show it
        if arguments.debug:
            traceback.print_exc()
        print(f"{PROGRAM} {arguments.command}: error: {explain_error(error)}", file=sys.stderr)
        return USER_ERROR


def build_parser() -> CommandParser:
    """The program's parser with all commands."""
    parser = CommandParser(
        prog=PROGRAM, description=DESCRIPTION, epilog=EPILOG, formatter_class=HelpFormatter, allow_abbrev=False
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", parser_class=CommandParser)
    for command in COMMANDS:
        command.register(subparsers)
    return parser


if __name__ == "__main__":
    sys.exit(main())
