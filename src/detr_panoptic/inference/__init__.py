"""Inference: the one loop that runs a model over images."""

from .folder import PredictionFolder
from .loading import load, model_categories
from .prediction import Prediction, Segment, write_segmentation
from .predictor import Predictor

__all__ = ["Prediction", "PredictionFolder", "Predictor", "Segment", "load", "model_categories", "write_segmentation"]
