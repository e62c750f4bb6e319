"""Prepares pages while MkDocs builds the site (mkdocs.yml names this file)."""

import re
from typing import Any

from detr_panoptic.commands.program import EXIT_CODES, build_program

COMMAND_LINE = "reference/command-line.md"
COMMENT = re.compile(r" ?<!--.*?-->")
GUIDE = re.compile(r"\bdocs/(\w+)\.md\b")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Drops comments, which are for tests, and lists all commands and options on the page of the command line."""
    markdown = COMMENT.sub("", markdown)
    if page.file.src_uri != COMMAND_LINE:
        return markdown
    _title, first, commands = build_program(["train"]).generate_docs().partition("**Commands**")
    return f"{markdown}```text\n{EXIT_CODES}\n```\n\n" + GUIDE.sub(r"[\1](../\1.md)", first + commands)
