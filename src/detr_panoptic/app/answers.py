"""From what a visitor chose to the answer: checked, in time, and always HTML that is safe to show."""

import asyncio
import base64
import html
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL import Image

from .uploads import PictureError, Uploads

logger = logging.getLogger(__name__)
PROMPT = "Choose a picture, drop one, or paste it."
# Gradio runs what it shows through two languages of templates, in which these have a meaning.
TEMPLATES = str.maketrans({sign: f"&#{ord(sign)};" for sign in "{}$`@\\"})


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
            return sentence(PROMPT)
        seconds = self.uploads.limits.max_seconds
        try:
            settings = self._settings(task, thresholds)
            work = asyncio.get_running_loop().run_in_executor(
                self.workers, self._work, picture, settings, time.monotonic() + seconds
            )
            return await asyncio.wait_for(work, seconds)
        except PictureError as error:
            return sentence(str(error), role="alert")
        except (asyncio.TimeoutError, OutOfTime):
            text = f"This took longer than {seconds:g} seconds and was given up. A smaller picture is faster."
            return sentence(text, role="alert")
        except Exception:
            logger.exception("A picture could not be segmented.")
            return sentence("Something went wrong here. What it was is in the server's log.", role="alert")

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


def sentence(text: str, *, role: str = "status") -> str:
    """A text as what stands in place of a result."""
    return f'<p class="sentence" role="{role}">{html.escape(text)}</p>'.translate(TEMPLATES)
