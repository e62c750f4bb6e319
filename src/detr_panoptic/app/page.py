"""What the page looks like, and what happens when something on it changes."""

import asyncio
import base64
import html
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from PIL import Image

from .guard import Listeners
from .limits import Limits
from .uploads import PictureError, Uploads

logger = logging.getLogger(__name__)
KEPT_SESSIONS = 32  # visitors of whom Gradio keeps the last answer, most of a megabyte each
MAX_AGE = 3600  # seconds that an upload is kept
TEMPLATES = str.maketrans({sign: f"&#{ord(sign)};" for sign in "{}$`@\\"})
PROMPT = "Choose a picture, drop one, or paste it."
STYLE = Path(__file__).with_name("page.css")
SCRIPT = Path(__file__).with_name("page.js")
FONTS = ("system-ui", "sans-serif")  # those of the reader's machine: nothing is loaded


@dataclass(frozen=True)
class Settings:
    """What a visitor chose, checked.

    Args:
        task: one of those the page offers.
        thresholds: by their names.
    """

    task: str
    thresholds: Mapping[str, float]


@dataclass(frozen=True)
class Threshold:
    """A slider from 0 to 1.

    Args:
        name: the image processor's.
        label: what it is called on the page.
        info: what it does.
        value: at first.
        tasks: for which it has a meaning.
    """

    name: str
    label: str
    info: str
    value: float
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Content:
    """What the page shows of a model.

    Args:
        title: above all.
        introduction: a sentence or two, in Markdown; nothing in it may come from strangers.
        tasks: what each means, by name; the first is chosen.
        thresholds: the sliders.
        examples: pictures for those who have none, by the text of their button.
        style: CSS of what `segment` returns.
        script: JavaScript that defines `connect(root, data)`, called with each new answer and its data.
    """

    title: str
    introduction: str
    tasks: Mapping[str, str]
    thresholds: Sequence[Threshold]
    examples: Mapping[str, Callable[[], Image.Image]]
    style: str
    script: str


class OutOfTime(Exception):  # noqa: N818  as `Refusal`
    """Raised between two steps of a picture that has been given up."""


class File(NamedTuple):
    """Something to take away: the text of its button, its name, its kind as MIME has it, and what is in it."""

    label: str
    name: str
    kind: str
    content: bytes


class Result(NamedTuple):
    """What a picture became.

    Args:
        markup: HTML, in which every text is escaped.
        data: for the scripts, as JSON can hold it.
        files: to take away.
    """

    markup: str
    data: dict[str, Any]
    files: Sequence[File]


Segment = Callable[[str, Image.Image, Settings, Callable[[], None]], Result]
"""Runs the model: takes name, picture, settings, and what to call between steps."""


def build_page(
    segment: Segment, content: Content, uploads: Uploads, listeners: Listeners
) -> tuple[gr.Blocks, ThreadPoolExecutor]:
    """The page, and the threads that work for it.

    Args:
        segment: runs the model; called in one of `limits.concurrency` threads.
        content: of the page.
        uploads: where pictures come from, and the limits.
        listeners: know whether somebody still waits for an answer.
    """
    limits = uploads.limits
    workers = ThreadPoolExecutor(limits.concurrency, thread_name_prefix="segment")
    desk = Desk(segment, content, uploads, workers)

    async def answer(request: gr.Request, picture: Any, task: Any, *thresholds: Any) -> str:
        if not await listeners.wait_for(request.session_hash):
            return ""
        return await desk.answer(picture, task, thresholds)

    with gr.Blocks(title=content.title, analytics_enabled=False, delete_cache=(600, MAX_AGE)) as page:
        gr.Markdown(f"# {content.title}\n\n{content.introduction}", elem_id="introduction")
        with gr.Row(elem_id="work"):
            with gr.Column(scale=1, min_width=280):
                picture = gr.Image(
                    label="Picture", sources=["upload", "clipboard"], type="filepath", height=240, elem_id="picture"
                )
                with gr.Row(elem_id="examples"):
                    buttons = [(gr.Button(text, size="sm"), make) for text, make in content.examples.items()]
                tasks = list(content.tasks)
                task = gr.Radio(
                    tasks, value=tasks[0], label="Task", info="; ".join(content.tasks.values()), elem_id="task"
                )
                sliders = [
                    gr.Slider(
                        0,
                        1,
                        value=threshold.value,
                        step=0.01,
                        label=threshold.label,
                        info=threshold.info,
                        visible=tasks[0] in threshold.tasks,
                        elem_id=threshold.name,
                    )
                    for threshold in content.thresholds
                ]
                again = gr.Button("Segment", variant="primary", elem_id="segment")
            with gr.Column(scale=3, min_width=280):
                result = gr.HTML(
                    _sentence(PROMPT), apply_default_css=False, js_on_load=_on_load(content.script), elem_id="result"
                )
        gr.on(
            [again.click, picture.change, task.change, *(slider.change for slider in sliders)],
            answer,
            inputs=[picture, task, *sliders],
            outputs=result,
            api_name="segment",
            trigger_mode="always_last",
            concurrency_limit=limits.concurrency,
            concurrency_id="segment",
            preprocess=False,  # `Uploads.read` decodes, within bounds
        )
        for button, make in buttons:
            button.click(make, outputs=picture, api_visibility="private", concurrency_id="examples")
        if sliders:
            shown = [threshold.tasks for threshold in content.thresholds]
            task.change(
                lambda name: [gr.update(visible=name in tasks) for tasks in shown],
                task,
                sliders,
                api_visibility="private",
                show_progress="hidden",
                concurrency_id="examples",
            )
    page.queue(max_size=limits.queue, default_concurrency_limit=1)
    page.state_session_capacity = KEPT_SESSIONS
    return page, workers


