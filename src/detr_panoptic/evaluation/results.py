"""Panoptic quality as values, and metrics as Markdown tables that a terminal shows well too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..data.plain_text import one_line
from .average_precision import FIGURES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

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

    Args:
        overall: means over all classes that occur.
        things: means over things.
        stuff: means over stuff.
        per_class: quality of each class by its name, in the order of the categories.
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
        return metric_tables(self, {})


def metric_tables(
    quality: PanopticQualityResult,
    precision: Mapping[str, Mapping[str, Any]],
    *,
    escape: Callable[[str], str] = one_line,
) -> str:
    """Returns tables of groups of classes, of average precision and of the classes that occur, in percent.

    Args:
        quality: panoptic quality.
        precision: what `average_precision` returns; may be empty.
        escape: makes names harmless: for terminals, or `data.plain_text.markdown` for rendered Markdown.
    """
    groups = {"all": quality.overall, "things": quality.things, "stuff": quality.stuff}
    group_rows = [[name, str(row.n), *map(percent, (row.pq, row.sq, row.rq))] for name, row in groups.items()]
    tables = [format_table(GROUP_COLUMNS, group_rows)]
    if precision:
        rows = [[kind, *(percent(values[name]) for name in FIGURES)] for kind, values in precision.items()]
        tables.append(format_table(PRECISION_COLUMNS, rows))
    class_rows = [
        [
            name,
            "thing" if row.is_thing else "stuff",
            *map(percent, (row.pq, row.sq, row.rq)),
            *map(str, (row.tp, row.fp, row.fn)),
            *(percent(values["per_class"][label]) for values in precision.values()),
        ]
        for label, (name, row) in enumerate(quality.per_class.items())
        if row.occurs
    ]
    header = [*CLASS_COLUMNS, *(f"{kind} AP" for kind in precision)]
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
