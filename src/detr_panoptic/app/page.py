"""A web page to try a model on, made of Gradio's components."""

import logging
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from fastapi import Depends, HTTPException, Request
from PIL import Image

from ..checkpoints import BUNDLED
from ..explanation import explain
from ..inference import Predictor
from ..inference.video import VIDEO_SUFFIXES
from ..scenes import SCENE_CATEGORIES, UNSEEN_SEED, make_scene
from ..visualization import class_colors, shade
from .uploads import check_image, segment_uploads, shown_errors

logger = logging.getLogger(__name__)
TASKS = {"panoptic": "things and stuff", "instance": "things only", "semantic": "one segment per class"}
MAX_PIXELS, MAX_PORT = 25_000_000, 65535
TILE = 1024  # pixels
SHOWN_SIDE = 1600  # pixels; larger images are shown smaller
OPACITY = 0.55
COLORED_INSTANCES = 20  # of a class; further ones get colors from Gradio
MAX_AGE, TIDY_EVERY = 3600, 600  # seconds: age at which Gradio deletes uploads and results, and how often it looks
EXAMPLE_SEEDS = range(UNSEEN_SEED, UNSEEN_SEED + 4)  # training draws its scenes from lower seeds
FONTS = ("system-ui", "sans-serif")  # of the visitor's machine, so that nothing is loaded from elsewhere
BUTTONS: Any = ["download", "fullscreen"]
PROGRESS = gr.Progress()


def launch(
    model: Any = BUNDLED,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    device: str = "auto",
    max_file_size: int | str = "20mb",
    max_pixels: int = MAX_PIXELS,
    max_queue: int = 20,
    block: bool = True,
) -> gr.Blocks:
    """Serves the page of a model.

    Args:
        model: A `Predictor`, or the folder or Hub id of a saved model. The bundled one knows generated scenes.
        host: Address to listen on; "0.0.0.0" lets other machines connect.
        port: None takes the variable GRADIO_SERVER_PORT, or the first free port from 7860.
        device: Of a model that is loaded here.
        max_file_size: Of an upload, in bytes or as text such as "20mb".
        max_pixels: Of an image or a frame of a video.
        max_queue: Number of requests that wait; more are refused.
        block: Serves until interrupted; False returns at once.

    Returns:
        The page, with its address in `local_url`; `close()` stops the server.

    Raises:
        OSError: If the port is taken.
        ValueError: If the model cannot be loaded.

    Examples:
        >>> from detr_panoptic.app import launch
        >>> page = launch(block=False)  # doctest: +SKIP
        >>> page.close()  # doctest: +SKIP
    """
    if port is not None and not 0 < port <= MAX_PORT:
        raise ValueError(f"`port` must be from 1 to {MAX_PORT}, got {port}.")
    predictor = Predictor.of(model, device=device)
    page = build_page(predictor, max_pixels=max_pixels)
    page.queue(max_size=max_queue, default_concurrency_limit=1)
    off: Any = dict.fromkeys(("share", "ssr_mode", "run_history", "enable_monitoring"), False)
    page.launch(
        server_name=host,
        server_port=port,
        max_file_size=max_file_size,
        allowed_paths=[],
        app_kwargs={"dependencies": [Depends(refuse_addresses)]},
        prevent_thread_lock=True,
        quiet=True,
        **off,
        footer_links=["api"],
        theme=gr.themes.Default(font=FONTS, font_mono=("monospace",)),
    )
    if block:
        logger.info("The page is at %s", page.local_url)
        page.block_thread()
    return page


async def refuse_addresses(request: Request) -> None:
    """Refuses requests that name an address of the web. Gradio 6.31 would fetch public ones, whatever their size.

    Raises:
        HTTPException: For such a request.
    """
    is_upload = request.headers.get("content-type", "").startswith("multipart/form-data")
    try:
        content = None if is_upload or request.method != "POST" else await request.json()
    except ValueError:  # not JSON: Gradio refuses it
        content = None
    if "://" in request.url.path or _names_address(content):
        raise HTTPException(403, "Addresses are not fetched. Please upload a file.")


def _names_address(content: Any) -> bool:
    """Returns whether a JSON value has a file description whose path is an address."""
    if isinstance(content, dict):
        path = content.get("path")
        return (isinstance(path, str) and "://" in path) or any(map(_names_address, content.values()))
    return isinstance(content, list) and any(map(_names_address, content))