def mount(page: gr.Blocks, content: Content, limits: Limits) -> Any:
    """The page as an ASGI application, to stand behind a `Guard`."""
    from fastapi import FastAPI

    theme = gr.themes.Default(font=FONTS, font_mono=("monospace",))
    application = gr.mount_gradio_app(
        FastAPI(openapi_url=None, docs_url=None, redoc_url=None),
        page,
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=limits.max_upload_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        theme=theme,
        css=STYLE.read_text(encoding="utf-8") + content.style,
    )
    # Mounted, Gradio 6.31 never sets this, and while it is False, any file that a request names is copied and served.
    # The guard refuses such requests as well.
    page.has_launched = True
    return application


class Desk:
    """Takes pictures one after another, and always has an answer.

    Args:
        segment: runs the model.
        content: what the page offers.
        uploads: where pictures come from.
        workers: the threads in which `segment` runs.
    """

    def __init__(self, segment: Segment, content: Content, uploads: Uploads, workers: ThreadPoolExecutor) -> None:
        """Keep them."""
        self.segment = segment
        self.content = content
        self.uploads = uploads
        self.workers = workers

    async def answer(self, picture: Any, task: Any, thresholds: Sequence[Any]) -> str:
        """HTML: the result, or a sentence that says why there is none."""
        if picture is None:
            return _sentence(PROMPT)
        seconds = self.uploads.limits.max_seconds
        try:
            settings = self._settings(task, thresholds)
            work = asyncio.get_running_loop().run_in_executor(
                self.workers, self._work, picture, settings, time.monotonic() + seconds
            )
            return await asyncio.wait_for(work, seconds)
        except PictureError as error:
            return _sentence(str(error), role="alert")
        except (asyncio.TimeoutError, OutOfTime):
            text = f"This took longer than {seconds:g} seconds and was given up. A smaller picture is faster."
            return _sentence(text, role="alert")
        except Exception:
            logger.exception("A picture could not be segmented.")
            return _sentence("Something went wrong here. What it was is in the server's log.", role="alert")

    def _settings(self, task: Any, thresholds: Sequence[Any]) -> Settings:
        """What came from the page, which anybody can imitate."""
        if task not in self.content.tasks:
            raise PictureError("There is no such task here.")
        values = {}
        for threshold, value in zip(self.content.thresholds, thresholds, strict=True):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise PictureError(f"“{threshold.label}” must be a number from 0 to 1.")
            if task in threshold.tasks:
                values[threshold.name] = float(value)
        return Settings(task, values)

    def _work(self, picture: Any, settings: Settings, end: float) -> str:
        def check_time() -> None:
            if time.monotonic() > end:
                raise OutOfTime

        check_time()  # a job before this one may not have stopped in time
        name, image = self.uploads.read(picture)
        return _page_of(self.segment(name, image, settings, check_time))


def _page_of(result: Result) -> str:
    """The element that `start` of page.js brings to life."""
    files = [file._asdict() | {"content": base64.b64encode(file.content).decode("ascii")} for file in result.files]
    data = html.escape(json.dumps({**result.data, "files": files}, separators=(",", ":")))
    return f'<section class="segments" data-page="{data}">{result.markup}</section>'.translate(TEMPLATES)


def _sentence(text: str, *, role: str = "status") -> str:
    return f'<p class="sentence" role="{role}">{html.escape(text)}</p>'.translate(TEMPLATES)


def _on_load(script: str) -> str:
    """Run when the page is there: brings each answer to life as it comes."""
    return script + SCRIPT.read_text(encoding="utf-8")
