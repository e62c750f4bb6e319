"""Merging of one image, for tests."""

from detr_panoptic.box_ops import fetch
from detr_panoptic.panoptic_merging import best_classes, paper_steps, run_together, score_weighted_steps


def merge_paper(logits, masks, sizes, **options):
    """Merges as `paper_steps` does, given class logits (Q, K + 1)."""
    return run_together([paper_steps(fetch(*best_classes(logits)), masks, sizes, **options)])[0]


def merge_score_weighted(logits, masks, sizes, **options):
    """Merges as `score_weighted_steps` does, given class logits (Q, K + 1)."""
    return run_together([score_weighted_steps(fetch(*best_classes(logits)), masks, sizes, **options)])[0]
