"""Panoptic datasets: readers, checks, conversion, augmentation and batches.

The names below are imported when they are first used, so that small modules of this folder stay quick to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .augmentation import LargeScaleJitter, PanopticCollator, RandomAugmentation
    from .categories import COCO_PANOPTIC, Categories, match_labels
    from .checking import DataCheck, check_data
    from .lazy_records import NamedRecords
    from .reading import PanopticData, read_images, read_panoptic
    from .records import Record, categories_of, measure_segments, panoptic_features, segmentation_ids, truth_ids
    from .writing import DataConversion, convert_data, save_dataset, write_coco_panoptic_dataset, write_parquet

__all__ = ["COCO_PANOPTIC", "Categories", "DataCheck", "DataConversion", "LargeScaleJitter", "NamedRecords"]
__all__ += ["PanopticCollator", "PanopticData", "RandomAugmentation", "Record", "categories_of", "check_data"]
__all__ += ["convert_data", "match_labels", "measure_segments", "panoptic_features", "read_images", "read_panoptic"]
__all__ += ["save_dataset", "segmentation_ids", "truth_ids", "write_coco_panoptic_dataset", "write_parquet"]
_MODULES = ("categories", "records", "lazy_records", "reading", "writing", "checking", "augmentation")


def __getattr__(name: str) -> Any:
    """Imports the module of a name, the quick ones first."""
    if name in __all__:
        for module in _MODULES:
            found = getattr(import_module(f".{module}", __name__), name, None)
            if found is not None:
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
