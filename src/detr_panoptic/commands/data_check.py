"""`detr-panoptic data check`: what is wrong with annotations, before a model learns it."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.plain_text import one_line
from .frame import CommandError, add_command
from .sources import SCENES, add_source_options, prepare_reading, read_source, source_options

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from PIL import Image
    from rich.console import Console

    from ..data.check_sources import CheckSource, RowCheck
    from ..data.checks import DataCounts, Finding
    from ..visualization.report import Html
    from .frame import CommandParser

WRONG = 1  # exit code
PAPER_QUERIES = 100
SHOWN_CASES = 3  # of each kind, on the terminal
LISTED_CASES = 100  # of each kind, on the page
DRAWN_CASES = 3  # of each kind, on the page
DRAWN_SAMPLES = 12  # images from all over the dataset, on the page
DESCRIPTION = """
Check a dataset: ids, categories, areas, boxes, sizes, broken files. Lists all problems where training stops at the
first. "error" makes training wrong or stops it, "warning" costs quality, "note" is worth knowing.

The exit code is 1 if there is an error, 0 if not, 2 if there is no dataset to check.
"""
EXAMPLES = """
detr-panoptic data check my_data
detr-panoptic data check coco --split val2017 --report coco_check
detr-panoptic data check my_data --queries 200 --limit 500
"""


def register(subparsers: argparse._SubParsersAction[CommandParser]) -> None:
    """Add the command and its options."""
    parser = add_command(
        subparsers, "check", run, summary="find what is wrong", description=DESCRIPTION, examples=EXAMPLES
    )
    parser.add_argument("source", metavar="SOURCE", help="what `train --data` takes")
    add_source_options(parser)
    parser.add_argument(
        "--queries", type=int, default=PAPER_QUERIES, metavar="N", help="of the model that is to be trained"
    )
    parser.add_argument("--report", type=Path, metavar="DIR", help="write DIR/index.html: findings, classes, pictures")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="threads that open files"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command; 1 if training on the data would be wrong."""
    for name in ("queries", "workers"):
        if getattr(arguments, name) < 1:
            raise CommandError(f"`--{name}` must be at least 1, got {getattr(arguments, name)}.")
    if arguments.report is not None and arguments.report.is_file():
        raise CommandError(f"`--report {arguments.report}` is a file: name a folder.")

    from rich.console import Console

    from ..data.check_sources import check_rows
    from ..data.checks import ERROR, DataCounts, unused_categories

    source = open_source(arguments.source, source_options(arguments))
    cases: list[Case] = [(None, finding) for finding in source.findings]
    counts = DataCounts.zeros(len(source.categories))
    checked = check_rows(source, num_queries=arguments.queries, workers=arguments.workers)
    for row in _with_progress(checked, total=source.num_rows):
        cases += [(row.row_index, finding) for finding in row.findings]
        counts = counts + row.counts
    cases += [(None, finding) for finding in unused_categories(counts, source.categories, arguments.source)]

    console = Console(highlight=False, soft_wrap=True)
    by_kind = group_cases(cases)
    print_summary(console, source, counts, by_kind)
    if arguments.report is not None:
        page = arguments.report / "index.html"
        write_report(page, arguments.source, source, counts, by_kind)
        console.print(f"The whole report is in {page}", markup=False)
    return WRONG if any(finding.severity == ERROR for _, finding in cases) else 0


if TYPE_CHECKING:
    Case = tuple[int | None, Finding]
    """A finding and the row that it is about; None: the annotation file."""


def open_source(source: str, options: dict[str, Any]) -> CheckSource:
    """What there is to check: raw files where the format is COCO's, canonical records of all others.

    Raises:
        ValueError: there is no dataset.
    """
    from ..data.check_sources import coco_source, records_source
    from ..data.coco import find_coco_panoptic
    from ..data.reading import COCO_PANOPTIC_FORMAT, recognize

    split = options["split"]
    if source != SCENES and (options["data_format"] or recognize(source, split=split)) == COCO_PANOPTIC_FORMAT:
        prepare_reading()
        return coco_source(find_coco_panoptic(source, split=split), limit=options["limit"])
    return records_source(*read_source(source, **{**options, "files_may_be_missing": True}))


def group_cases(cases: Sequence[Case]) -> dict[str, list[Case]]:
    """Cases of each kind that was found, errors first."""
    from ..data.checks import KINDS, SEVERITIES

    found = defaultdict(list)
    for case in cases:
        found[case[1].kind].append(case)
    order = sorted(KINDS, key=lambda kind: SEVERITIES.index(KINDS[kind].severity))
    return {kind: found[kind] for kind in order if kind in found}


