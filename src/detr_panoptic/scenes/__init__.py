"""Generated scenes: a dataset that needs no files."""

from .dataset import SCENE_CATEGORIES, make_scene, scenes_dataset

__all__ = ["SCENE_CATEGORIES", "make_scene", "scenes_dataset"]
