"""What a finished run leaves to read: learning curves and the model card."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.hub_names import hub_name
from ..sharing.card import MeasuredQuality, write_card
from .data import TrainingData
from .settings import TrainingSettings
from .tracking import read_metrics
from .validation import PICTURE

CURVES = "training_curves.png"
PANELS = {
    "loss terms of the last layer": ("loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice"),
    "panoptic quality": ("pq", "pq_things", "pq_stuff", "training_pq"),
    "learning rate": ("rate",),
    "gradient norm": ("gradient_norm",),
}


def best_evaluation(folder: Path) -> dict[str, Any]:
    """Returns the metrics of the best evaluation of a run; empty if masks were never evaluated."""
    return max((line for line in read_metrics(folder) if "pq" in line), key=lambda line: line["pq"], default={})


def write_reports(
    folder: Path, model: Any, settings: TrainingSettings, data: TrainingData, plan: Sequence[str]
) -> None:
    """Draws the curves of a run and writes the model card beside its model."""
    draw_curves(read_metrics(folder), folder / CURVES)
    write_card(
        folder,
        model,
        data=data.describe(),
        recipe=plan,
        quality=measured_quality(best_evaluation(folder), data),
        picture=PICTURE,
        datasets=[name for name in (hub_name(settings.data.data or ""),) if name],
        base_model=hub_name(settings.model.model or ""),
    )


def measured_quality(best: Mapping[str, Any], data: TrainingData) -> MeasuredQuality | None:
    """Returns the quality for the model card, given the metrics of the best evaluation."""
    if not best:
        return None
    groups = {"all": "", "things": "_things", "stuff": "_stuff"}
    return MeasuredQuality(
        dataset=data.validation_name,
        how=f"{len(data.validation)} images, after update {best['step']}",
        groups={name: tuple(best[f"{key}{ending}"] for key in ("pq", "sq", "rq")) for name, ending in groups.items()},
        classes={name.removeprefix("pq/"): value for name, value in best.items() if name.startswith("pq/")},
        on_training_images=data.validation is data.train,
    )


def draw_curves(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws losses, quality, learning rate and gradient norm over the updates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    for axis, (title, names) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            if points:
                axis.plot(*zip(*points, strict=True), label=name.removeprefix("loss_"), marker=".")
        axis.set(title=title, xlabel="updates")
        axis.grid(alpha=0.3)
        if len(names) > 1 and axis.lines:
            axis.legend()
        if axis.lines and ("loss" in title or "gradient" in title):
            axis.set_yscale("log")
    figure.savefig(path, dpi=110)