def build_page(predictor: Predictor, *, max_pixels: int = MAX_PIXELS) -> gr.Blocks:
    """Builds the page of a model, for images of at most `max_pixels`, without serving it."""
    knows_scenes = predictor.categories.names == SCENE_CATEGORIES.names
    knows = " This model knows generated scenes, not photographs." if knows_scenes else ""
    with gr.Blocks(
        title="Panoptic segmentation", analytics_enabled=False, delete_cache=(TIDY_EVERY, MAX_AGE), fill_width=True
    ) as page:
        gr.Markdown(
            f"# Panoptic segmentation\n\nClick a name below the segments to see where the model looked.{knows}"
        )
        desk = _Desk(predictor, max_pixels, cache=Path(page.GRADIO_CACHE))
        with gr.Row():
            choices = [(f"{name}: {meaning}", name) for name, meaning in TASKS.items()]
            task = gr.Radio(choices, value="panoptic", label="Task", scale=2, min_width=280)
            info = desk.threshold_info
            threshold = gr.Slider(0, 1, desk.threshold, step=0.01, label="Threshold", info=info, min_width=240)
            tiles = gr.Checkbox(label="Tiles", info=f"Cut images above {TILE} pixels", min_width=120)
        if desk.own_thresholds:
            with gr.Accordion("Tuned thresholds of the classes", open=False):
                headers = ["class", "threshold"]
                gr.Dataframe(desk.own_thresholds, headers=headers, show_label=False, interactive=False, max_height=300)
        settings = [task, threshold, tiles]
        with gr.Tab("One image"):
            _add_image(desk, settings, with_examples=knows_scenes)
        with gr.Tab("Several images, videos"):
            _add_files(desk, settings)
    return page


# Without `preprocess`, because there Pillow opens files of any size and format.
EVENT: Any = {"concurrency_id": "model", "preprocess": False}


def _add_image(desk: "_Desk", settings: list[Any], *, with_examples: bool) -> None:
    """Adds what shows the segments of one image, and where the model looked."""
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            image = gr.Image(label="Image", sources=["upload", "clipboard"], type="filepath", height=280)
            if with_examples:
                gr.Examples(desk.examples(), image, label="Generated scenes", cache_examples=False)
            headers = ["segment", "score", "area"]
            table = gr.Dataframe(headers=headers, label="Scores", show_label=False, interactive=False, max_height=300)
            files = gr.File(label="Segment ids (PNG), segments (JSON), overlay", interactive=False)
        with gr.Column(scale=3, min_width=280):
            # The colors are fixed here: Gradio does not delete the files of a component that changes its settings.
            segments = gr.AnnotatedImage(label="Segments", color_map=desk.color_map(), height=640)
            attention = gr.Image(label="Attention", show_label=False, interactive=False, buttons=BUTTONS)
    inputs = [image, *settings]
    gr.on(
        [component.change for component in inputs],
        desk.segment,
        inputs=inputs,
        outputs=[segments, attention, table, files],
        api_name="segment",
        trigger_mode="always_last",
        **EVENT,
    )
    # A client of the API cannot select, so this is not part of it.
    hidden: Any = {"api_name": "explain", "api_visibility": "undocumented"}
    segments.select(desk.explain, inputs=inputs, outputs=attention, **hidden, **EVENT)


def _add_files(desk: "_Desk", settings: list[Any]) -> None:
    """Adds what shows one result for each of several images and videos."""
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            kinds = ["image", *VIDEO_SUFFIXES]
            uploads = gr.File(label="Images and videos", file_count="multiple", file_types=kinds, height=280)
            button = gr.Button("Segment", variant="primary")
            files = gr.File(label="Segment ids, segments and overlays (ZIP)", interactive=False)
        with gr.Column(scale=3, min_width=280):
            gallery = gr.Gallery(
                label="Results", columns=3, height=640, object_fit="contain", buttons=BUTTONS, interactive=False
            )
    inputs = [uploads, *settings]
    button.click(desk.segment_files, inputs=inputs, outputs=[gallery, files], api_name="segment_files", **EVENT)


