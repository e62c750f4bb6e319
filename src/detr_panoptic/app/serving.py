"""The server: where it writes, where it listens, how it starts and ends."""

import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import uvicorn

from .guard import Application

MAX_CONNECTIONS = 512
IDLE_SECONDS = 10  # after which a connection without a request is closed
ENDING_SECONDS = 3  # for answers on their way when the server is told to stop

SETTINGS = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    # Statistics of its own queue, which are shown nowhere here, and for which it would make a table after each answer.
    "GRADIO_ANALYTICS_MAX_EVENTS": "1",
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": "1000000000",
}


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder for uploads that goes with the server; Gradio, which must not be imported yet, is told to use it."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="detr_panoptic_", ignore_cleanup_errors=True) as folder:
        settings = {**SETTINGS, "GRADIO_TEMP_DIR": folder}
        os.environ.update(settings)
        try:
            yield Path(folder)
        finally:
            for name in settings:
                del os.environ[name]
            os.environ.update({name: before[name] for name in settings if name in before})


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: name or address of this machine.
        port: 0 for any that is free.

    Raises:
        OSError: somebody else listens there, or this machine has no such address.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(MAX_CONNECTIONS)
    except OSError:
        listener.close()
        raise
    return listener


def serve(application: Application, listener: socket.socket, *, on_start: Callable[[], None]) -> None:
    """Serve until the process is told to stop (SIGINT, SIGTERM); to be called in the main thread.

    Args:
        application: in ASGI's sense.
        listener: see `listen`.
        on_start: called when the first request can come.
    """
    # Having ended its answers, uvicorn raises the signal once more; by itself, SIGTERM would leave the uploads behind.
    signal.signal(signal.SIGTERM, _leave)
    config = uvicorn.Config(
        application,
        log_level="warning",
        ws="none",
        server_header=False,
        forwarded_allow_ips="*",  # only the addresses on the page depend on it; nobody is trusted for their own
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=ENDING_SECONDS,
    )
    Server(config, on_start).run(sockets=[listener])


def _leave(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)  # the shell's code for it


class Server(uvicorn.Server):
    """Says when it has started.

    Args:
        config: of the server.
        on_start: called then.
    """

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None]) -> None:
        """Keep the call."""
        super().__init__(config)
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As the base class; then say so."""
        await super().startup(sockets)
        if self.started:
            self._on_start()
