"""Tells names of repositories on the Hugging Face Hub from paths."""

import re
from pathlib import Path

OWNER_AND_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def hub_name(source: str) -> str | None:
    """Returns OWNER/NAME; None for other text such as "../data", or if a file or folder has this name."""
    return source if OWNER_AND_NAME.fullmatch(source) and not Path(source).exists() else None
