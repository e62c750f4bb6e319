"""Completion of annotations with a model."""

from .completion import Completion, complete_stuff

__all__ = ["Completion", "complete_stuff"]
