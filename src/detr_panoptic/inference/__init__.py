"""Inference: the one loop that runs a model over images."""

from .folder import PredictionFolder
from .loading import load, model_categories
from .options import check_options
from .pictures import open_pictures
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
    "check_options",
    "is_video",
    "load",
    "model_categories",
    "open_pictures",
    "write_segmentation",
]
