"""A web page to try a model on, made of Gradio's components."""

import logging
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from fastapi import Depends, HTTPException, Request
from PIL import Image

from ..checkpoints import BUNDLED
from ..data.categories import Categories
from ..explanation import explain
from ..explanation.explanation import TASKS as EXPLAINED_TASKS
from ..image_reading import FORMATS
from ..inference import Prediction, Predictor
from ..scenes import SCENE_CATEGORIES, make_scene
from ..visualization import class_colors, shade

logger = logging.getLogger(__name__)
TASKS = {"panoptic": "things and stuff", "instance": "things only", "semantic": "one segment per class"}
MAX_PIXELS = 25_000_000
COLORED_INSTANCES = 20  # of a class
SHOWN_SIDE = 1600  # pixels; larger images are shown smaller
OPACITY = 0.55
MAX_AGE, TIDY_EVERY = 3600, 600  # seconds: age of uploads and results that are deleted, and how often that happens
EXAMPLE_SEEDS = range(77_000_000, 77_000_004)  # training draws its scenes from lower seeds
FONTS = ("system-ui", "sans-serif")  # of the visitor's machine, so that nothing is loaded from elsewhere
NOTHING = "No segment has such a score. A lower threshold may show some."


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
        max_pixels: Of an image.
        max_queue: Number of requests that wait; more are refused.
        block: Serves until interrupted; False returns at once.

    Returns:
        The page, with its address in `local_url`; `close()` stops the server.

    Raises:
        OSError: If the port is taken.
        ValueError: If the model cannot be loaded or `max_pixels` is not positive.

    Example:
        >>> from detr_panoptic.app import launch
        >>> page = launch(block=False)  # doctest: +SKIP
        >>> page.local_url  # doctest: +SKIP
        'http://127.0.0.1:7860/'
    """
    predictor = model if isinstance(model, Predictor) else Predictor.from_pretrained(model, device=device)
    page = build_page(predictor, max_pixels=max_pixels)
    page.queue(max_size=max_queue, default_concurrency_limit=1)
    page.launch(
        server_name=host,
        server_port=port,
        max_file_size=max_file_size,
        allowed_paths=[],
        app_kwargs={"dependencies": [Depends(refuse_addresses)]},
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=["api"],
        theme=gr.themes.Default(font=FONTS, font_mono=("monospace",)),
    )
    logger.info("The page is at %s", page.local_url)
    if block:
        page.block_thread()
    return page


async def refuse_addresses(request: Request) -> None:
    """Refuses requests that name an address of the web, which Gradio 6.31 would fetch and serve to the visitor.

    Gradio fetches public addresses only, but of any size. It refuses files of the server itself.

    Raises:
        HTTPException: For such a request.
    """
    is_form = request.headers.get("content-type", "").startswith("multipart/form-data")
    try:
        content = None if is_form or request.method != "POST" else await request.json()
    except ValueError:  # not JSON, which Gradio refuses
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
    """Builds the page of a model without serving it.

    Args:
        predictor: Runs the model.
        max_pixels: Of an image.

    Raises:
        ValueError: If `max_pixels` is not positive.
    """
    if max_pixels <= 0:
        raise ValueError(f"`max_pixels` must be positive, got {max_pixels}.")
    knows_scenes = predictor.categories.names == SCENE_CATEGORIES.names
    with gr.Blocks(
        title="Panoptic segmentation", analytics_enabled=False, delete_cache=(TIDY_EVERY, MAX_AGE), fill_width=True
    ) as page:
        gr.Markdown(
            "# Panoptic segmentation\n\nAssigns every pixel to an object or a background region. Click a name below "
            "the result to see where the model looked."
            + (" This model knows generated scenes, not photographs." if knows_scenes else "")
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                # With `image_mode=None` Gradio keeps the file as it is.
                image = gr.Image(
                    label="Image", sources=["upload", "clipboard"], type="filepath", image_mode=None, height=280
                )
                desk = _Desk(predictor, max_pixels, Path(image.GRADIO_CACHE))
                if knows_scenes:
                    gr.Examples(_examples(desk.cache), image, label="Generated scenes", cache_examples=False)
                task = gr.Radio(
                    [(f"{name}: {what}", name) for name, what in TASKS.items()], value="panoptic", label="Task"
                )
                threshold = gr.Slider(
                    0,
                    1,
                    value=predictor.processor.threshold,
                    step=0.01,
                    label="Threshold",
                    info="Segments with a lower score are left out.",
                )
            with gr.Column(scale=3, min_width=280):
                # The colors are fixed here, because Gradio never deletes the files of a component that is updated.
                segments = gr.AnnotatedImage(label="Segments", color_map=_color_map(predictor.categories))
                attention = gr.Image(
                    format="png", interactive=False, show_label=False, buttons=["download", "fullscreen"]
                )
                table = gr.Dataframe(headers=["segment", "score", "area"], interactive=False)
                files = gr.File(label="Segment ids (PNG), segments (JSON) and overlay", interactive=False)
        inputs = [image, task, threshold]
        gr.on(
            [image.change, task.change, threshold.change],
            desk.segment,
            inputs=inputs,
            outputs=[segments, attention, table, files],
            api_name="segment",
            trigger_mode="always_last",
            concurrency_id="model",
            preprocess=False,  # Pillow would open files of any size and format
        )
        segments.select(
            desk.explain,
            inputs=inputs,
            outputs=attention,
            api_name="explain",
            concurrency_id="model",
            preprocess=False,
        )
    return page


def _examples(cache: Path) -> list[str]:
    """Writes generated scenes that the bundled model has not seen, and returns the files."""
    files = []
    for number, seed in enumerate(EXAMPLE_SEEDS, start=1):
        files.append(str(_new_folder(cache) / f"scene_{number}.png"))
        scene = make_scene(seed, height=256, width=256)["image"]
        scene.resize((512, 512), Image.Resampling.BICUBIC).save(files[-1])
    return files


def _new_folder(cache: Path) -> Path:
    """Returns a new folder in Gradio's cache, the only place from which it serves and deletes files."""
    cache.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=cache))


