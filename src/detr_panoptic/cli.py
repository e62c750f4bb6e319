"""The old place of the program; `commands` is the new one."""

import sys

from .commands import main
from .commands.legacy import COMMANDS, build_parser

__all__ = ["COMMANDS", "build_parser", "main"]

if __name__ == "__main__":
    sys.exit(main())
