"""Datasets for checking: files are opened one by one, and what cannot be read becomes a finding, not an error."""

import io
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image, ImageOps

from ..segment_ids import rgb_to_ids
from .categories import Categories
from .checks import AnnotatedMap, DataCounts, Finding, check_annotation
from .coco import (
    ANNOTATION_KEYS,
    IMAGE_KEYS,
    SEGMENT_KEYS,
    CocoPanopticPaths,
    entry_problem,
    read_coco_json,
    whole,
)
from .contained_paths import path_inside
from .lazy_records import ORIENTATION_TAG, TURNING_ORIENTATIONS

DRAFT_SCALE = 8  # a JPEG file decoded at an eighth of its size is read to its end, in a third of the time
ROWS_AHEAD = 256  # submitted to the threads at once
UPRIGHT = 1  # orientation
BOX_LENGTH = 4
PICTURES = ("image", "segmentation")  # columns

Source = Path | bytes | Image.Image
"""A picture: its file, the contents of one, or the picture itself."""


class Row(NamedTuple):
    """One annotated image before its files are opened.

    Args:
        where: file name of the image.
        image: None: there is none, and a finding says so.
        segmentation: the map; the same.
        segments: well-formed entries, as `AnnotatedMap` has them.
        findings: what was wrong so far.
    """

    where: str
    image: Source | None
    segmentation: Source | None
    segments: list[dict[str, Any]]
    findings: list[Finding]


class CheckSource(NamedTuple):
    """A dataset to check: classes, findings about it as a whole, and rows; for an unreadable row, a finding."""

    categories: Categories
    findings: list[Finding]
    num_rows: int
    row: Callable[[int], Row | Finding]


class RowCheck(NamedTuple):
    """What is wrong with one row, and what it adds to the counts."""

    row_index: int
    findings: list[Finding]
    counts: DataCounts


def check_rows(source: CheckSource, *, num_queries: int, workers: int) -> Iterator[RowCheck]:
    """Open and check all rows, in order.

    Args:
        source: the dataset.
        num_queries: of the model that is to be trained.
        workers: threads; decoding, which takes most of the time, lets them run at once.
    """
    check = partial(_check_row, source, num_queries=num_queries)
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, source.num_rows, ROWS_AHEAD):
            yield from pool.map(check, range(start, min(start + ROWS_AHEAD, source.num_rows)))


def _check_row(source: CheckSource, index: int, *, num_queries: int) -> RowCheck:
    row = source.row(index)
    if isinstance(row, Finding):
        return RowCheck(index, [row], DataCounts.zeros(len(source.categories)))
    annotation, findings = open_row(row, source.categories)
    found = findings + check_annotation(annotation, num_queries=num_queries)
    return RowCheck(index, found, DataCounts.of(annotation))


def open_row(row: Row, categories: Categories) -> tuple[AnnotatedMap, list[Finding]]:
    """The row with its files opened, and what is wrong with it up to then."""
    findings = list(row.findings)
    size, ids = None, None
    if row.image is not None:
        try:
            size, orientation = _image_size(row.image)
            if orientation != UPRIGHT:
                findings.append(Finding("turned-image", row.where, f"EXIF orientation {orientation}"))
        except Exception as error:  # broken files raise anything from SyntaxError to struct.error
            findings.append(Finding("unreadable-image", row.where, _complaint(row.image, error)))
    if row.segmentation is not None:
        try:
            ids, problems = _read_map(row.segmentation)
            findings += [Finding(kind, row.where, _complaint(row.segmentation, text)) for kind, text in problems]
        except Exception as error:  # as above
            findings.append(Finding("unreadable-map", row.where, _complaint(row.segmentation, error)))
    return AnnotatedMap(row.where, size, ids, row.segments, categories.is_thing), findings


def open_picture(row: Row) -> Image.Image | None:
    """The row's image, upright and RGB; None if it cannot be read."""
    if row.image is None:
        return None
    try:
        with _opened(row.image) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except Exception:  # `open_row` reports it
        return None