def print_summary(console: Console, source: CheckSource, counts: DataCounts, by_kind: dict[str, list[Case]]) -> None:
    """Totals, a table of the kinds found, and the first cases of each."""
    from rich.table import Table

    from ..data.checks import ERROR, KINDS, WARNING

    colors = {ERROR: "red", WARNING: "yellow"}
    console.print(describe_totals(source, counts), markup=False)
    if not by_kind:
        console.print("Nothing was found.")
        return
    overview = Table("", "kind", "cases", "what it is")
    overview.columns[2].justify = "right"
    for kind, cases in by_kind.items():
        severity, meaning = KINDS[kind]
        overview.add_row(f"[{colors.get(severity, 'blue')}]{severity}[/]", kind, str(len(cases)), meaning)
    console.print(overview)
    for kind, cases in by_kind.items():
        console.print(f"[bold]{kind}[/]")
        for _, finding in cases[:SHOWN_CASES]:
            console.print(one_line(f"  {finding.where}: {finding.message}"), markup=False)
        if len(cases) > SHOWN_CASES:
            console.print(f"  ... and {len(cases) - SHOWN_CASES} more")


def describe_totals(source: CheckSource, counts: DataCounts) -> str:
    """What the dataset consists of, as one line."""
    void = f"{counts.void / counts.pixels:.1%}" if counts.pixels else "no"
    return (
        f"{source.num_rows} annotated images, {counts.class_segments.sum()} segments of "
        f"{(counts.class_segments > 0).sum()} of {len(source.categories)} classes, {counts.crowds} crowds, "
        f"{void} pixels void"
    )


def write_report(
    page: Path, name: str, source: CheckSource, counts: DataCounts, by_kind: dict[str, list[Case]]
) -> None:
    """Write the page: totals, findings, classes, the first cases of each kind as pictures, and other images."""
    from ..data.checks import KINDS
    from ..visualization.report import gallery, heading, paragraph, table, write_page

    parts = [paragraph(describe_totals(source, counts)), heading("Findings")]
    overview = [(KINDS[kind].severity, kind, len(cases), KINDS[kind].meaning) for kind, cases in by_kind.items()]
    parts.append(table(("", "kind", "cases", "what it is"), overview) if overview else paragraph("None."))
    parts += [heading("Classes"), _class_chart(source, counts)]
    for kind, cases in by_kind.items():
        parts.append(heading(f"{kind}: {KINDS[kind].meaning}"))
        drawn = [(index, f"{case.where}: {case.message}") for index, case in cases if index is not None]
        parts.append(gallery(_pictures(source, drawn[:DRAWN_CASES])))
        parts.append(table(("file", "found"), [(case.where, case.message) for _, case in cases[:LISTED_CASES]]))
        if len(cases) > LISTED_CASES:
            parts.append(paragraph(f"... and {len(cases) - LISTED_CASES} more"))
    step = max(source.num_rows // DRAWN_SAMPLES, 1)
    samples = [(index, "") for index in range(0, source.num_rows, step)][:DRAWN_SAMPLES]
    parts += [heading("Images from all over the dataset"), gallery(_pictures(source, samples))]
    write_page(page, f"Check of {name}", parts)


def _class_chart(source: CheckSource, counts: DataCounts) -> Html:
    from ..visualization import class_colors
    from ..visualization.report import Bar, bar_chart

    colors = class_colors(source.categories.id2label)
    most = max(int(counts.class_segments.max(initial=0)), 1)
    bars = []
    for label in (-counts.class_segments).argsort(kind="stable").tolist():
        segments = int(counts.class_segments[label])
        share = f"{counts.class_pixels[label] / max(counts.pixels, 1):.2%}"
        kind = "thing" if source.categories.is_thing[label] else "stuff"
        cells = (source.categories.names[label], kind, segments, int(counts.class_images[label]), share)
        bars.append(Bar(cells, segments / most, colors[label]))
    return bar_chart(("class", "", "segments", "images", "pixels", "segments"), bars)


def _pictures(source: CheckSource, rows: Sequence[tuple[int, str]]) -> Iterator[tuple[Image.Image, str]]:
    """Overlays of rows, each with its caption; the image alone where there is no map of its size."""
    from ..data.check_sources import Row, open_picture, open_row
    from ..visualization import draw_segments

    for index, caption in rows:
        row = source.row(index)
        if not isinstance(row, Row) or (picture := open_picture(row)) is None:
            continue
        annotation, _ = open_row(row, source.categories)
        if annotation.ids is not None and annotation.ids.shape == (picture.height, picture.width):
            known = [segment for segment in row.segments if segment["label_id"] in source.categories.id2label]
            picture = draw_segments(picture, annotation.ids, known, source.categories.id2label)
        yield picture, caption or row.where


def _with_progress(checked: Iterator[RowCheck], *, total: int) -> Iterator[RowCheck]:
    """The rows again, with a bar on the terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(
        checked, "checking", total=total, console=console, transient=True, disable=not console.is_terminal
    )
