"""What `evaluate` writes and prints when all images are measured. Imports torch."""

from __future__ import annotations

import heapq
import json
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from ..commands.frame import plain
from ..data.files import written_whole
from ..data.plain_text import markdown as markdown_text
from ..evaluation.model_evaluation import truth_ids
from ..inference.results import write_coco_json
from ..visualization import draw_side_by_side
from .average_precision import FIGURES, average_precision
from .files import read_ids
from .panoptic_quality import ImageCounts, PanopticStats, add_up, panoptic_quality

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ..data.categories import Categories
    from ..inference.old_pictures import DatasetPictures
    from .journal import Journal

SHOWN = 4  # of the worst images, and of the best
SHEET_WIDTH = 1600  # pixels, at most
ROW_GAP = 8  # pixels
GROUPS = {"all": "All", "things": "Things", "stuff": "Stuff"}  # and what `panoptic_quality` calls them
QUALITIES = ("pq", "sq", "rq")


def write_report(
    output: Path,
    journal: Journal,
    pictures: DatasetPictures,
    categories: Categories,
    *,
    dataset: str,
    kinds: Sequence[str],
    speed: float,
) -> None:
    """Write all files, and print the tables.

    Args:
        output: folder that holds the predicted maps in `panoptic/`.
        journal: of all processes.
        pictures: the images; for the sheet.
        categories: of the data.
        dataset: its name, for readers.
        kinds: of AP.
        speed: images per second of this run, 0 if there was nothing left to do.
    """
    counts, qualities = [], []
    for entry in journal.entries():
        counts.append(ImageCounts(**entry["counts"]))
        quality = image_quality(counts[-1], len(categories))
        if quality is not None:
            qualities.append((quality, entry["index"]))
    stats = add_up(counts, num_classes=len(categories))
    precision = _precision(journal, categories, kinds)
    metrics = {
        **_metrics(stats, categories, precision),
        "dataset": dataset,
        "images": len(counts),
        "skipped": list(journal.failures.values()),
        "settings": journal.settings,
    }
    _write_text(output / "metrics.json", json.dumps(metrics, indent=1, ensure_ascii=False) + "\n")
    _write_text(output / "metrics.md", markdown(metrics))
    annotations = (entry["annotation"] for entry in journal.entries())
    write_coco_json(output / "panoptic.json", annotations=annotations, categories=categories.to_coco())
    _write_sheet(output, journal, pictures, categories, qualities)
    _print(metrics, output, speed)


def image_quality(counts: ImageCounts, num_classes: int) -> float | None:
    """PQ of one image, the mean over the classes that it has or that were predicted; None if there is no class."""
    stats = add_up([counts], num_classes=num_classes)
    quality = stats.pq()[stats.tp + stats.fp + stats.fn > 0]
    return quality.mean().item() if len(quality) else None


def _precision(journal: Journal, categories: Categories, kinds: Sequence[str]) -> dict[str, dict[str, Any]]:
    if not kinds:
        return {}
    images = ((entry["size"], entry["truth"], entry["detections"]) for entry in journal.entries())
    return average_precision(images, categories, kinds)


def _metrics(stats: PanopticStats, categories: Categories, precision: dict[str, dict[str, Any]]) -> dict[str, Any]:
    quality = panoptic_quality(stats, category_ids=categories.category_ids, is_thing=categories.is_thing)
    per_class = []
    for label, (name, category_id) in enumerate(zip(categories.names, categories.category_ids, strict=True)):
        row = {"name": name, "category_id": category_id, "isthing": int(categories.is_thing[label])}
        row |= quality["per_class"][category_id]
        row |= {key: int(getattr(stats, key)[label]) for key in ("tp", "fp", "fn")}
        row |= {f"{kind}_ap": values["per_class"][label] for kind, values in precision.items()}
        per_class.append(row)
    return {
        "panoptic_quality": {group: quality[name] for group, name in GROUPS.items()},
        "average_precision": {kind: {name: values[name] for name in FIGURES} for kind, values in precision.items()},
        "per_class": per_class,
    }


