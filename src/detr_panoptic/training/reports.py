"""What a finished run leaves to read: learning curves and the model card."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.hub_names import hub_name
from ..sharing.card import MeasuredQuality, write_card
from ..visualization.curves import draw_curves
from .data import TrainingData
from .settings import TrainingSettings
from .tracking import read_metrics
from .validation import PICTURE

CURVES = "training_curves.png"


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
    is_trained_on = data.validation is data.train
    groups = {"all": "", "things": "_things", "stuff": "_stuff"}
    return MeasuredQuality(
        dataset=data.train_name if is_trained_on else data.validation_name,
        how=f"{len(data.validation)} images, after update {best['step']}",
        groups={name: tuple(best[f"{key}{ending}"] for key in ("pq", "sq", "rq")) for name, ending in groups.items()},
        classes={name.removeprefix("pq/"): value for name, value in best.items() if name.startswith("pq/")},
        on_training_images=is_trained_on,
    )
