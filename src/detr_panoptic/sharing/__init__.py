"""Model cards and uploads to the Hugging Face Hub."""

from .card import CardFacts, MeasuredQuality, build_card, write_card
from .pushing import PushedModel, push

__all__ = ["CardFacts", "MeasuredQuality", "PushedModel", "build_card", "push", "write_card"]
