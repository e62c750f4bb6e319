"""Checkpoints of other projects, read and converted; the bundled checkpoint.

Importing this package lets `from_pretrained` load transformers' DETR.
"""

from pathlib import Path

from ..modeling_detr_panoptic import DetrPanopticPreTrainedModel
from .foreign import build_model, read_foreign

BUNDLED = Path(__file__).parent / "scenes"
"""Folder of the bundled checkpoint."""

DetrPanopticPreTrainedModel.foreign_readers.append(read_foreign)

__all__ = ["BUNDLED", "build_model", "read_foreign"]
