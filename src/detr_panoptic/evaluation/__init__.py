"""Evaluation: panoptic quality, average precision, and both for a model on a dataset."""

from .files import evaluate_files
from .model_evaluation import evaluate
from .panoptic_quality import PanopticQuality
from .results import Evaluation, PanopticQualityResult

__all__ = ["Evaluation", "PanopticQuality", "PanopticQualityResult", "evaluate", "evaluate_files"]
