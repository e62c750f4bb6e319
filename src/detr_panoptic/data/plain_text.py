"""Escapes untrusted names of classes and files for terminals and Markdown, and shortens lists and errors."""

from collections.abc import Iterable
from typing import Any

_MARKDOWN = "\\|`*_[]~"
_BREAKS = "\t\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029"
_CONTROLS = (*range(0x20), *range(0x7F, 0xA0))
# Characters that change the direction of the surrounding text, so that a name reads as another.
_DIRECTIONS = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_UNDECODED = range(0xDC80, 0xDD00)  # bytes of a file name that are not UTF-8, which cannot be written
_SHOWN = {
    **{code: f"\\x{code:02x}" for code in _CONTROLS},
    **{code: f"\\u{code:04x}" for code in (*_DIRECTIONS, *_UNDECODED)},
    **dict.fromkeys(map(ord, _BREAKS), " "),
}


def one_line(text: str) -> str:
    r"""Returns the text without line breaks, with control and direction characters as escapes.

    Examples:
        >>> one_line("a" + chr(10) + "b" + chr(27) + "[2J")
        'a b\\x1b[2J'
    """
    return text.translate(_SHOWN)


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's text, or its type if there is no text."""
    return (str(error).strip() or type(error).__name__).partition("\n")[0]


def markdown(text: str) -> str:
    """Escapes text for a line, list item or table cell of Markdown, HTML included."""
    text = one_line(text).replace("&", "&amp;").replace("<", "&lt;")
    return "".join("\\" + letter if letter in _MARKDOWN else letter for letter in text)


def listing(values: Iterable[Any], *, limit: int = 6) -> str:
    """Returns the first values and how many more there are."""
    words = [str(value) for value in values]
    more = f" and {len(words) - limit} more" if len(words) > limit else ""
    return ", ".join(words[:limit]) + more


def counted(count: int, thing: str) -> str:
    """Returns a number and its thing.

    Examples:
        >>> counted(1, "image"), counted(2, "image")
        ('1 image', '2 images')
    """
    return f"{count} {thing}" if count == 1 else f"{count} {thing}{'es' if thing.endswith('s') else 's'}"