def _tables(metrics: dict[str, Any]) -> list[tuple[list[str], list[list[str]]]]:
    """Header and rows of each table, numbers in percent; the first column is text."""
    quality = metrics["panoptic_quality"]
    tables = [
        (
            ["classes", "number", "PQ", "SQ", "RQ"],
            [[group, str(row["n"]), *(_percent(row[key]) for key in QUALITIES)] for group, row in quality.items()],
        )
    ]
    if precision := metrics["average_precision"]:
        rows = [[kind, *(_percent(values[name]) for name in FIGURES)] for kind, values in precision.items()]
        tables.append((["things", "AP", "AP50", "AP75", "small", "medium", "large"], rows))
    header = ["class", "kind", "PQ", "SQ", "RQ", "TP", "FP", "FN", *(f"{kind} AP" for kind in precision)]
    rows = [
        [
            row["name"],
            "thing" if row["isthing"] else "stuff",
            *(_percent(row[key]) for key in QUALITIES),
            *(str(row[key]) for key in ("tp", "fp", "fn")),
            *(_percent(row[f"{kind}_ap"]) for kind in precision),
        ]
        for row in metrics["per_class"]
        if row["tp"] + row["fp"] + row["fn"] > 0
    ]
    tables.append((header, rows))
    return tables


def markdown(metrics: dict[str, Any]) -> str:
    """All numbers as Markdown."""
    parts = [f"# Evaluation\n\n{metrics['images']} images. Numbers in percent; classes that occur.\n"]
    for header, rows in _tables(metrics):
        lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
        parts.append("\n".join(f"| {' | '.join(map(markdown_text, line))} |" for line in lines) + "\n")
    if metrics["skipped"]:
        parts.append(f"{len(metrics['skipped'])} images could not be read and are not in these numbers:\n")
        parts.append("\n".join(f"- {markdown_text(message)}" for message in metrics["skipped"]) + "\n")
    settings = [[markdown_text(name), markdown_text(str(value))] for name, value in metrics["settings"].items()]
    parts.append("\n".join(f"| {' | '.join(line)} |" for line in [["setting", ""], ["---", "---"], *settings]) + "\n")
    return "\n".join(parts)


def _print(metrics: dict[str, Any], output: Path, speed: float) -> None:
    console = Console(highlight=False)
    for header, rows in _tables(metrics):
        table = Table()
        table.add_column(header[0], overflow="fold")
        for name in header[1:]:
            table.add_column(name, justify="right")
        for row in rows:
            table.add_row(*map(plain, row))
        console.print(table)
    if metrics["skipped"]:
        console.print(f"Left out, because they could not be read: {len(metrics['skipped'])} images")
    rate = f", {speed:.2f} images/s" if speed else ", all of them by earlier runs"
    console.print(f"{metrics['images']} images{rate}. Results are in {output}", markup=False, soft_wrap=True)


def _write_sheet(
    output: Path,
    journal: Journal,
    pictures: DatasetPictures,
    categories: Categories,
    qualities: Sequence[tuple[float, int]],
) -> None:
    """The worst images, from the worst on, and the best, up to the best."""
    worst = heapq.nsmallest(SHOWN, qualities)
    best = [item for item in heapq.nlargest(SHOWN, qualities) if item not in worst]
    quality_of = {index: quality for quality, index in (*worst, *reversed(best))}
    entries = {entry["index"]: entry for entry in journal.entries() if entry["index"] in quality_of}
    rows = []
    for index, quality in quality_of.items():
        annotation, record = entries[index]["annotation"], pictures[index]
        segments = [
            {**segment, "label_id": categories.label_id(segment["category_id"])}
            for segment in annotation["segments_info"]
        ]
        prediction = {
            "segmentation": read_ids(output / "panoptic" / annotation["file_name"]),
            "segments_info": segments,
        }
        truth = {"segmentation": truth_ids(record), "segments_info": record["segments_info"]}
        captions = (pictures.name_of(index), "annotation", f"prediction, PQ {100 * quality:.1f}")
        row = draw_side_by_side(record["image"], truth, prediction, categories.id2label, captions=captions)
        row.thumbnail((SHEET_WIDTH, row.height), Image.Resampling.LANCZOS)
        rows.append(row)
    if rows:
        with written_whole(output / "worst_and_best.png") as part:
            _stack(rows).save(part, format="PNG", compress_level=1)  # the default takes longer than all else here


def _stack(rows: Sequence[Image.Image]) -> Image.Image:
    tops = np.cumsum([0, *(row.height + ROW_GAP for row in rows)])
    sheet = Image.new("RGB", (max(row.width for row in rows), int(tops[-1]) - ROW_GAP), "white")
    for row, top in zip(rows, tops[:-1], strict=True):
        sheet.paste(row, (0, int(top)))
    return sheet


def _write_text(path: Path, text: str) -> None:
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
