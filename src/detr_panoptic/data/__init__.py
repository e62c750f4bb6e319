"""Panoptic datasets: readers, checks, conversion, augmentation and batches.

The names below are imported when they are first used, so that small modules of this folder stay quick to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .augmentation import Augmentation as Augmentation
    from .augmentation import LargeScaleJitter as LargeScaleJitter
    from .augmentation import RandomAugmentation as RandomAugmentation
    from .augmentation import sample_seed as sample_seed
    from .categories import COCO_PANOPTIC as COCO_PANOPTIC
    from .categories import Categories as Categories
    from .categories import match_labels as match_labels
    from .checking import DataCheck as DataCheck
    from .checking import check_data as check_data
    from .coco import CocoPanopticPaths as CocoPanopticPaths
    from .coco import find_coco_panoptic as find_coco_panoptic
    from .collation import PanopticCollator as PanopticCollator
    from .converting import DataConversion as DataConversion
    from .converting import convert_data as convert_data
    from .files import written_whole as written_whole
    from .folders import IMAGE_SUFFIXES as IMAGE_SUFFIXES
    from .folders import read_categories as read_categories
    from .images import read_images as read_images
    from .lazy_records import NamedRecords as NamedRecords
    from .reading import FORMATS as FORMATS
    from .reading import PanopticData as PanopticData
    from .reading import read_panoptic as read_panoptic
    from .records import Record as Record
    from .records import categories_of as categories_of
    from .records import measure_segments as measure_segments
    from .records import panoptic_features as panoptic_features
    from .records import segmentation_ids as segmentation_ids
    from .records import truth_ids as truth_ids
    from .writing import save_dataset as save_dataset
    from .writing import write_coco_panoptic_dataset as write_coco_panoptic_dataset
    from .writing import write_parquet as write_parquet

_NAMES = {
    "augmentation": ("Augmentation", "LargeScaleJitter", "RandomAugmentation", "sample_seed"),
    "categories": ("COCO_PANOPTIC", "Categories", "match_labels"),
    "checking": ("DataCheck", "check_data"),
    "coco": ("CocoPanopticPaths", "find_coco_panoptic"),
    "collation": ("PanopticCollator",),
    "converting": ("DataConversion", "convert_data"),
    "files": ("written_whole",),
    "folders": ("IMAGE_SUFFIXES", "read_categories"),
    "images": ("read_images",),
    "lazy_records": ("NamedRecords",),
    "reading": ("FORMATS", "PanopticData", "read_panoptic"),
    "records": ("Record", "categories_of", "measure_segments", "panoptic_features", "segmentation_ids", "truth_ids"),
    "writing": ("save_dataset", "write_coco_panoptic_dataset", "write_parquet"),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    """Imports the module of a public name."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
