"""`check_data`: everything that is wrong with a dataset, where a reader stops at the first error."""

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from ..segment_ids import rgb_to_ids
from .categories import Categories
from .files import write_file
from .findings import ERROR, KINDS, SEVERITIES, AnnotatedMap, DataCounts, DataError, Finding
from .lazy_records import (
    TURNING_ORIENTATIONS,
    UPRIGHT,
    RawRecords,
    ReadOptions,
    map_style_records,
    name_of,
    open_stored,
    orientation_of,
    undecoded,
)
from .plain_text import counted, first_line, listing, markdown, one_line
from .reading import PanopticData, check_least, raw_records
from .rows import first_rows

DRAFT_SCALE = 8  # a JPEG file decoded at an eighth of its size is read to its end, in a third of the time
ROWS_AHEAD = 256  # submitted to the threads at once
SHOWN_CASES = 3  # of each kind, in the text

Stored = Image.Image | dict[str, Any]
"""An image, or its file as `datasets` stores it: `bytes` or `path`."""


@dataclass(frozen=True)
class DataCheck:
    """The result of `check_data`; `print` shows totals, kinds of findings and their first cases.

    Examples:
        >>> from detr_panoptic import check_data
        >>> from detr_panoptic.scenes import read_source
        >>> check = check_data(read_source("scenes", limit=2), progress=False)
        >>> [(finding.severity, finding.kind) for finding in check.findings]
        [('note', 'unused-category')]
    """

    source: str  # name of the dataset
    categories: Categories
    findings: list[Finding]  # all problems, errors first
    counts: DataCounts  # sums over all images whose map could be read
    row: Callable[[int], "OpenedRow"] = field(repr=False)  # opens an image by index
    names: list[str] = field(repr=False)  # file name of each row

    @property
    def has_errors(self) -> bool:
        """Whether training on the data would stop or be wrong."""
        return any(finding.severity == ERROR for finding in self.findings)

    @property
    def by_kind(self) -> dict[str, list[Finding]]:
        """Findings of each kind that was found, errors first."""
        kinds = dict.fromkeys(finding.kind for finding in self.findings)
        return {kind: [finding for finding in self.findings if finding.kind == kind] for kind in kinds}

    @property
    def totals(self) -> str:
        """One line about the contents of the dataset."""
        counts, seen = self.counts, int((self.counts.class_segments > 0).sum())
        segments = counted(int(counts.class_segments.sum()), "segment")
        images, crowds = counted(len(self.names), "annotated image"), counted(counts.crowds, "crowd")
        void = f"{counts.void / max(counts.pixels, 1):.1%} void"
        return f"{images}, {segments} of {seen} of {len(self.categories)} classes, {crowds}, {void}"

    def __str__(self) -> str:
        """Returns totals, the kinds of findings, and the first cases of each."""
        return "\n".join([self.totals, "", *(self._list_findings(one_line) or ["No problems found."])])

    def _list_findings(self, escape: Callable[[str], str]) -> list[str]:
        lines = []
        for kind, cases in self.by_kind.items():
            lines.append(f"- {KINDS[kind].severity}, {kind}, {len(cases)}x: {escape(KINDS[kind].meaning)}")
            lines += [f"  - {escape(f'{case.where}: {case.message}')}" for case in cases[:SHOWN_CASES]]
            lines += [f"  - ... and {len(cases) - SHOWN_CASES} more"] * (len(cases) > SHOWN_CASES)
        return lines

    def save(self, folder: str | Path) -> Path:
        """Writes `check.json`, with all findings, and `check.md`; returns the latter."""
        counts, names, is_thing = self.counts, self.categories.names, self.categories.is_thing
        classes = [
            {
                "name": names[label],
                "kind": "thing" if is_thing[label] else "stuff",
                "segments": int(counts.class_segments[label]),
                "images": int(counts.class_images[label]),
                "pixels": f"{counts.class_pixels[label] / max(counts.pixels, 1):.2%}",
            }
            for label in (-counts.class_segments).argsort(kind="stable").tolist()
        ]
        findings = [{"severity": finding.severity, **vars(finding)} for finding in self.findings]
        contents = {"source": self.source, "totals": self.totals, "findings": findings, "classes": classes}
        text = [f"# Check of {markdown(self.source)}", "", markdown(self.totals), "", "## Findings", ""]
        text += [*self._list_findings(markdown), "", "## Classes", ""]
        text += ["| class | kind | segments | images | pixels |", "|---|---|---:|---:|---:|"]
        text += ["| " + " | ".join(markdown(str(value)) for value in row.values()) + " |" for row in classes]
        write_file(Path(folder, "check.json"), json.dumps(contents, indent=1) + "\n")
        write_file(Path(folder, "check.md"), "\n".join(text) + "\n")
        return Path(folder, "check.md")


