"""Training: `train` and its settings.

`train` imports torch; the settings do not, so they can be shown by the command line at once.
"""

from typing import TYPE_CHECKING, Any

from .settings import TrainingSettings, recipe_names, resolve_settings

if TYPE_CHECKING:
    from .run import TrainingResult, train

__all__ = ["TrainingResult", "TrainingSettings", "recipe_names", "resolve_settings", "train"]


def __getattr__(name: str) -> Any:
    """Imports `train` and its result when they are used."""
    if name not in ("TrainingResult", "train"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import run

    return getattr(run, name)
