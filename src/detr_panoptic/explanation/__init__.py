"""Where a model looked for the objects of an image."""

from .explanation import Explanation, explain

__all__ = ["Explanation", "explain"]
