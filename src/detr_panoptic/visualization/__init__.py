"""Pictures of segmentations: overlays with labels, and annotation beside prediction."""

from .colors import color_of
from .overlays import draw_segments, draw_side_by_side
from .placement import place_labels

__all__ = ["color_of", "draw_segments", "draw_side_by_side", "place_labels"]
