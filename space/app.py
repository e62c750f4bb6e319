"""The page as a Hugging Face Space. A variable MODEL of the Space names another model than the bundled one."""

import os

from detr_panoptic.app import launch
from detr_panoptic.checkpoints import BUNDLED

launch(os.environ.get("MODEL") or BUNDLED, host="0.0.0.0")
