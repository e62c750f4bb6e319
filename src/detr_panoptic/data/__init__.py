"""Panoptic data: the canonical record, readers, augmentation and batches."""

from .augmentation import Augmentation, LargeScaleJitter, RandomAugmentation, sample_seed
from .coco import CocoPanopticPaths, find_coco_panoptic
from .collation import PanopticCollator
from .folders import IMAGE_SUFFIXES, read_categories
from .images import read_images
from .lazy_records import NamedRecords
from .reading import FORMATS, PanopticData, read_panoptic
from .records import Record, categories_of, measure_segments, panoptic_features, segmentation_ids
from .writing import save_dataset, write_coco_panoptic_dataset, write_parquet

__all__ = [
    "FORMATS",
    "IMAGE_SUFFIXES",
    "Augmentation",
    "CocoPanopticPaths",
    "LargeScaleJitter",
    "NamedRecords",
    "PanopticCollator",
    "PanopticData",
    "RandomAugmentation",
    "Record",
    "categories_of",
    "find_coco_panoptic",
    "measure_segments",
    "panoptic_features",
    "read_categories",
    "read_images",
    "read_panoptic",
    "sample_seed",
    "save_dataset",
    "segmentation_ids",
    "write_coco_panoptic_dataset",
    "write_parquet",
]
