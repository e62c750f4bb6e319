"""The result of an evaluation, and its files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from ..data.files import written_whole
from ..data.plain_text import markdown
from ..visualization import draw_side_by_side, stack
from .average_precision import FIGURES
from .results import format_table, metric_tables, percent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .results import ClassQuality, GroupQuality, PanopticQualityResult

SHEET_WIDTH = 1600  # pixels, at most


class Example(NamedTuple):
    """One image and its own PQ; truth and prediction are `segmentation` and `segments_info`."""

    name: str
    pq: float
    image: Image.Image
    truth: Mapping[str, Any]
    prediction: Mapping[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a model on a dataset, in [0, 1]; prints as tables in percent.

    Args:
        quality: panoptic quality.
        ap: average precision of "box" and "mask", what `average_precision` returns; empty without.
        images: number of images.
        failures: messages about images that could not be read and are not part of the metrics.
        dataset: its name; may be empty.
        settings: how the model was run.
        worst: the images with the lowest panoptic quality, the lowest first.
    """

    quality: PanopticQualityResult
    ap: dict[str, dict[str, Any]]
    images: int
    failures: list[str]
    dataset: str
    settings: dict[str, Any]
    worst: list[Example] = field(default_factory=list, repr=False)

    @property
    def pq(self) -> float:
        """Panoptic quality, the mean over all classes that occur."""
        return self.quality.pq

    @property
    def things(self) -> GroupQuality:
        """Quality of things: `pq`, `sq`, `rq` and `n`, the number of classes that occur."""
        return self.quality.things

    @property
    def stuff(self) -> GroupQuality:
        """Quality of stuff, as `things`."""
        return self.quality.stuff

    @property
    def per_class(self) -> dict[str, ClassQuality]:
        """Quality of each class by its name."""
        return self.quality.per_class

    @property
    def metrics(self) -> dict[str, Any]:
        """All numbers as plain values, the content of `metrics.json`."""
        groups = {"all": self.quality.overall, "things": self.things, "stuff": self.stuff}
        return {
            "panoptic_quality": {name: asdict(group) for name, group in groups.items()},
            "average_precision": {kind: {name: values[name] for name in FIGURES} for kind, values in self.ap.items()},
            "per_class": [
                {"name": name, **asdict(row), **{f"{kind}_ap": self.ap[kind]["per_class"][label] for kind in self.ap}}
                for label, (name, row) in enumerate(self.per_class.items())
            ],
            "dataset": self.dataset,
            "images": self.images,
            "skipped": self.failures,
            "settings": self.settings,
        }

    def table(self) -> str:
        """Returns the metrics in percent as Markdown tables; classes that do not occur are left out."""
        return metric_tables(self.quality, self.ap)

    def __str__(self) -> str:
        """Returns the tables and the number of images."""
        skipped = f"; {len(self.failures)} could not be read and are left out" if self.failures else ""
        return f"{self.table()}\n\n{self.images} images{skipped}"

    def save(self, folder: str | Path) -> Path:
        """Writes `metrics.json`, the tables as `metrics.md`, and the worst images as `worst_images.png`.

        Args:
            folder: created if it does not exist.

        Returns:
            The folder.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        metrics = json.dumps(self.metrics, indent=1, ensure_ascii=False) + "\n"
        for name, text in (("metrics.json", metrics), ("metrics.md", self._markdown())):
            with written_whole(folder / name) as part:
                part.write_text(text, encoding="utf-8")
        if self.worst:
            with written_whole(folder / "worst_images.png") as part:
                stack([self._draw(example) for example in self.worst]).save(part, format="PNG")
        return folder

    def _draw(self, example: Example) -> Image.Image:
        """Draws image, annotation and prediction side by side."""
        captions = (example.name, "annotation", f"prediction, PQ {percent(example.pq)}")
        id2label = dict(enumerate(self.per_class))
        row = draw_side_by_side(example.image, example.truth, example.prediction, id2label, captions=captions)
        row.thumbnail((SHEET_WIDTH, row.height), Image.Resampling.LANCZOS)
        return row

    def _markdown(self) -> str:
        parts = [f"# Evaluation\n\n{self.images} images. Numbers in percent; classes that occur."]
        parts.append(metric_tables(self.quality, self.ap, escape=markdown))
        if self.failures:
            messages = "\n".join(f"- {markdown(message)}" for message in self.failures)
            parts.append(f"{len(self.failures)} images could not be read and are left out:\n\n{messages}")
        rows = [[name, str(value)] for name, value in self.settings.items()]
        parts.append(format_table(["setting", "value"], rows, escape=markdown))
        return "\n\n".join(parts) + "\n"
