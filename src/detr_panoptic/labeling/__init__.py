"""Labels by a model: of whole images, or of what an annotation leaves void."""

from .completion import complete_stuff
from .labels import label
from .results import Labels

__all__ = ["Labels", "complete_stuff", "label"]
