"""The result of an evaluation, and its files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..data.files import written_whole
from ..data.plain_text import markdown, one_line
from ..visualization import draw_side_by_side
from .average_precision import FIGURES
from .results import format_table, metric_tables, percent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..data.categories import Categories
    from .results import ClassQuality, GroupQuality, PanopticQualityResult

METRICS, TABLES, WORST = "metrics.json", "metrics.md", "worst_images.png"
SHEET_WIDTH = 1600  # pixels, at most
ROW_GAP = 8  # pixels


@dataclass(frozen=True)
class Example:
    """One image with its truth and its prediction.

    Args:
        name: of the image.
        pq: panoptic quality of this image alone: the mean over the classes that it has or that were predicted.
        image: RGB.
        truth: `segmentation` (H, W) and `segments_info`.
        prediction: the same.
    """

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
        ap: average precision of "box" and "mask": `ap`, `ap50`, `ap75`, `ap_small`, `ap_medium`, `ap_large` and
            `per_class`, a list in the order of the classes; None where there is nothing to measure. Empty without.
        images: number of images.
        failures: messages about images that could not be read and are not part of the metrics.
        dataset: its name.
        settings: how the model was run.
        categories: of the dataset.
        worst: the images with the lowest panoptic quality, the lowest first.
    """

    quality: PanopticQualityResult
    ap: dict[str, dict[str, Any]]
    images: int
    failures: list[str]
    dataset: str
    settings: dict[str, Any]
    categories: Categories = field(repr=False)
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
        per_class = [
            {"name": name, **asdict(row)}
            | {f"{kind}_ap": values["per_class"][label] for kind, values in self.ap.items()}
            for label, (name, row) in enumerate(self.per_class.items())
        ]
        return {
            "panoptic_quality": {name: asdict(group) for name, group in groups.items()},
            "average_precision": {kind: {name: values[name] for name in FIGURES} for kind, values in self.ap.items()},
            "per_class": per_class,
            "dataset": self.dataset,
            "images": self.images,
            "skipped": self.failures,
            "settings": self.settings,
        }

    def table(self, *, escape: Callable[[str], str] = one_line) -> str:
        """Returns the metrics in percent as Markdown tables; classes that do not occur are left out.

        Args:
            escape: makes names harmless: for terminals, or with `data.plain_text.markdown` for rendered Markdown.
        """
        return metric_tables(self.quality, self.ap, escape=escape)

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
        for name, text in ((METRICS, metrics), (TABLES, self._markdown())):
            with written_whole(folder / name) as part:
                part.write_text(text, encoding="utf-8")
        if self.worst:
            with written_whole(folder / WORST) as part:
                self.draw_worst().save(part, format="PNG")
        return folder

    def draw_worst(self) -> Image.Image:
        """Draws the worst images below each other: image, annotation and prediction."""
        rows = []
        for example in self.worst:
            captions = (example.name, "annotation", f"prediction, PQ {percent(example.pq)}")
            row = draw_side_by_side(
                example.image, example.truth, example.prediction, self.categories.id2label, captions=captions
            )
            row.thumbnail((SHEET_WIDTH, row.height), Image.Resampling.LANCZOS)
            rows.append(row)
        return _stack(rows)

    def _markdown(self) -> str:
        parts = [f"# Evaluation\n\n{self.images} images. Numbers in percent; classes that occur."]
        parts.append(self.table(escape=markdown))
        if self.failures:
            messages = "\n".join(f"- {markdown(message)}" for message in self.failures)
            parts.append(f"{len(self.failures)} images could not be read and are left out:\n\n{messages}")
        rows = [[name, str(value)] for name, value in self.settings.items()]
        parts.append(format_table(["setting", "value"], rows, escape=markdown))
        return "\n\n".join(parts) + "\n"


def _stack(rows: Sequence[Image.Image]) -> Image.Image:
    tops = np.cumsum([0, *(row.height + ROW_GAP for row in rows)]).tolist()
    sheet = Image.new("RGB", (max(row.width for row in rows), tops[-1] - ROW_GAP), "white")
    for row, top in zip(rows, tops, strict=False):
        sheet.paste(row, (0, top))
    return sheet
