"""Generated scenes: a dataset that needs no files."""

from .dataset import SCENE_CATEGORIES, UNSEEN_SEED, make_scene, scenes_dataset
from .source import SCENES, read_source

__all__ = ["SCENES", "SCENE_CATEGORIES", "UNSEEN_SEED", "make_scene", "read_source", "scenes_dataset"]
