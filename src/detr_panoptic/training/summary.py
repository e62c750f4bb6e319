"""What a finished run leaves to read: `training_summary.md` with curves, and the model card."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.hub_names import hub_name
from ..data.plain_text import markdown, one_line
from ..modeling_detr_panoptic import DetrPanopticForSegmentation
from ..sharing.card import MeasuredQuality, class_table, write_card
from .checkpoints import METRICS

CURVES = "training_curves.png"
SUMMARY = "training_summary.md"
LOSS_TERMS = ("loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`."""
    path = folder / METRICS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def write_summary(folder: Path, plan: Sequence[str], data: Mapping[str, str]) -> None:
    """Writes `training_summary.md` and its curves from `metrics.jsonl`.

    Args:
        folder: output of the run.
        plan: lines about it.
        data: a description of each set of images.
    """
    lines = read_metrics(folder)
    draw_curves(lines, folder / CURVES)
    evaluations = [line for line in lines if "pq" in line]
    text = ["# Training summary", "", *[f"- {name}: {markdown(words)}" for name, words in data.items()], ""]
    text += [
        "```",
        *map(one_line, plan),
        "```",
        "",
        f"![losses, quality, rate and gradient over updates]({CURVES})",
        "",
    ]
    if evaluations:
        best = max(evaluations, key=lambda line: line["pq"])
        columns = {"pq": "PQ", "sq": "SQ", "rq": "RQ", "pq_things": "PQ things", "pq_stuff": "PQ stuff"}
        if any("training_pq" in line for line in evaluations):
            columns["training_pq"] = "PQ of training images"
        text += [f"| update | epoch | {' | '.join(columns.values())} |", "|---" * (2 + len(columns)) + "|"]
        for line in evaluations:
            shown = [line.get(name, float("nan")) for name in columns]
            mark = " (best)" if line is best else ""
            numbers = " | ".join(f"{100 * value:.1f}" for value in shown)
            text.append(f"| {line['step']}{mark} | {line['epoch']} | {numbers} |")
        text += ["", "Classes at the best update:", "", *class_table(_classes(best))]
    (folder / SUMMARY).write_text("\n".join(text) + "\n", encoding="utf-8")


def draw_curves(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Losses, quality, rate and gradient norm against updates, as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    panels: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("loss terms of the last layer", LOSS_TERMS),
        ("panoptic quality", ("pq", "pq_things", "pq_stuff", "training_pq")),
        ("rate", ("rate",)),
        ("norm of the gradient", ("gradient_norm",)),
    )
    for axis, (title, names) in zip(axes.flat, panels, strict=True):
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            if points:
                marker = "o" if "pq" in name else None
                axis.plot(*zip(*points, strict=True), label=name.removeprefix("loss_"), marker=marker, linewidth=1.2)
        axis.set_title(title)
        axis.set_xlabel("updates")
        axis.ticklabel_format(axis="y", scilimits=(-3, 3))
        axis.grid(alpha=0.3)
        if len(names) > 1 and axis.lines:
            axis.legend()
        if names[0] in ("gradient_norm", LOSS_TERMS[0]) and axis.lines:
            axis.set_yscale("log")
    axes.flat[1].set_ylim(0, 1)
    figure.savefig(path, dpi=110)


def write_model_card(folder: Path, model: DetrPanopticForSegmentation, *, measured_on: str, **known: Any) -> None:
    """Writes `README.md` for the model of a run.

    Args:
        folder: output of the run; also the model's name.
        model: that was trained.
        measured_on: the name of the data that PQ was measured on.
        known: fields of `sharing.CardFacts`.
    """
    quality = best_quality(folder, measured_on)
    write_card(folder, model, quality=quality, **known)


def best_quality(folder: Path, measured_on: str) -> MeasuredQuality | None:
    """The best evaluation of a run; None if masks were never measured."""
    evaluations = [line for line in read_metrics(folder) if "pq" in line]
    if not evaluations:
        return None
    best = max(evaluations, key=lambda line: line["pq"])
    endings = {"all": "", "things": "_things", "stuff": "_stuff"}
    return MeasuredQuality(
        dataset=measured_on,
        hub_dataset=hub_name(measured_on.split(" ")[0]),
        how=f"after update {best['step']}",
        groups={
            name: (best[f"pq{ending}"], best[f"sq{ending}"], best[f"rq{ending}"]) for name, ending in endings.items()
        },
        classes=_classes(best),
    )


def _classes(evaluation: Mapping[str, Any]) -> dict[str, float]:
    return {name.removeprefix("pq/"): value for name, value in evaluation.items() if name.startswith("pq/")}