def _image_size(source: Source) -> tuple[tuple[int, int], int]:
    """(H, W) of the upright image, and its orientation tag; decodes the file to its end."""
    with _opened(source) as picture:
        width, height = picture.size
        orientation = picture.getexif().get(ORIENTATION_TAG, UPRIGHT)
        picture.draft("RGB", (max(width // DRAFT_SCALE, 1), max(height // DRAFT_SCALE, 1)))
        picture.load()
    return ((width, height) if orientation in TURNING_ORIENTATIONS else (height, width)), orientation


def _read_map(source: Source) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Ids (H, W) int32 of a map, and what is wrong with the file."""
    problems = []
    with _opened(source) as picture:
        if picture.format == "JPEG":
            problems.append(("damaged-map", "it is a JPEG file"))
        if picture.mode != "RGB":
            problems.append(("map-mode", f"it is a picture of mode {picture.mode}"))
        return rgb_to_ids(np.asarray(picture.convert("RGB"))), problems


def _opened(source: Source) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)


def _complaint(source: Source, problem: object) -> str:
    return f"{source.name}: {problem}" if isinstance(source, Path) else str(problem)


def records_source(records: Dataset, categories: Categories) -> CheckSource:
    """Canonical records, whatever they were read from."""
    encoded = undecoded(records)

    def row(index: int) -> Row | Finding:
        try:
            record = encoded[index]
        except Exception as error:  # files of any format
            return Finding("unreadable-record", f"row {index}", str(error))
        where = record["file_name"] or f"image {record['image_id']}"
        image, segmentation = (_source(record[column]) for column in PICTURES)
        return Row(where, image, segmentation, record["segments_info"], [])

    return CheckSource(categories, [], len(records), row)


def undecoded(records: Dataset) -> Dataset:
    """The records with pictures as the files that they are stored as; maps that are made on the way stay pictures."""
    columns = PICTURES[:1] if records.format["type"] == "custom" else PICTURES
    for column in columns:
        records = records.cast_column(column, ImageFeature(decode=False))
    return records


def _source(picture: Image.Image | Mapping[str, Any]) -> Source:
    if isinstance(picture, Image.Image):
        return picture
    contents = picture.get("bytes")
    return Path(picture["path"]) if contents is None else contents


def coco_source(paths: CocoPanopticPaths, *, limit: int | None = None) -> CheckSource:
    """A COCO panoptic dataset as its files have it, broken entries and all.

    Args:
        paths: where its parts lie.
        limit: number of annotations to check, from the first.

    Raises:
        ValueError: the annotation file is no JSON, or lacks one of its lists: there is nothing to check.
    """
    where = paths.json_path.name
    contents = read_coco_json(paths.json_path)
    categories, findings = _read_categories(contents["categories"], where)
    images, problems = _read_images(contents["images"], where)
    findings += problems
    rows = []
    seen: set[int | str] = set()
    for index, annotation in enumerate(contents["annotations"][:limit]):
        problem = entry_problem(annotation, ANNOTATION_KEYS)
        if problem:
            findings.append(Finding("broken-entry", where, f"`annotations`, entry {index}: {problem}"))
            continue
        image_id = annotation["image_id"]
        if image_id in seen:
            findings.append(Finding("repeated-annotation", where, f"`annotations`, entry {index}: image {image_id}"))
        seen.add(image_id)
        if image_id not in images:
            findings.append(Finding("unknown-image", where, f"`annotations`, entry {index}: image {image_id}"))
        rows.append(_coco_row(annotation, images.get(image_id), paths, categories))
    if limit is None:
        findings += [Finding("unannotated-image", name, f"image {i}") for i, name in images.items() if i not in seen]
    return CheckSource(categories, findings, len(rows), rows.__getitem__)


def _read_categories(entries: list[Any], where: str) -> tuple[Categories, list[Finding]]:
    """The classes; of a list that a reader refuses, those that can be told apart."""
    try:
        return Categories.from_coco(entries), []
    except (ValueError, TypeError) as error:
        findings = [Finding("bad-categories", where, str(error))]
    kept: dict[int, dict[str, Any]] = {}
    for entry in entries:
        if isinstance(entry, Mapping) and isinstance(entry.get("id"), int) and entry["id"] not in kept:
            name = str(entry.get("name"))
            names = [other["name"] for other in kept.values()]
            unique = name if name not in names else f"{name} ({entry['id']})"
            kept[entry["id"]] = {"id": entry["id"], "name": unique, "isthing": bool(entry.get("isthing", 1))}
    return Categories.from_coco(kept.values()), findings


def _read_images(entries: list[Any], where: str) -> tuple[dict[int | str, str], list[Finding]]:
    """File name of each image id."""
    images: dict[int | str, str] = {}
    findings = []
    for index, entry in enumerate(entries):
        problem = entry_problem(entry, IMAGE_KEYS)
        if problem:
            findings.append(Finding("broken-entry", where, f"`images`, entry {index}: {problem}"))
        elif entry["id"] in images:
            findings.append(Finding("repeated-image", where, f"`images`, entry {index}: id {entry['id']}"))
        else:
            images[entry["id"]] = entry["file_name"]
    return images, findings


def _coco_row(
    annotation: Mapping[str, Any], image_name: str | None, paths: CocoPanopticPaths, categories: Categories
) -> Row:
    where = image_name or f"image {annotation['image_id']}"
    findings: list[Finding] = []
    segments = []
    for index, entry in enumerate(annotation["segments_info"]):
        problem = entry_problem(entry, SEGMENT_KEYS) or _measure_problem(entry)
        if problem:
            findings.append(Finding("broken-entry", where, f"`segments_info`, entry {index}: {problem}"))
        else:
            segments.append({**entry, "label_id": _label_id(entry["category_id"], categories)})
    image, problems = _file(paths.image_dir, image_name, where)
    segmentation, other_problems = _file(paths.segmentation_dir, annotation["file_name"], where)
    return Row(where, image, segmentation, segments, findings + problems + other_problems)


def _file(folder: Path, name: str | None, where: str) -> tuple[Path | None, list[Finding]]:
    """Path of a file name; None for no name, or one that leaves the folder."""
    if name is None:
        return None, []
    try:
        return path_inside(folder, name, where), []
    except ValueError as error:
        return None, [Finding("unsafe-path", where, str(error).removeprefix(f"{where}: "))]


def _label_id(category_id: int, categories: Categories) -> int | None:
    try:
        return categories.label_id(category_id)
    except ValueError:
        return None


def _measure_problem(entry: Mapping[str, Any]) -> str | None:
    """What keeps `area` and `bbox` from being read; they may be absent."""
    box = entry.get("bbox")
    if box is not None and (not isinstance(box, list) or len(box) != BOX_LENGTH):
        return f"`bbox` must be [x, y, width, height], got {str(box)[:40]}"
    try:
        for value in (entry.get("area"), *(box or ())):
            whole(value, "`area` and `bbox`")
    except (ValueError, TypeError, OverflowError) as error:
        return str(error)
    return None
