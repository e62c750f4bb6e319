"""Checkpoints of other projects, read and converted; the bundled checkpoint.

Importing this package lets `from_pretrained` load transformers' DETR.
"""

from ..modeling_detr_panoptic import DetrPanopticPreTrainedModel
from .foreign import build_model, read_foreign

DetrPanopticPreTrainedModel.foreign_readers.append(read_foreign)

__all__ = ["build_model", "read_foreign"]
