"""Learning curves of a training run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

QUALITY = "panoptic quality"
PANELS = {
    "loss terms of the last layer": ("loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice"),
    QUALITY: ("pq", "pq_things", "pq_stuff", "training_pq"),
    "learning rate": ("rate",),
    "gradient norm": ("gradient_norm",),
}


def draw_curves(lines: Sequence[Mapping[str, Any]], path: Path, *, on_training: bool = False) -> None:
    """Draws losses, quality, learning rate and gradient norm over the updates.

    Args:
        lines: of `metrics.jsonl`: mappings with `step` and metrics.
        path: picture to write.
        on_training: whether the quality is that of the training images.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    for axis, (title, names) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            if points:
                axis.plot(*zip(*points, strict=True), label=name.removeprefix("loss_"), marker=".")
        on = " of the training images" if on_training and title == QUALITY else ""
        axis.set(title=title + on, xlabel="updates")
        axis.grid(alpha=0.3)
        if len(names) > 1 and axis.lines:
            axis.legend()
        if axis.lines and ("loss" in title or "gradient" in title):
            axis.set_yscale("log")
    figure.savefig(path, dpi=110)
