"""Pictures of segmentations: overlays, legends, side by side, sheets, and attention maps."""

from .attention import ObjectAttention, attention_on_pixels, draw_attention
from .colors import class_colors, color_of, shade
from .overlays import draw_segments, draw_side_by_side
from .placement import place_labels
from .sheets import stack

__all__ = [
    "ObjectAttention",
    "attention_on_pixels",
    "class_colors",
    "color_of",
    "draw_attention",
    "draw_segments",
    "draw_side_by_side",
    "place_labels",
    "shade",
    "stack",
]