class _Desk:
    """Answers the events of the page.

    Args:
        predictor: Runs the model.
        max_pixels: Of an image.
        cache: Gradio's folder, the only one from which it serves files, and in which it deletes them.
    """

    def __init__(self, predictor: Predictor, max_pixels: int, *, cache: Path) -> None:
        self.predictor, self.max_pixels, self.cache = predictor, max_pixels, cache
        self.cache.mkdir(parents=True, exist_ok=True)
        own = predictor.processor.threshold
        self.own_thresholds: list[list[Any]] = []  # name and threshold of each class
        self.threshold_info = "Minimum score of a segment"
        if isinstance(own, list):
            self.own_thresholds = list(map(list, zip(predictor.categories.names, own, strict=True)))
            self.threshold_info += "; until it is moved, each class has a tuned one"
        self.threshold = round(sum(own) / len(own), 2) if isinstance(own, list) else own

    def examples(self) -> list[str]:
        """Writes generated scenes that the bundled model has not seen, and returns the files."""
        folder = Path(tempfile.mkdtemp(dir=self.cache))
        for number, seed in enumerate(EXAMPLE_SEEDS, start=1):
            scene = make_scene(seed, height=256, width=256)["image"]
            scene.resize((512, 512), Image.Resampling.BICUBIC).save(folder / f"scene_{number}.png")
        return sorted(map(str, folder.iterdir()))

    def color_map(self) -> dict[str, str]:
        """Returns the color of each name of `_names`."""
        names, colors = self.predictor.categories.names, class_colors(self.predictor.categories.id2label)
        return {
            _name(names[label], number): "#{:02x}{:02x}{:02x}".format(*shade(color, number))
            for label, color in colors.items()
            for number in range(COLORED_INSTANCES)
        }

    def segment(self, image: Any, task: Any, threshold: Any, tiles: Any) -> tuple[Any, None, Any, Any]:
        """Returns the new values of segments, attention, table and files."""
        if image is None:
            return None, None, None, None
        path = Path(image["path"])
        with shown_errors(path):
            check_image(path, self.max_pixels)
            prediction = self.predictor(path, tile=TILE if tiles else None, **self._options(task, threshold))
        folder = Path(tempfile.mkdtemp(dir=self.cache))
        prediction.save(folder)
        shown = prediction.image.copy()
        shown.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
        ids = np.asarray(Image.fromarray(prediction.segmentation).resize(shown.size, Image.Resampling.NEAREST))
        masks, table, seen = [], [], Counter[int]()
        for segment in prediction.segments:
            name = _name(segment.label, seen[segment.label_id])
            seen[segment.label_id] += 1
            masks.append((OPACITY * (ids == segment.id), name))
            score = "" if segment.score is None else f"{segment.score:.2f}"
            table.append([name, score, f"{segment.area / prediction.segmentation.size:.1%}"])
        return (shown, masks), None, table, sorted(map(str, folder.iterdir()))

    def explain(self, image: Any, task: Any, threshold: Any, tiles: Any, selected: gr.SelectData) -> Image.Image:
        """Returns the sheet of the selected segment; segments are listed in the order of their ids, from 1."""
        path = Path(image["path"])
        with shown_errors(path):
            if max(check_image(path, self.max_pixels)) > TILE and tiles:
                raise ValueError("Where the model looked is only known for images that are not cut into tiles.")
            ids, options = [selected.index + 1], self._options(task, threshold)
            return explain(self.predictor, path, segments=ids, **options).draw()

    def segment_files(
        self, uploads: Any, task: Any, threshold: Any, tiles: Any, progress: gr.Progress = PROGRESS
    ) -> tuple[Any, Any]:
        """Returns the new values of gallery and ZIP file."""
        if not uploads:
            return None, None
        folder, options = Path(tempfile.mkdtemp(dir=self.cache)), self._options(task, threshold)
        predict = partial(self.predictor, tile=TILE if tiles else None, **options)
        return segment_uploads(predict, uploads, folder, max_pixels=self.max_pixels, progress=progress)

    def _options(self, task: str, threshold: float) -> dict[str, Any]:
        """Returns what a visitor chose; the model's own threshold if it was not moved."""
        is_own = task == "semantic" or threshold == self.threshold
        return {"task": task, "threshold": None if is_own else threshold}


def _name(label: str, number: int) -> str:
    """Returns the name of the segment with this number, from 0, of its class: `boat`, `boat 2`."""
    return f"{label} {number + 1}" if number else label
