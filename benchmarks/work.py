"""The work of a prediction, stage by stage: multiplications and bytes written, transformers' model beside ours.

    python benchmarks/work.py --sizes 800x1066 --kept 20 100
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from cases import NUM_LABELS, markdown_table, parser, random_images, transformers_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils._pytree import tree_leaves

from detr_panoptic import DetrPanopticConfig, DetrPanopticForSegmentation
