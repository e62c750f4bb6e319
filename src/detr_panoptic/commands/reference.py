"""The program as the site's page of the command line shows it (docs/reference/command-line.md)."""

from .program import build_program

program = build_program(["train"])  # with an option for each setting
