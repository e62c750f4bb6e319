"""Tells names of repositories on the Hugging Face Hub from paths."""

import re
from pathlib import Path

OWNER_AND_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def hub_name(source: str) -> str | None:
    """Returns OWNER/NAME; None for other text such as "../data", or if a file or folder has this name."""
    return source if OWNER_AND_NAME.fullmatch(source) and not Path(source).exists() else None


def public_name(source: str, split: str | None = None) -> str:
    """Returns the name of a dataset or model for readers: its name on the Hub, or its folder's without the path."""
    name = source if hub_name(source) else Path(source).resolve().name
    return name if split is None else f"{name} {split}"
