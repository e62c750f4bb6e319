"""Results of evaluations: values, Markdown tables that a terminal shows well too, and files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ..data.files import write_file
from ..data.plain_text import counted, markdown, one_line
from ..visualization import draw_side_by_side
from ..visualization.report import Section, Table, write_report
from .average_precision import FIGURES
from .errors import KINDS, ErrorAnalysis, ErrorExample
from .tables import format_table, percent

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

    `overall`, `things` and `stuff` are means over the classes that occur; `per_class` has each class by name.

    Examples:
        >>> from detr_panoptic import PanopticQuality
        >>> from detr_panoptic.scenes import SCENE_CATEGORIES
        >>> result = PanopticQuality(SCENE_CATEGORIES).compute()
        >>> result.pq, result.things.n, result.per_class["sheep"].occurs
        (0.0, 0, False)
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
        ap: average precision of "box" and "mask", as `average_precision` returns it; empty if not measured.
        images: number of images.
        failures: messages about images that could not be read and are not part of the metrics.
        dataset: its name; may be empty.
        settings: how the model was run.
        errors: what went wrong, by cause.
        worst: the images with the lowest panoptic quality, the lowest first.

    Examples:
        >>> from detr_panoptic import evaluate
        >>> from detr_panoptic.checkpoints import BUNDLED
        >>> evaluation = evaluate(BUNDLED, "scenes", limit=2, average_precision=False, progress=False)
        >>> evaluation.images, evaluation.things.n, evaluation.per_class["sky"].tp
        (2, 5, 2)
    """

    quality: PanopticQualityResult
    ap: dict[str, dict[str, Any]]
    images: int
    failures: list[str]
    dataset: str
    settings: dict[str, Any]
    errors: ErrorAnalysis
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
            "errors": self.errors.counts,
            "confusion": [
                {"true": true, "found": found, "number": n} for (true, found), n in self.errors.confusion.items()
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
        return f"{self.table()}\n\n{self.errors}\n\n{counted(self.images, 'image')}{skipped}"

    def save(self, folder: str | Path) -> Path:
        """Writes `metrics.json`, the tables as `metrics.md`, and `report.html` with the tables and the worst errors.

        Args:
            folder: created if it does not exist.

        Returns:
            The folder.
        """
        folder = Path(folder)
        write_file(folder / "metrics.json", json.dumps(self.metrics, indent=1, ensure_ascii=False) + "\n")
        write_file(folder / "metrics.md", self._markdown())
        title = f"Evaluation on {self.dataset}" if self.dataset else "Evaluation"
        groups = {"PQ": self.quality.overall, "things": self.things, "stuff": self.stuff}
        figures = [(name, percent(group.pq)) for name, group in groups.items()]
        write_report(folder / "report.html", title, self.sections(), figures=[*figures, ("images", str(self.images))])
        return folder

    def sections(self) -> list[Section]:
        """Returns the parts of the report: metrics, errors, worst images, settings."""
        id2label = dict(enumerate(self.per_class))

        def draw(example: Example | ErrorExample) -> Image.Image:
            return draw_side_by_side(example.image, example.truth, example.prediction, id2label)

        errors = [
            Section(f"{kind[0].upper()}{kind[1:]}: {KINDS[kind]}", pictures=[(e.title, draw(e)) for e in examples])
            for kind, examples in self.errors.examples.items()
            if examples
        ]
        worst = [(f"{example.name}, PQ {percent(example.pq)}", draw(example)) for example in self.worst]
        return [
            Section("Metrics in percent", tables=metric_tables(self.quality, self.ap)),
            Section("What went wrong", tables=self.errors.tables()),
            Section("Images with the lowest PQ", pictures=worst),
            *errors,
            Section(
                "How it was measured",
                lines=[f"could not be read: {message}" for message in self.failures],
                tables=[(("setting", "value"), [[name, str(value)] for name, value in self.settings.items()])],
            ),
        ]

    def _markdown(self) -> str:
        parts = [f"# Evaluation\n\n{counted(self.images, 'image')}. Numbers in percent; classes that occur."]
        parts.append(_tables(self.quality, self.ap, escape=markdown))
        parts += [format_table(header, rows, escape=markdown) for header, rows in self.errors.tables()]
        if self.failures:
            messages = "\n".join(f"- {markdown(message)}" for message in self.failures)
            parts.append(f"{counted(len(self.failures), 'image')} could not be read and are left out:\n\n{messages}")
        rows = [[name, str(value)] for name, value in self.settings.items()]
        parts.append(format_table(["setting", "value"], rows, escape=markdown))
        return "\n\n".join(parts) + "\n"


def _tables(
    quality: PanopticQualityResult, ap: Mapping[str, Mapping[str, Any]], *, escape: Callable[[str], str] = one_line
) -> str:
    """Returns the tables as Markdown."""
    return "\n\n".join(format_table(header, rows, escape=escape) for header, rows in metric_tables(quality, ap))


def metric_tables(quality: PanopticQualityResult, ap: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """Returns tables of groups of classes, of average precision and of the classes that occur, in percent."""
    groups = {"all": quality.overall, "things": quality.things, "stuff": quality.stuff}
    group_rows = [[name, str(row.n), *map(percent, (row.pq, row.sq, row.rq))] for name, row in groups.items()]
    tables: list[Table] = [(GROUP_COLUMNS, group_rows)]
    if ap:
        rows = [[kind, *(percent(values[name]) for name in FIGURES)] for kind, values in ap.items()]
        tables.append((PRECISION_COLUMNS, rows))
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
    return [*tables, (header, class_rows)]