def check_data(
    source: str | Path | PanopticData,
    *,
    num_queries: int = 100,
    split: str | None = None,
    data_format: str | None = None,
    limit: int | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> DataCheck:
    """Opens every file of a dataset and lists all problems: ids, categories, areas, boxes, sizes, broken files.

    `source`, `split`, `data_format` and `limit` are those of `read_panoptic`. An image should not have more segments
    than the model to be trained has queries, `num_queries`. `workers` is the number of threads that open files, by
    default one per CPU core.

    Raises:
        ValueError: there is no dataset to check, or an argument is out of range.

    Examples:
        >>> from detr_panoptic.scenes import read_source
        >>> check = check_data(read_source("scenes", limit=2), progress=False)
        >>> check.has_errors, check.counts.images
        (False, 2)
        >>> print(check.totals)
        2 annotated images, 20 segments of 10 of 14 classes, 0 crowds, 0.0% void
    """
    workers = os.cpu_count() or 1 if workers is None else workers
    for argument, value in (("workers", workers), ("num_queries", num_queries), ("limit", limit)):
        check_least(argument, value, 1)
    findings: list[Finding] = []
    if isinstance(source, PanopticData):
        name, raw = repr(source), RawRecords(source.records, source.categories)
    else:
        options = ReadOptions(split, limit, report=lambda *finding: findings.append(Finding(*finding)))
        name, raw = str(source), raw_records(str(source), data_format, options)
    records = first_rows(map_style_records(raw), limit)
    if not isinstance(records, Dataset):
        raise ValueError("`source` must not be a stream.")
    if not len(records) and all(finding.severity != ERROR for finding in findings):
        raise ValueError(f"`source` {name} holds no annotated image.")
    open_index = partial(open_row, undecoded(records), raw.categories)
    counts, names = DataCounts.zeros(len(raw.categories)), []
    check = partial(_check_row, open_index, num_queries)
    is_hidden = None if progress else True  # None: unless on a terminal
    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(records), disable=is_hidden, desc="checking") as bar:
        for start in range(0, len(records), ROWS_AHEAD):
            for row_name, found, added in pool.map(check, range(start, min(start + ROWS_AHEAD, len(records)))):
                findings += found
                counts += added
                names.append(row_name)
                bar.update()
    unused = [name for name, count in zip(raw.categories.names, counts.class_segments, strict=True) if not count]
    if unused:
        message = f"{len(unused)} of {len(raw.categories)} classes: {listing(unused, limit=12)}"
        findings.append(Finding("unused-category", name, message))
    findings.sort(key=lambda finding: (SEVERITIES.index(finding.severity), list(KINDS).index(finding.kind)))
    return DataCheck(name, raw.categories, findings, counts, open_index, names)


class OpenedRow(NamedTuple):
    """One row with its files opened, and what is wrong with the files."""

    annotation: AnnotatedMap
    image: Stored | None
    findings: list[Finding]

    def picture(self) -> Image.Image | None:
        """Returns the upright RGB image; None if it cannot be read."""
        try:
            return None if self.image is None else ImageOps.exif_transpose(open_stored(self.image)).convert("RGB")
        except Exception:  # `open_row` reports it
            return None


def open_row(records: Dataset, categories: Categories, index: int) -> OpenedRow:
    """Opens the image and the map of a row; what cannot be read becomes a finding."""
    try:
        record = records[index]
    except Exception as error:  # of any format's decoder
        unknown = Finding("unreadable-record", f"row {index}", first_line(error))
        found = error.finding if isinstance(error, DataError) else unknown
        return OpenedRow(AnnotatedMap(found.where, None, None, [], categories.is_thing), None, [found])
    where = record["file_name"] or name_of(record)
    size, of_image = _attempt(record["image"], "unreadable-image", _image_size)
    ids, of_map = _attempt(record["segmentation"], "unreadable-map", _map_ids)
    annotation = AnnotatedMap(where, size, ids, record["segments_info"], categories.is_thing)
    return OpenedRow(annotation, record["image"], [Finding(kind, where, text) for kind, text in of_image + of_map])


def _check_row(
    open_index: Callable[[int], OpenedRow], num_queries: int, index: int
) -> tuple[str, list[Finding], DataCounts]:
    """Returns the name of a row, what is wrong with it, and its counts."""
    annotation, image, findings = open_index(index)
    if image is not None or annotation.ids is not None:
        findings += annotation.findings(num_queries)
    return annotation.where, findings, annotation.counts()


Problems = list[tuple[str, str]]
"""Kinds and messages."""


def _attempt(
    stored: Stored | None, unreadable: str, read: Callable[[Image.Image], tuple[Any, Problems]]
) -> tuple[Any, Problems]:
    """Reads a file; returns None and a problem if it cannot be read, and none if the reader reported that already."""
    if stored is None:
        return None, []
    path = None if isinstance(stored, Image.Image) else stored.get("path")
    prefix = f"{Path(path).name}: " if path else ""
    try:
        with open_stored(stored) as picture:
            value, problems = read(picture)
    except Exception as error:  # broken files raise anything from SyntaxError to struct.error
        value, problems = None, [(unreadable, str(error))]
    return value, [(kind, prefix + text) for kind, text in problems]


def _image_size(picture: Image.Image) -> tuple[tuple[int, int], Problems]:
    """Returns (H, W) of the upright image, and whether a tag rotates it; decodes the file to its end."""
    width, height = picture.size
    picture.draft("RGB", (max(width // DRAFT_SCALE, 1), max(height // DRAFT_SCALE, 1)))
    picture.load()
    orientation = orientation_of(picture)
    problems: Problems = [] if orientation == UPRIGHT else [("turned-image", f"EXIF orientation {orientation}")]
    return ((width, height) if orientation in TURNING_ORIENTATIONS else (height, width)), problems


def _map_ids(picture: Image.Image) -> tuple[np.ndarray, Problems]:
    """Returns the ids (H, W) int32 of a map, and what is wrong with its file."""
    problems: Problems = [("damaged-map", "it is a JPEG file")] if picture.format == "JPEG" else []
    if picture.mode != "RGB":
        problems.append(("map-mode", f"it is an image of mode {picture.mode}"))
    return rgb_to_ids(np.asarray(picture.convert("RGB"))), problems
