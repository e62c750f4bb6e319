"""`detr-panoptic app`: a page to try a model on."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ..inference.old_loading import add_device_option, load_model, resolve_device
from .demo import SHIPPED_MODEL
from .frame import CommandError, add_command

if TYPE_CHECKING:
    import argparse

    from .frame import CommandParser

MEGA = 1_000_000
DESCRIPTION = """
Serve a page on which people drop an image, choose the task and thresholds, and see the segments: point at one for its
class and score, click it for where the model looked, and take the map, the list and the picture with you.

Without --model it is the small model that ships with the package, which knows generated scenes; --model
facebook/detr-resnet-50-panoptic is for photographs. Nothing that is uploaded outlives an hour or the server, and
nothing is loaded from elsewhere. docs/app.md says more. Needs: pip install "detr-panoptic[demo]"
"""
EXAMPLES = """
detr-panoptic app
detr-panoptic app --model facebook/detr-resnet-50-panoptic --max-pixels 12
detr-panoptic app --model my_model --host 0.0.0.0 --port 80 --queue 50
"""


def register(subparsers: argparse._SubParsersAction[CommandParser]) -> None:
    """Add the command and its options."""
    parser = add_command(
        subparsers,
        "app",
        run,
        summary="a page to try it on",
        description=DESCRIPTION,
        examples=EXAMPLES,
    )
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="folder or name on the Hub of a saved model (default: the one that ships)",
    )
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="0 takes any that is free")
    parser.add_argument("--max-upload-mb", type=float, default=20, metavar="MB", help="megabytes of a file")
    parser.add_argument(
        "--max-pixels", type=float, default=25, metavar="MILLION", help="millions of an image's pixels"
    )
    parser.add_argument("--max-seconds", type=float, default=60, metavar="S", help="for an image, and for an upload")
    parser.add_argument("--concurrency", type=int, default=1, metavar="N", help="images that are segmented at once")
    parser.add_argument("--queue", type=int, default=20, metavar="N", help="images that wait; others are asked to")
    add_device_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until interrupted."""
    _check(arguments)

    from ..app.limits import Limits
    from ..app.serving import listen, private_folder, serve

    limits = Limits(
        max_upload_bytes=round(arguments.max_upload_mb * MEGA),
        max_pixels=round(arguments.max_pixels * MEGA),
        concurrency=arguments.concurrency,
        queue=arguments.queue,
        max_seconds=arguments.max_seconds,
    )
    try:
        listener = listen(arguments.host, arguments.port)
    except OSError as error:
        raise CommandError(
            f"`--host {arguments.host} --port {arguments.port}` cannot be served: {error.strerror or error}."
        ) from error
    with listener, private_folder() as folder:
        model, processor = load_model(arguments.model or str(SHIPPED_MODEL), resolve_device(arguments.device))

        from .page import application_for

        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
        host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        address = f"http://{host}:{listener.getsockname()[1]}"
        with application_for(model, processor, limits, folder) as application:
            serve(application, listener, on_start=lambda: _say(address))
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what makes no sense, and say what is not installed, before anything is loaded."""
    for name in ("max_upload_mb", "max_pixels", "max_seconds", "concurrency", "queue"):
        value = getattr(arguments, name)
        if not 0 < value < float("inf"):
            raise CommandError(f"`--{name.replace('_', '-')}` must be positive, got {value:g}.")
    if not 0 <= arguments.port <= 65535:  # what TCP has
        raise CommandError(f"`--port` must be from 0 to 65535, got {arguments.port}.")
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise CommandError("The page needs gradio: pip install 'detr-panoptic[demo]'")


def _say(address: str) -> None:
    from rich.console import Console

    Console(highlight=False).print(f"Open {address} (Ctrl-C ends it)", markup=False, soft_wrap=True)
