"""Results of evaluations: values, Markdown tables that a terminal shows well too, and files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from ..data.files import written_whole
from ..data.plain_text import markdown, one_line
from ..visualization import draw_side_by_side, stack
from .average_precision import FIGURES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SHEET_WIDTH = 1600  # pixels, at most
GROUP_COLUMNS = ("classes", "number", "PQ", "SQ", "RQ")
PRECISION_COLUMNS = ("things", "AP", "AP50", "AP75", "small", "medium", "large")
CLASS_COLUMNS = ("class", "kind", "PQ", "SQ", "RQ", "TP", "FP", "FN")


@dataclass(frozen=True)
class GroupQuality:
    """Means over the classes of a group that occur, in [0, 1]; `n` is their number."""

    pq: float
    sq: float
    rq: float
    n: int


@dataclass(frozen=True)
class ClassQuality:
    """Quality of one class in [0, 1], 0 if it does not occur, and the numbers of matches, wrong and missed ones."""

    category_id: int
    is_thing: bool
    pq: float
    sq: float
    rq: float
    tp: int
    fp: int
    fn: int

    @property
    def occurs(self) -> bool:
        """Whether the class is in the truth or was predicted; means leave out the others."""
        return self.tp + self.fp + self.fn > 0


@dataclass(frozen=True)
class PanopticQualityResult:
    """Panoptic quality of images, all values in [0, 1]; prints as tables in percent.

    `overall`, `things` and `stuff` are means over the classes that occur; `per_class` has all by name, in order.
    """

    overall: GroupQuality
    things: GroupQuality
    stuff: GroupQuality
    per_class: dict[str, ClassQuality]

    @property
    def pq(self) -> float:
        """Panoptic quality, the mean over all classes that occur."""
        return self.overall.pq

    @property
    def sq(self) -> float:
        """Segmentation quality: the mean IoU of matches, averaged over classes."""
        return self.overall.sq

    @property
    def rq(self) -> float:
        """Recognition quality: the F1 score, averaged over classes."""
        return self.overall.rq

    def __str__(self) -> str:
        """Returns the tables of groups and of classes that occur."""
        return _tables(self, {})


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
        return _tables(self.quality, self.ap)

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
        parts.append(_tables(self.quality, self.ap, escape=markdown))
        if self.failures:
            messages = "\n".join(f"- {markdown(message)}" for message in self.failures)
            parts.append(f"{len(self.failures)} images could not be read and are left out:\n\n{messages}")
        rows = [[name, str(value)] for name, value in self.settings.items()]
        parts.append(format_table(["setting", "value"], rows, escape=markdown))
        return "\n\n".join(parts) + "\n"


def _tables(
    quality: PanopticQualityResult, ap: Mapping[str, Mapping[str, Any]], *, escape: Callable[[str], str] = one_line
) -> str:
    """Returns tables of groups of classes, of average precision and of the classes that occur, in percent."""
    groups = {"all": quality.overall, "things": quality.things, "stuff": quality.stuff}
    group_rows = [[name, str(row.n), *map(percent, (row.pq, row.sq, row.rq))] for name, row in groups.items()]
    tables = [format_table(GROUP_COLUMNS, group_rows)]
    if ap:
        rows = [[kind, *(percent(values[name]) for name in FIGURES)] for kind, values in ap.items()]
        tables.append(format_table(PRECISION_COLUMNS, rows))
    class_rows = [
        [
            name,
            "thing" if row.is_thing else "stuff",
            *map(percent, (row.pq, row.sq, row.rq)),
            *map(str, (row.tp, row.fp, row.fn)),
            *(percent(values["per_class"][label]) for values in ap.values()),
        ]
        for label, (name, row) in enumerate(quality.per_class.items())
        if row.occurs
    ]
    header = [*CLASS_COLUMNS, *(f"{kind} AP" for kind in ap)]
    return "\n\n".join([*tables, format_table(header, class_rows, escape=escape)])


def format_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, escape: Callable[[str], str] = one_line
) -> str:
    """Returns a Markdown table: the first column is aligned to the left, the others to the right.

    Example:
        >>> print(format_table(["class", "PQ"], [["cat", "62.1"], ["sky", "9.0"]]))
        | class |   PQ |
        | :---- | ---: |
        | cat   | 62.1 |
        | sky   |  9.0 |
    """
    lines = [[escape(cell) for cell in line] for line in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    aligned = [
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in lines
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [aligned[0], rule, *aligned[1:]])


def percent(value: float | None) -> str:
    """Returns a fraction in percent with one decimal, and "-" for None."""
    return "-" if value is None else f"{100 * value:.1f}"
