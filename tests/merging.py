"""Merging of one image, for tests."""

from functools import partial

from detr_panoptic.panoptic_merging import merge_image, paper_steps, score_weighted_steps

merge_paper = partial(merge_image, paper_steps)
merge_score_weighted = partial(merge_image, score_weighted_steps)
