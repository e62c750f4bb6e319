"""Prepares pages while MkDocs builds the site (mkdocs.yml names this file)."""

import re
from typing import Any

COMMENT = re.compile(r" ?<!--.*?-->")
GUIDE = re.compile(r"\bdocs/(\w+)\.md\b")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Drops comments, which are for tests, and links the guides that the options of commands name."""
    markdown = COMMENT.sub("", markdown)
    return GUIDE.sub(r"[\1](../\1.md)", markdown) if page.file.src_uri == "reference/command-line.md" else markdown
