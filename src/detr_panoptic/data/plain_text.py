"""Names of classes and files, which come from strangers, as text that is nothing but text wherever it is shown.

And errors of other libraries, of which the first line tells enough.
"""

_MARKDOWN = "\\|`*_[]~"
_BREAKS = "\t\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029"
_CONTROLS = (*range(0x20), *range(0x7F, 0xA0))
# What turns the direction of the text around it, so that a name reads as another.
_DIRECTIONS = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_UNDECODED = range(0xDC80, 0xDD00)  # bytes of a file's name that are no UTF-8, which no file or terminal takes
_SHOWN = {
    **{code: f"\\x{code:02x}" for code in _CONTROLS},
    **{code: f"\\u{code:04x}" for code in (*_DIRECTIONS, *_UNDECODED)},
    **dict.fromkeys(map(ord, _BREAKS), " "),
}


def one_line(text: str) -> str:
    """The text without line breaks; control characters and those of direction as escapes that can be read.

    A terminal that is shown a name does not obey it, and a table that holds one stays a table.
    """
    return text.translate(_SHOWN)


def first_line(error: BaseException) -> str:
    """The first line of an error's text; of one without a text its kind."""
    return (str(error).strip() or type(error).__name__).partition("\n")[0]


def markdown(text: str) -> str:
    """The text for Markdown and the HTML in it: in a line, an item of a list, a cell of a table."""
    text = one_line(text).replace("&", "&amp;").replace("<", "&lt;")
    return "".join("\\" + letter if letter in _MARKDOWN else letter for letter in text)
