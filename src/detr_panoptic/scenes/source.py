"""Datasets by name: "scenes" for generated images, otherwise whatever `read_panoptic` reads."""

from pathlib import Path
from typing import Any

from ..data.reading import PanopticData, read_panoptic
from .dataset import SCENE_CATEGORIES, scenes_dataset

SCENES = "scenes"
SCENE_COUNT = 1000
SCENE_SIDE = 256  # pixels


def read_source(
    source: str | Path | PanopticData,
    *,
    limit: int | None = None,
    scene_side: int = SCENE_SIDE,
    scene_seed: int = 0,
    scene_workers: int = 0,
    **options: Any,
) -> PanopticData:
    """Reads a dataset with the arguments of `read_panoptic`; or generates scenes for the source "scenes".

    Args:
        source: "scenes", or anything that `read_panoptic` takes.
        limit: maximum number of records; of scenes, how many to generate (1000 by default).
        scene_side: height and width of scenes in pixels.
        scene_seed: another seed gives other scenes.
        scene_workers: number of processes that generate scenes; 0 uses this process.
        options: further ones of `read_panoptic`. Scenes have neither `split` nor `data_format`.

    Raises:
        ValueError: as `read_panoptic`.

    Examples:
        >>> data = read_source("scenes", limit=3, scene_side=128)
        >>> len(data.records), data.categories.names[0]
        (3, 'house')
    """
    if source != SCENES:
        return read_panoptic(source, limit=limit, **options)
    for name in ("split", "data_format"):
        if options.get(name) is not None:
            raise ValueError(f"`{name}` does not apply to generated scenes, got {options[name]!r}.")
    scenes = scenes_dataset(
        limit or SCENE_COUNT, seed=scene_seed, height=scene_side, width=scene_side, workers=scene_workers
    )
    return read_panoptic(PanopticData(scenes, SCENE_CATEGORIES), categories=options.get("categories"))
