"""Inference: the one loop that runs a model over images."""

from .folder import PredictionFolder
from .loading import load, model_categories
from .prediction import Prediction, Segment, write_segmentation
from .predictor import Predictor, predict

__all__ = [
    "Prediction",
    "PredictionFolder",
    "Predictor",
    "Segment",
    "load",
    "model_categories",
    "predict",
    "write_segmentation",
]
