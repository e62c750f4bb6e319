"""What a finished run leaves to read: `training_summary.md` with curves, and the model card."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..plain_text import markdown, one_line
from .checkpoints import METRICS

CURVES = "training_curves.png"
SUMMARY = "training_summary.md"
CARD = "README.md"
CARD_TEMPLATE = Path(__file__).with_name("model_card.md")
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
        text += ["| update | epoch | PQ | SQ | RQ | PQ things | PQ stuff |", "|---|---|---|---|---|---|---|"]
        for line in evaluations:
            shown = [line[name] for name in ("pq", "sq", "rq", "pq_things", "pq_stuff")]
            mark = " (best)" if line is best else ""
            numbers = " | ".join(f"{100 * value:.1f}" for value in shown)
            text.append(f"| {line['step']}{mark} | {line['epoch']} | {numbers} |")
        text += ["", "Classes at the best update:", "", *_class_table(best)]
    (folder / SUMMARY).write_text("\n".join(text) + "\n", encoding="utf-8")


def draw_curves(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Losses, quality, rate and gradient norm against updates, as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    panels: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("loss terms of the last layer", LOSS_TERMS),
        ("panoptic quality", ("pq", "pq_things", "pq_stuff")),
        ("rate", ("rate",)),
        ("norm of the gradient", ("gradient_norm",)),
    )
    for axis, (title, names) in zip(axes.flat, panels, strict=True):
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            if points:
                marker = "o" if name.startswith("pq") else None
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


def write_model_card(
    folder: Path, *, data: Mapping[str, str], recipe: Sequence[str], measured_on: str, picture: str | None
) -> None:
    """Writes `README.md` for the model of a run: its data, recipe, quality and a picture.

    Args:
        folder: output of the run; also the model's name.
        data: a description of each set of images.
        recipe: lines about the run.
        measured_on: what PQ was measured on.
        picture: file in the folder.
    """
    evaluations = [line for line in read_metrics(folder) if "pq" in line]
    best = max(evaluations, key=lambda line: line["pq"], default={})
    rows = [("all", "pq", "sq", "rq"), ("things", "pq_things", "sq_things", "rq_things")]
    rows.append(("stuff", "pq_stuff", "sq_stuff", "rq_stuff"))
    table = [
        f"| {name} | " + " | ".join(f"{100 * best[key]:.1f}" for key in keys) + " |" for name, *keys in rows if best
    ]
    card = ModelCard.from_template(
        ModelCardData(
            library_name="transformers",
            pipeline_tag="image-segmentation",
            tags=["panoptic-segmentation", "detr", "detr_panoptic"],
            metrics=["panoptic_quality"],
        ),
        template_path=str(CARD_TEMPLATE),
        model_name=markdown(folder.resolve().name),
        picture=f"![image, annotation and prediction of held-out images]({picture})" if picture else "",
        data="\n".join(f"- {name}: {markdown(words)}" for name, words in data.items()),
        recipe="\n".join(map(one_line, recipe)),
        how_measured=markdown(f"{measured_on}, after update {best['step']}" if best else "not measured"),
        pq_table="\n".join(table),
        class_table="\n".join(_class_table(best)),
    )
    (folder / CARD).write_text(str(card), encoding="utf-8")


def _class_table(evaluation: Mapping[str, Any]) -> list[str]:
    """PQ of each class that was measured, the best first, as Markdown."""
    classes = {name.removeprefix("pq/"): value for name, value in evaluation.items() if name.startswith("pq/")}
    ordered = sorted(classes.items(), key=lambda item: -item[1])
    return ["| class | PQ |", "|---|---|", *[f"| {markdown(name)} | {100 * value:.1f} |" for name, value in ordered]]
