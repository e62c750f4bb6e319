"""Faults, put at a chosen moment into a real process of the program.

A process is forked off a server that has imported everything, so that it starts at once and dies like any other. It
counts what it does to the files of a folder (creating, renaming, removing …), and has its fault at a given count.
"""

import errno
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, run
from typing import Any

import psutil
import pytest

from detr_panoptic.commands import main
from detr_panoptic.commands.program import PROGRAM

PATIENCE = 300  # seconds; a process takes three on a free core
OPERATIONS = ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate")
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["detr_panoptic.training.run", "detr_panoptic.inference", "detr_panoptic.evaluation"])


@dataclass(frozen=True)
class Fault:
    """What befalls a process.

    Args:
        folder: whose files count.
        at: number of the operation on them before which it happens, from 1.
        what: happens; the process goes on after it, if it can.
    """

    folder: Path
    at: int
    what: Callable[[], Any]

    def install(self) -> None:
        """Have it happen in this process, though not in those that it forks off."""
        process, inside, count = os.getpid(), str(self.folder), 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if event not in OPERATIONS or os.getpid() != process:
                return
            path = _path_of(event, arguments)
            is_read = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if path.startswith(inside) and not is_read:
                count += 1
                if count == self.at:
                    self.what()

        sys.addaudithook(hook)


def _path_of(event: str, arguments: tuple[Any, ...]) -> str:
    """The path that an operation is about; "" of one on an open file."""
    if not isinstance(arguments[0], str | bytes | os.PathLike):
        return ""
    path = os.fsdecode(arguments[0])
    folder = arguments[-1] if event in ("os.remove", "os.rmdir") else -1
    return path if folder == -1 else os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)  # noqa: PTH115, PTH118


@dataclass(frozen=True)
class Torn:
    """Death in the middle of a write: of the one that makes a file longer than so many bytes."""

    length: int

    def install(self) -> None:
        """Have it happen in this process and those that it forks off."""
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.length, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.RLIM_INFINITY))


@dataclass(frozen=True)
class JumpingClock:
    """The time of day goes back and forth by years."""

    seed: int

    def install(self) -> None:
        """Have it happen in this process and those that it forks off."""
        rng, now = random.Random(self.seed), time.time
        time.time = lambda: now() + rng.uniform(-1e8, 1e8)


def signal_self(number: int) -> None:
    os.kill(os.getpid(), number)


die = partial(signal_self, signal.SIGKILL)
ask_to_end = partial(signal_self, signal.SIGTERM)


def kill_worker() -> None:
    """Ends a process that loads data."""
    psutil.Process().children()[0].kill()


@dataclass
class Outcome:
    """How a process ended: -9 after SIGKILL."""

    code: int
    text: str
    """What it printed, standard error too."""

    @property
    def error(self) -> str:
        """The last line of the program itself; libraries may complain after it."""
        return [line for line in self.text.splitlines() if line.startswith(PROGRAM)][-1]


@dataclass
class Started:
    """A process of the program."""

    process: Any
    log: Path

    def wait(self, patience: float = PATIENCE) -> Outcome:
        """Until it ends."""
        self.process.join(patience)
        if self.process.exitcode is None:
            self.process.kill()
            pytest.fail(f"The process did not end within {patience} seconds: {self.log.read_text()}")
        return Outcome(self.process.exitcode, self.log.read_text())


@dataclass
class Program:
    """Starts processes of the program; those that are left end with the test.

    Args:
        logs: folder for what they print.
    """

    logs: Path
    started: list[Started] = field(default_factory=list)

    def start(self, words: Sequence[object], *faults: Any, environment: Mapping[str, str] | None = None) -> Started:
        log = self.logs / f"{len(self.started)}.log"
        arguments = ([str(word) for word in words], faults, dict(environment or {}), log)
        process = PROCESSES.Process(target=_run_program, args=arguments)
        process.start()
        self.started.append(Started(process, log))
        return self.started[-1]

    def __call__(self, words: Sequence[object], *faults: Any) -> Outcome:
        return self.start(words, *faults).wait()


@pytest.fixture
def program(tmp_path_factory) -> Iterator[Program]:
    """Starts the program, with faults."""
    program = Program(tmp_path_factory.mktemp("logs"))
    yield program
    for started in program.started:
        started.process.kill()
        started.process.join()


def _run_program(words: list[str], faults: Sequence[Any], environment: dict[str, str], log: Path) -> None:
    _prepare_process(log)
    os.environ.update(environment)
    for fault in faults:
        fault.install()
    sys.exit(main(words))


def _prepare_process(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    import torch

    torch.set_num_threads(1)  # sums in one order


def in_own_process(function: Callable[..., None], *arguments: Any) -> None:
    """Calls a function where processes can be forked off; what it raises fails the test."""
    log = Path(os.devnull)
    receiver, sender = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_call, args=(function, arguments, log, sender))
    process.start()
    sender.close()
    try:
        trace = receiver.recv()
    except EOFError:
        trace = "it was killed"
    process.join()
    if trace:
        pytest.fail(trace)


def _call(function: Callable[..., None], arguments: Sequence[Any], log: Path, sender: Any) -> None:
    _prepare_process(log)
    trace = ""
    try:
        function(*arguments)
    except BaseException:
        trace = traceback.format_exc()
    sender.send(trace)


def ends_of(action: Callable[[], None], faults: Iterator[Any]) -> Iterator[Any]:
    """Does an action in a new process with each fault, until one does no harm; yields after each, what was met.

    To be called in a process of `in_own_process`.
    """
    for fault in faults:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                fault.install()
                action()
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, -signal.SIGKILL, -signal.SIGXFSZ), f"{fault}: exit code {code}"
        yield fault if code else None
        if code == 0:
            return


def scatter_times(folder: Path, seed: int) -> None:
    """Gives files and folders times of change from years ago to years ahead."""
    rng = random.Random(seed)
    for path in folder.rglob("*"):
        moment = time.time() + rng.uniform(-1e8, 1e8)
        os.utime(path, (moment, moment))


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own at a folder; skips the test where it cannot be had."""
    folder.mkdir()
    if shutil.which("mount") is None or run(_mount(folder, f"size={size}"), stderr=DEVNULL).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        run(["umount", "-l", folder], check=True)


def _mount(folder: Path, options: str) -> list[Any]:
    return ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]


def fill(folder: Path, *, leave: int) -> Path:
    """A file that leaves so many bytes of a disk."""
    path = folder / "filler"
    free = shutil.disk_usage(folder).free - leave
    try:
        path.write_bytes(b"0" * max(free, 0))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    return path


__all__ = [
    "Fault", "JumpingClock", "Torn", "ask_to_end", "die", "ends_of", "fill", "in_own_process", "kill_worker",
    "program", "scatter_times", "small_disk",
]  # fmt: skip