def _with_message(function: Callable) -> Callable:
    """Shows the text of a ValueError or TypeError to the visitor; Gradio shows no text of other errors."""

    @wraps(function)
    def wrapped(self: "_Desk", image: Any, *arguments: Any) -> Any:
        try:
            return function(self, image, *arguments)
        except (ValueError, TypeError) as error:
            folder = str(Path(image["path"]).parent) if isinstance(image, dict) else ""
            raise gr.Error(str(error).replace(f"{folder}/", ""), print_exception=False) from error

    return wrapped


class _Desk:
    """Answers the events of the page."""

    def __init__(self, predictor: Predictor, max_pixels: int, cache: Path) -> None:
        self.predictor = predictor
        self.max_pixels = max_pixels
        self.cache = cache

    @_with_message
    def segment(self, image: Any, task: Any, threshold: Any) -> tuple[Any, None, Any, Any]:
        """Returns the new values of segments, attention, table and files."""
        if image is None:
            return None, None, None, None
        path = self._checked(image)
        prediction = self.predictor(path, task=task, threshold=None if task == "semantic" else threshold)
        if not prediction.segments:
            gr.Info(NOTHING)
        folder = _new_folder(self.cache)
        prediction.save(folder)
        names = _names(prediction)
        table = [
            [
                name,
                "" if segment.score is None else f"{segment.score:.2f}",
                f"{segment.area / prediction.segmentation.size:.1%}",
            ]
            for name, segment in zip(names, prediction.segments, strict=True)
        ]
        return _annotated(prediction, names), None, table, sorted(map(str, folder.iterdir()))

    @_with_message
    def explain(self, image: Any, task: Any, threshold: Any, selected: gr.SelectData) -> Any:
        """Returns the sheet of the selected segment."""
        if task not in EXPLAINED_TASKS:
            raise ValueError("A semantic map adds up all queries, so no single query shows where the model looked.")
        segment_id = selected.index + 1  # segments are listed in the order of their ids
        path = self._checked(image)
        explanation = explain(self.predictor, path, threshold=threshold, segments=[segment_id], task=task)
        return explanation.draw()

    def _checked(self, image: Any) -> Path:
        """Returns the uploaded file, whose size is known before any pixel is decoded."""
        path = Path(image["path"])
        try:
            with Image.open(path, formats=FORMATS) as picture:
                width, height = picture.size
        except Image.DecompressionBombError:
            width = height = self.max_pixels
        except Exception as error:  # broken files raise anything from SyntaxError to struct.error
            raise ValueError(f"{path.name} is not an image that can be read ({', '.join(FORMATS)}).") from error
        if width * height > self.max_pixels:
            raise ValueError(f"{path.name} has more than the {self.max_pixels:,} pixels that are allowed.")
        return path


def _names(prediction: Prediction) -> list[str]:
    """Returns a name for each segment: `boat`, `boat 2`, `sky`."""
    seen: Counter[int] = Counter()
    names = []
    for segment in prediction.segments:
        names.append(_name(segment.label, seen[segment.label_id]))
        seen[segment.label_id] += 1
    return names


def _name(label: str, instance: int) -> str:
    return f"{label} {instance + 1}" if instance else label


def _color_map(categories: Categories) -> dict[str, str]:
    """Returns the color of each name; instances beyond the last get one from Gradio."""
    return {
        _name(categories.names[label], instance): "#{:02x}{:02x}{:02x}".format(*shade(color, instance))
        for label, color in class_colors(categories.id2label).items()
        for instance in range(COLORED_INSTANCES)
    }


def _annotated(prediction: Prediction, names: list[str]) -> tuple[Image.Image, list[tuple[np.ndarray, str]]]:
    """Returns the image, and the opacity and the name of each segment, as Gradio's annotated image takes them."""
    image = prediction.image.copy()
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    ids = np.asarray(Image.fromarray(prediction.segmentation).resize(image.size, Image.Resampling.NEAREST))
    masks = [OPACITY * (ids == segment.id) for segment in prediction.segments]
    return image, list(zip(masks, names, strict=True))
