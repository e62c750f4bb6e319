"""Panoptic quality, average precision, and predictions as COCO-format files.

The function `panoptic_quality` stays in its module of the same name, which it would hide here.
"""

from .files import evaluate_files
from .model_evaluation import evaluate_model
from .panoptic_quality import PanopticStats, panoptic_stats
from .results import coco_annotation, write_coco_panoptic, write_segmentation

__all__ = [
    "PanopticStats",
    "coco_annotation",
    "evaluate_files",
    "evaluate_model",
    "panoptic_stats",
    "write_coco_panoptic",
    "write_segmentation",
]
