"""What may befall a run of hours: another run in its folder, a folder that fails, processes that die.

Heavy imports are inside the functions.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..commands.frame import CommandError, explain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LOCK = ".lock"
# What the system says where nothing can be written any more, whatever the file.
WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
WHOLE = "What was written before is whole:"
AGAIN = "start the same command again, and it goes on."
# How gloo and NCCL say that a process which they wait for is gone; torch has no class for it.
LOST_PEER = ("closed by peer", "reset by peer", "Broken pipe", "NCCL error", "Socket Timeout", "failed to recv")
DEAD_WORKER = ("DataLoader worker (pid", "exited unexpectedly"), ("DataLoader worker (pid", "is killed by signal")


@contextmanager
def claim_output(folder: Path) -> Iterator[None]:
    """Makes the folder and holds it for this process; the lock ends with the process, however it ends.

    Raises:
        OSError: the folder cannot be written to.
        ValueError: another run holds it, or it is a file.
    """
    if folder.is_file():
        raise ValueError(f"`output` {folder} is a file: name a folder for the run.")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    with ExitStack() as opened:
        while True:
            file = opened.enter_context(path.open("w"))
            if sys.platform == "win32":
                break
            import fcntl

            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock, not inherited by data workers
            except BlockingIOError as error:
                raise ValueError(f"`output` {folder} belongs to another run that is still going on.") from error
            if _is_file_of(file.fileno(), path):  # else its last holder has just removed it
                break
        try:
            yield
        finally:
            with suppress(OSError):  # a lock that stays is in nobody's way, and what ended the run shall be told
                path.unlink()


def _is_file_of(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def held_output(folder: Path, state: Any, prepare: Callable[[], None] | None = None) -> Iterator[None]:
    """`claim_output` for all processes of a run, and around them what a fault means in words.

    Args:
        folder: of the results.
        state: accelerate's `PartialState` or `Accelerator`: which process this is.
        prepare: called on the main process when the folder is its own, before any process goes on.

    Raises:
        CommandError: while the folder was held it could no longer be written to, or a process has died.
        OSError: as `claim_output`; on every process.
        ValueError: alike, and what `prepare` raises.
    """
    from accelerate.utils import broadcast_object_list

    with ExitStack() as held:
        refusal: list[Exception | None] = [None]
        if state.is_main_process:
            try:
                held.enter_context(claim_output(folder))
                if prepare is not None:
                    prepare()
            except (OSError, ValueError) as error:
                refusal = [error]
        broadcast_object_list(refusal)
        if refusal[0] is not None:
            raise refusal[0]
        try:
            yield
        except (OSError, RuntimeError) as error:
            message = describe_fault(error, folder)
            if message is None:
                raise
            raise CommandError(message) from error


def describe_fault(error: Exception, folder: Path) -> str | None:
    """What befell a run, and what to do, in one line; None if it is no fault of the machine.

    Args:
        error: that ended the run.
        folder: of its results.
    """
    if isinstance(error, OSError):
        name = error.filename if isinstance(error.filename, str) else None
        inside = name is not None and folder.absolute() in Path(name).absolute().parents
        if not inside and (name is not None or error.errno not in WRITE_ERRORS):
            return None
        return f"{folder} was changed, or can no longer be written to: {explain(error)}. {WHOLE} mend that, {AGAIN}"
    text = str(error)
    if any(all(part in text for part in parts) for parts in DEAD_WORKER):
        return (
            f"A process that reads images has died, as it does when memory is short: {text.splitlines()[0].strip()} "
            f"{WHOLE} with fewer --workers, {AGAIN}"
        )
    if any(part in text for part in LOST_PEER):
        return f"Another process of this run has ended; its own message says why. {WHOLE} {AGAIN}"
    return None
