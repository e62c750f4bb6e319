"""What the page looks like, and what happens when something on it changes."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from .answers import PROMPT, Content, Desk, Segment, sentence
from .guard import Guard, Listeners
from .limits import Limits
from .uploads import Uploads

KEPT_SESSIONS = 32  # visitors of whom Gradio keeps the last answer, most of a megabyte each
MAX_AGE = 3600  # seconds that an upload is kept
TIDY_EVERY = 600  # seconds
STYLE = Path(__file__).with_name("page.css")
SCRIPT = Path(__file__).with_name("page.js")
FONTS = ("system-ui", "sans-serif")  # those of the reader's machine: nothing is loaded


@contextmanager
def page_application(segment: Segment, content: Content, limits: Limits, folder: Path) -> Iterator[Guard]:
    """The page as an ASGI application.

    Args:
        segment: runs the model; called in one of `limits.concurrency` threads.
        content: of the page.
        limits: of the server.
        folder: of the uploads; where `serving.private_folder` told Gradio to write.
    """
    uploads, listeners = Uploads(folder, limits), Listeners()
    workers = ThreadPoolExecutor(limits.concurrency, thread_name_prefix="segment")

    async def build() -> Guard:
        # In a running loop, because Gradio makes one, which nobody closes, wherever there is none.
        page = build_page(Desk(segment, content, uploads, workers), content, limits, listeners)
        return Guard(mount(page, content, limits), uploads, listeners)

    try:
        yield asyncio.run(build())
    finally:
        workers.shutdown(wait=False, cancel_futures=True)


def build_page(desk: Desk, content: Content, limits: Limits, listeners: Listeners) -> gr.Blocks:
    """The page.

    Args:
        desk: gives the answers.
        content: of the page.
        limits: of the server.
        listeners: know whether somebody still waits for an answer.
    """

    async def answer(request: gr.Request, picture: Any, task: Any, *thresholds: Any) -> str:
        if not await listeners.wait_for(request.session_hash):
            return ""
        return await desk.answer(picture, task, thresholds)

    with gr.Blocks(
        title=content.title, analytics_enabled=False, delete_cache=(TIDY_EVERY, MAX_AGE), fill_width=True
    ) as page:
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
                    sentence(PROMPT), apply_default_css=False, js_on_load=_on_load(content.script), elem_id="result"
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
    return page


def mount(page: gr.Blocks, content: Content, limits: Limits) -> Any:
    """The page as an ASGI application, to stand behind a `Guard`."""
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


def _on_load(script: str) -> str:
    """Run when the page is there: brings each answer to life as it comes."""
    return script + SCRIPT.read_text(encoding="utf-8")
