"""`detr-panoptic app`."""

import signal
from importlib.util import find_spec
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from .options import Device

MILLION = 1_000_000


def app(
    *,
    model: Annotated[
        str | None, Parameter(help="Folder or Hub id of a saved model; by default the bundled one.")
    ] = None,
    host: Annotated[str, Parameter(help="Address to listen on; 0.0.0.0 lets other machines connect.")] = "127.0.0.1",
    port: Annotated[int | None, Parameter(help="By default the first free one from 7860.")] = None,
    max_upload_mb: Annotated[float, Parameter(help="Largest upload in megabytes.", validator=Number(gt=0))] = 20,
    max_pixels: Annotated[float, Parameter(help="Largest image or frame in megapixels.", validator=Number(gt=0))] = 25,
    queue: Annotated[int, Parameter(help="Requests that wait; more are refused.", validator=Number(gte=1))] = 20,
    device: Device = "auto",
) -> None:
    """Serves a web page to try a model on.

    Upload images or videos to see and download their segments. Click the name of
    a segment to see where the model looked. The bundled model knows generated
    scenes; for photographs, use --model facebook/detr-resnet-50-panoptic.
    Needs: pip install "detr-panoptic[demo]"

    For example:

        detr-panoptic app
        detr-panoptic app --model facebook/detr-resnet-50-panoptic
        detr-panoptic app --model my_model --host 0.0.0.0 --port 80
    """
    if find_spec("gradio") is None:
        raise ImportError('The page needs gradio: pip install "detr-panoptic[demo]"')

    from ..app import launch
    from ..checkpoints import BUNDLED

    page = launch(
        model or BUNDLED,
        host=host,
        port=port,
        device=device,
        max_file_size=round(max_upload_mb * MILLION),
        max_pixels=round(max_pixels * MILLION),
        max_queue=queue,
        block=False,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the server deletes its files when it ends
    print(f"Open {page.local_url} (Ctrl-C ends it)", flush=True)
    page.block_thread()
