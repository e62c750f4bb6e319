"""A web page to try a model on. Needs Gradio: `pip install "detr-panoptic[demo]"`."""

from .page import build_page, launch

__all__ = ["build_page", "launch"]
