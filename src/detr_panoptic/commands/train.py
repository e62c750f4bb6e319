"""`detr-panoptic train`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from cyclopts import App, Group, Parameter

from ..training.settings import SUBJECTS, recipe_names, resolve_settings

KEYWORD = inspect.Parameter.KEYWORD_ONLY
SIGNALED = 128  # a shell's exit code after a signal is this plus its number


def train(
    *,
    recipe: Annotated[
        str | None, Parameter(help=f"Defaults for a purpose: {', '.join(recipe_names())} (docs/training.md).")
    ] = None,
    config: Annotated[Path | None, Parameter(help="YAML file with any of the options below and `recipe`.")] = None,
    dry_run: Annotated[bool, Parameter(help="Show what would be done, and stop.")] = False,
    overwrite: Annotated[bool, Parameter(help="Delete the run that is in the output folder.")] = False,
    **settings: Any,
) -> int:
    """Trains a model on images with panoptic annotations.

    Every option is also a key of the YAML file that --config names. Options
    override the file, and the file overrides the recipe. Without --recipe, the
    number of images decides. This page shows the defaults of the recipe and the
    file that are named beside --help, or those of finetune.

    The output folder gets the best model by PQ, its image processor and a model
    card (load it with from_pretrained), training.yaml with the settings, metrics,
    curves and checkpoints. A stopped run continues when it is started again in
    the same way. On several GPUs: accelerate launch -m
    detr_panoptic.commands train with the same options.

    For example:

        detr-panoptic train --data my_data --output my_model --epochs 50
        detr-panoptic train --data my_data --output my_model --dry-run
        detr-panoptic train --recipe finetune-small --help
        detr-panoptic train --config configs/scenes.yaml
    """
    from .. import train as run_training

    result = run_training(
        settings.pop("data", None), recipe=recipe, config=config, dry_run=dry_run, overwrite=overwrite, **settings
    )
    print(result)
    return 0 if dry_run or result.is_finished else SIGNALED + int(result.stop_signal or 0)


def train_command(words: Sequence[str]) -> Callable[..., int]:
    """Returns `train` with an option for each setting.

    The defaults on the help page are those of the recipe and the file that `words` name.
    """
    defaults = resolve_settings(*_chosen(words)).to_dict()
    options = [p for p in inspect.signature(train, eval_str=True).parameters.values() if p.name != "settings"]
    annotated: Any = Annotated  # mypy takes a subscript for a type
    for place, (name, subject) in enumerate(SUBJECTS.items()):
        group = Group(name.capitalize(), sort_key=place)
        hints = get_type_hints(subject)
        for field in fields(subject):
            default = defaults[field.name]
            shown = f"{default:.4g}" if isinstance(default, float) else None
            parameter = Parameter(help=field.metadata["help"], group=group, negative=None, show_default=shown)
            annotation = annotated[hints[field.name], parameter]
            options.append(inspect.Parameter(field.name, KEYWORD, default=default, annotation=annotation))

    @wraps(train)
    def command(**given: Any) -> int:
        return train(**given)

    command.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    return command


def _chosen(words: Sequence[str]) -> tuple[str | None, Path | None]:
    """Returns the recipe and the file that the words name."""
    peek = App(help_flags=(), version_flags=())

    @peek.default
    def chosen(*, recipe: str | None = None, config: Path | None = None) -> tuple[str | None, Path | None]:
        return recipe, config

    command, bound, _, _ = peek.parse_known_args(list(words))
    return command(*bound.args, **bound.kwargs)
