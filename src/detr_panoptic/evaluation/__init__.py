"""Panoptic quality, average precision, and predictions as COCO-format files.

The function `panoptic_quality` stays in its module of the same name, which it would hide here.
"""

from .files import evaluate_files
from .model_evaluation import evaluate_model
from .panoptic_quality import PanopticStats, panoptic_stats

__all__ = [
    "PanopticStats",
    "evaluate_files",
    "evaluate_model",
    "panoptic_stats",
]
