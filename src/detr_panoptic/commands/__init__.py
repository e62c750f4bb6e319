"""The command line.

Each command is a typed function that calls one public function of the package and prints its result; cyclopts makes
options and help pages from its signature. Only this room knows about exit codes.
"""

from .program import main

__all__ = ["main"]
