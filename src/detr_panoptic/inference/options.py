"""Options of a run over images: their values, and the check of them all, which needs neither a model nor an image."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from ..data.files import check_folder
from ..data.reading import check_least
from .folder import Layout
from .tiling import Tiling

Task = Literal["panoptic", "instance", "semantic"]
Detections = Literal["none", "box", "mask"]
OnError = Literal["stop", "skip"]

OVERLAP = 128  # pixels of neighboring tiles: most things that a border cuts are then whole in one of them
CHOICES = {"task": Task, "detections": Detections, "on_error": OnError, "to": Layout}


def check_options(
    task: str = "panoptic",
    threshold: float | None = None,
    *,
    batch_size: int = 1,
    num_workers: int | None = None,
    output: str | Path | None = None,
    tile: int | None = None,
    overlap: int = OVERLAP,
    every: int = 1,
    **choices: str,
) -> Tiling | None:
    """Returns how images are cut, if they are.

    Raises:
        ValueError: an option is out of range, or two exclude each other; names it.
        OSError: the output folder cannot be written to.
    """
    for name, value in {"task": task, **choices}.items():
        if value not in (allowed := get_args(CHOICES[name])):
            raise ValueError(f"`{name}` must be {', '.join(allowed[:-1])} or {allowed[-1]}, got {value!r}.")
    if threshold is not None and not (isinstance(threshold, int | float) and 0 <= threshold <= 1):
        raise ValueError(f"`threshold` must be a number from 0 to 1, got {threshold!r}.")
    if threshold is not None and task == "semantic":
        raise ValueError("`threshold` has no meaning for the semantic task: every pixel gets its best class.")
    check_least("batch_size", batch_size, 1)
    check_least("num_workers", num_workers, 0)
    check_least("every", every, 1)
    if output is not None:
        check_folder(output)
    if tile is None:
        if overlap != OVERLAP:
            raise ValueError(f"`overlap` has no meaning without `tile`, got {overlap}.")
        return None
    if choices.get("detections", "none") != "none":
        raise ValueError('`detections` must be "none" with `tile`: boxes of single queries are not joined.')
    tiling = Tiling(tile, overlap)
    tiling.check()
    return tiling
