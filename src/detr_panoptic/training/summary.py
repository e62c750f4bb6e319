"""What a finished run leaves to read: curves, a summary and the model card."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.hub_names import hub_name
from ..data.plain_text import markdown, one_line
from ..sharing.card import MeasuredQuality, class_table, write_card
from .data import TrainingData
from .settings import TrainingSettings
from .tracking import read_metrics
from .validation import PICTURE

CURVES = "training_curves.png"
SUMMARY = "training_summary.md"
LOSS_TERMS = ("loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice")
PANELS: dict[str, tuple[str, ...]] = {
    "loss terms of the last layer": LOSS_TERMS,
    "panoptic quality": ("pq", "pq_things", "pq_stuff", "training_pq"),
    "rate": ("rate",),
    "norm of the gradient": ("gradient_norm",),
}
COLUMNS = {"pq": "PQ", "sq": "SQ", "rq": "RQ", "pq_things": "PQ things", "pq_stuff": "PQ stuff"}
TRAINING_COLUMN = {"training_pq": "PQ of training images"}


def best_evaluation(folder: Path) -> dict[str, Any]:
    """Returns the metrics of the best evaluation of a run; empty if masks were never evaluated."""
    evaluations = [line for line in read_metrics(folder) if "pq" in line]
    return max(evaluations, key=lambda line: line["pq"], default={})


def write_reports(
    folder: Path, model: Any, settings: TrainingSettings, data: TrainingData, plan: Sequence[str]
) -> None:
    """Writes the summary with curves, and the model card, beside the model of a run."""
    lines = read_metrics(folder)
    draw_curves(lines, folder / CURVES)
    descriptions = data.describe()
    write_summary(folder, lines, plan, descriptions)
    start = settings.model.model
    write_card(
        folder,
        model,
        data=descriptions,
        recipe=plan,
        quality=measured_quality(best_evaluation(folder), data),
        picture=PICTURE,
        datasets=tuple(filter(None, (hub_name(settings.data.data or ""),))),
        base_model=None if start is None else hub_name(start),
    )


def measured_quality(best: Mapping[str, Any], data: TrainingData) -> MeasuredQuality | None:
    """Returns the quality for the model card, given the metrics of the best evaluation."""
    if not best:
        return None
    groups = {"all": "", "things": "_things", "stuff": "_stuff"}
    return MeasuredQuality(
        dataset=data.validation_name,
        hub_dataset=hub_name(data.validation_name.split(" ")[0]),
        how=f"{len(data.validation)} images, after update {best['step']}",
        groups={name: tuple(best[f"{key}{ending}"] for key in ("pq", "sq", "rq")) for name, ending in groups.items()},
        classes=_classes(best),
        on_training_images=data.validation is data.train,
    )


def write_summary(
    folder: Path, lines: Sequence[Mapping[str, Any]], plan: Sequence[str], data: Mapping[str, str]
) -> None:
    """Writes `training_summary.md`: the data, the plan, the curves and the evaluations."""
    text = ["# Training summary", "", *[f"- {name}: {markdown(words)}" for name, words in data.items()], ""]
    text += ["```", *map(one_line, plan), "```", "", f"![losses, quality, rate and gradient]({CURVES})", ""]
    evaluations = [line for line in lines if "pq" in line]
    if evaluations:
        best = max(evaluations, key=lambda line: line["pq"])
        columns = COLUMNS | (TRAINING_COLUMN if any("training_pq" in line for line in evaluations) else {})
        text += [f"| update | epoch | {' | '.join(columns.values())} |", "|---" * (2 + len(columns)) + "|"]
        for line in evaluations:
            numbers = " | ".join(f"{100 * line.get(name, float('nan')):.1f}" for name in columns)
            text.append(f"| {line['step']}{' (best)' if line is best else ''} | {line['epoch']} | {numbers} |")
        text += ["", "Classes at the best update:", "", *class_table(_classes(best))]
    (folder / SUMMARY).write_text("\n".join(text) + "\n", encoding="utf-8")


def draw_curves(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws losses, quality, learning rate and gradient norm over the updates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    for axis, (title, names) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
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
        if names[0] == "pq":
            axis.set_ylim(0, 1)
    figure.savefig(path, dpi=110)


def _classes(evaluation: Mapping[str, Any]) -> dict[str, float]:
    return {name.removeprefix("pq/"): value for name, value in evaluation.items() if name.startswith("pq/")}
