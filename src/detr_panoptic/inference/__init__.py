"""Inference: the one loop that runs a model over images."""

from .folder import PredictionFolder
from .loading import load, model_categories
from .prediction import Prediction, Segment, write_segmentation
from .predictor import Predictor
from .video import Frame, VideoPrediction, is_video

__all__ = [
    "Frame",
    "Prediction",
    "PredictionFolder",
    "Predictor",
    "Segment",
    "VideoPrediction",
    "is_video",
    "load",
    "model_categories",
    "write_segmentation",
]
