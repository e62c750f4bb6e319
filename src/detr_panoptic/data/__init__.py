"""Panoptic data: the canonical record, readers, generated scenes, augmentation and batches."""

from .augmentation import RandomAugmentation, sample_seed
from .coco import CocoPanopticPaths, find_coco_panoptic, read_coco_panoptic
from .collation import PanopticCollator
from .reading import FORMATS, PanopticData, read_panoptic
from .records import Record, measure_segments, panoptic_features, segmentation_ids
from .scenes import SCENE_CATEGORIES, make_scene, scenes_dataset

__all__ = [
    "FORMATS",
    "SCENE_CATEGORIES",
    "CocoPanopticPaths",
    "PanopticCollator",
    "PanopticData",
    "RandomAugmentation",
    "Record",
    "find_coco_panoptic",
    "make_scene",
    "measure_segments",
    "panoptic_features",
    "read_coco_panoptic",
    "read_panoptic",
    "sample_seed",
    "scenes_dataset",
    "segmentation_ids",
]
