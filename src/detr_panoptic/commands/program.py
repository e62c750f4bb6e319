"""The program `detr-panoptic`: its commands, how they end, and how an error looks."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from inspect import BoundArguments
from io import TextIOWrapper
from typing import Any

from cyclopts import App, CycloptsError, Parameter

from .. import __version__, register
from ..data.plain_text import one_line
from .app import app
from .convert import convert
from .data import check, complete_stuff, label, split
from .data import convert as convert_data
from .demo import demo
from .evaluate import evaluate
from .explain import explain
from .export import export
from .predict import predict
from .push import push
from .quantize import quantize
from .train import train, train_command

PROGRAM = "detr-panoptic"
DATA_ERRORS, USER_ERROR, INTERRUPTED, CLOSED_PIPE, STOPPED = 1, 2, 130, 141, 143
HELP = f"""DETR for panoptic segmentation: assigns every pixel of an image to an object or a
background region.

`{PROGRAM} COMMAND --help` explains a command and shows examples."""
EXIT_CODES = f"""--debug, anywhere on the line, shows the traceback of an error.

Exit codes:
    {DATA_ERRORS - 1}    everything was done
    {DATA_ERRORS}    `data check` found an error in the data
    {USER_ERROR}    something was wrong, see stderr; also if only some images could not be read
    {INTERRUPTED}  interrupted (Ctrl-C)
    {CLOSED_PIPE}  the reader of the output went away (`| head`)
    {STOPPED}  SIGTERM: `train` saved a checkpoint to continue from"""
COMMANDS: tuple[Callable[..., Any], ...] = (
    *(demo, predict, explain, app, train, evaluate, convert, export, quantize, push),
)
DATA_COMMANDS: tuple[Callable[..., Any], ...] = (check, convert_data, split, label, complete_stuff)
WORKER_FAILED = ("Caught ", " in DataLoader worker process ")  # how torch passes an error on, with a traceback
EXPECTED_ERRORS = (CycloptsError, OSError, ValueError, TypeError, FloatingPointError, ImportError)
"""Errors whose text is enough; any other is shown with its type."""


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        words: the words after the program's name; None reads the command line.

    Returns:
        The exit code. An error is one line on stderr; with `--debug`, a traceback comes first.
    """
    words = list(sys.argv[1:] if words is None else words)
    try:
        code = _run(words)
        sys.stdout.flush()  # a closed pipe is noticed here, not while the interpreter exits
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        with suppress(OSError, ValueError):  # stdout may have been replaced by something without a descriptor
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    return code


def _run(words: list[str]) -> int:
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        program = build_program(words)
        if words in ([], ["data"]):
            program.help_print(words, console=program.error_console)
            return USER_ERROR
        command, bound, _ = program.parse_args(words, print_error=False, exit_on_error=False, verbose=False)
        return _call(command, bound)
    except BrokenPipeError:
        raise
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # how rich reports a closed pipe
            raise BrokenPipeError from stop
        raise
    except Exception as error:  # the outermost handler: nothing above could do more than show it
        if debug:
            traceback.print_exc()
        print(f"{PROGRAM}: error: {error_line(error, debug=debug)}", file=sys.stderr)
        return USER_ERROR


def _call(command: Callable[..., Any], bound: BoundArguments) -> int:
    """Calls a command, or cyclopts' own that show a page."""
    if command.__module__.startswith("cyclopts"):
        command(*bound.args, **bound.kwargs)
        return 0
    if sys.stderr.isatty():
        print("loading libraries …", file=sys.stderr)
    _prepare()
    is_first = os.environ.get("RANK", "0") == "0"
    with (
        _log_on_stderr(logging.INFO if is_first else logging.WARNING),
        redirect_stdout(sys.stdout if is_first else None),
    ):
        code = command(*bound.args, **bound.kwargs) or 0
    if "RANK" in os.environ:
        from torch import distributed

        if distributed.is_initialized():  # otherwise PyTorch warns at the end
            distributed.destroy_process_group()
    return code


def build_program(words: Sequence[str] = ()) -> App:
    """Returns the program's parser.

    The module of a command is imported when the command is used. The defaults that `train --help` shows are those of
    the recipe and the file that `words` name.
    """
    program = App(
        name=PROGRAM,
        help=HELP,
        help_format="plaintext",
        help_epilogue=EXIT_CODES,
        version=__version__,
        default_parameter=Parameter(negative=()),
    )
    data = App(name="data", help="Checks, converts and completes datasets.", help_epilogue="", sort_key=len(COMMANDS))
    for group, commands in ((program, COMMANDS), (data, DATA_COMMANDS)):
        for place, command in enumerate(commands):
            with_settings = command is train and words[:1] == ["train"]
            group.command(train_command(words[1:]) if with_settings else command, sort_key=place, help_epilogue="")
    program.command(data)
    return program


def _prepare() -> None:
    """Registers the package; keeps PostScript from being run, and progress bars and broken names from the output."""
    from datasets import disable_progress_bars
    from PIL import EpsImagePlugin
    from transformers.utils.logging import disable_progress_bar

    register()
    EpsImagePlugin.gs_binary = False  # Pillow runs Ghostscript for PostScript under any file name
    disable_progress_bar()  # of transformers, for a file or two
    if not sys.stderr.isatty():
        disable_progress_bars()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # names of files may not be valid UTF-8
            stream.reconfigure(errors="backslashreplace")


class _PlainFormatter(logging.Formatter):
    """Escapes control characters in names of files and classes."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the message of a record."""
        return "\n".join(map(one_line, super().format(record).split("\n")))


@contextmanager
def _log_on_stderr(level: int) -> Iterator[None]:
    """Shows what the package logs."""
    logger, handler = logging.getLogger("detr_panoptic"), logging.StreamHandler()
    handler.setFormatter(_PlainFormatter())
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def error_line(error: Exception, *, debug: bool = False) -> str:
    """Returns an error as one line: the first line of its text, with its type if the text alone would be unclear.

    Args:
        error: The error.
        debug: Whether the traceback was shown; otherwise the line of an unexpected error names the option for it.
    """
    if type(error).__name__.startswith("StrictDataclass") and isinstance(error.__cause__, Exception):
        error = error.__cause__  # transformers wraps what was wrong with a field of a configuration
    kind, lines = type(error).__name__, str(error).strip().splitlines()
    if isinstance(error, OSError) and error.strerror and error.filename:
        return one_line(f"{error.filename}: {error.strerror}")
    if lines and all(part in lines[0] for part in WORKER_FAILED):
        lines = [line.removeprefix(f"{kind}: ") for line in lines if line.startswith(f"{kind}: ")] or lines[-1:]
    if lines and isinstance(error, EXPECTED_ERRORS):
        return one_line(lines[0])
    hint = "" if debug else " (--debug shows where it happened)"
    return one_line(f"{kind}: {lines[0]}" if lines else kind) + hint
