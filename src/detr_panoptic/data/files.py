"""Atomic writes: a reader sees a complete file or folder, or none, even if the process is killed."""

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .plain_text import first_line

PARTIAL_PREFIX = ".partial_"  # hidden, so that readers of folders leave such files out
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of writing alone, which name no path


@contextmanager
def written_whole(path: str | Path, *, durable: bool = False) -> Iterator[Path]:
    """Yields a path to write to, which replaces `path` if no error is raised and is removed otherwise.

    It has the suffix of `path` and lies beside it; missing folders are created. With `durable`, the contents are on
    the disk at the end (`fsync`) and survive a power failure.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(PARTIAL_PREFIX + path.name)
    try:
        yield part
        if durable:
            sync([part])
        part.replace(path)
    except OSError as error:
        _name(error, path)
        raise
    finally:
        part.unlink(missing_ok=True)


def write_file(path: str | Path, contents: str | bytes | memoryview) -> None:
    """Writes a file as `written_whole` does; text as UTF-8, where bytes of names that are not UTF-8 are escaped."""
    with written_whole(path) as part:
        part.write_bytes(contents.encode("utf-8", "backslashreplace") if isinstance(contents, str) else contents)


@contextmanager
def whole_files(folder: str | Path, what: str) -> Iterator[Path]:
    """Yields an empty folder; the files written to it replace those of the existing `folder` when all are complete.

    Raises:
        OSError: the files, which the message calls `what`, could not be written. Earlier files are unchanged.
    """
    folder = Path(folder)
    partial = folder / f"{PARTIAL_PREFIX}files"
    shutil.rmtree(partial, ignore_errors=True)
    with reported_failure(what, folder, partial):
        partial.mkdir()
        yield partial
        sync([*partial.iterdir(), partial])
        for path in partial.iterdir():
            path.replace(folder / path.name)
        sync([folder])
        partial.rmdir()


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """Yields a folder to fill, which becomes `folder` if no error is raised and is removed otherwise.

    Raises:
        ValueError: `folder` exists and is not empty, or another process is writing it.
    """
    folder = Path(folder)
    check_new_folder(folder)
    partial = folder.with_name(f"{folder.name}.partial")
    if partial.exists():
        raise ValueError(f"{str(partial)!r} is left over from an interrupted run, or another process writes it.")
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.is_dir():
            folder.rmdir()
        partial.rename(folder)
    except BaseException as error:
        _name(error, folder)
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _name(error: BaseException, path: Path) -> None:
    if isinstance(error, OSError) and error.errno in NO_ROOM and not error.filename:
        error.filename = str(path)


def check_folder(folder: str | Path, name: str = "output") -> None:
    """Raises ValueError unless a folder exists or can be made, and OSError if it cannot be written to."""
    folder = Path(folder).absolute()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        inside = "" if nearest == folder else f" in the way of {str(folder)!r}"
        raise ValueError(f"`{name}` must be a folder, got the file {str(nearest)!r}{inside}.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise OSError(f"`{name}` {folder} cannot be written: nothing may be created in {nearest}.")


def check_new_folder(folder: str | Path) -> None:
    """Raises what `check_folder` raises, and ValueError unless the folder is empty or does not exist."""
    check_folder(folder)
    if Path(folder).is_dir() and any(Path(folder).iterdir()):
        raise ValueError(f"`output` {str(folder)!r} must be an empty folder or not exist.")


@contextmanager
def reported_failure(what: str, folder: Path, partial: Path) -> Iterator[None]:
    """Removes the folder `partial` after an error, and raises OSError: `what` could not be written to `folder`."""
    try:
        yield
    except Exception as error:  # torch, safetensors and the system raise different errors for a full disk
        shutil.rmtree(partial, ignore_errors=True)
        advice = "Earlier files are unchanged: free some space and run the same command again."
        raise OSError(f"{what} could not be written to {folder}: {first_line(error)} {advice}") from error


def sync(paths: Iterable[Path]) -> None:
    """Waits until the contents of files, or the entries of folders, are on the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
