"""Names of repositories on the Hugging Face Hub, told from paths."""

import re
from pathlib import Path

OWNER_AND_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def hub_name(source: str) -> str | None:
    """OWNER/NAME; None if it reads otherwise, such as "../data", or if there is a file or folder of that name here."""
    return source if OWNER_AND_NAME.fullmatch(source) and not Path(source).exists() else None
