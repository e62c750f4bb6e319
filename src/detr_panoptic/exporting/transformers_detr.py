"""Writing a model as transformers' own DETR, which `DetrForSegmentation` and its other readers load.

The names come from the table that reads such checkpoints, so a checkpoint that was read is written with the same bits.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DetrConfig, DetrForSegmentation, DetrImageProcessor

from ..checkpoints.configs import WEIGHTS
from ..checkpoints.names import TRANSFORMERS, rename
from ..checkpoints.reading import PROCESSOR_FIELDS
from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
from ..modeling_detr_panoptic import DetrPanopticForSegmentation

SAME_NAMES = (
    *("backbone", "dilation", "num_channels", "encoder_layers", "decoder_layers", "num_queries", "auxiliary_loss"),
    *("id2label", "label2id", "stuff_label_ids", "category_ids"),
)
TOLERANCE = 1e-4  # between two frameworks' float32 sums; logits are of the order of 1 to 10


def write_transformers(
    model: DetrPanopticForSegmentation, processor: DetrPanopticImageProcessor, folder: Path
) -> None:
    """Writes a model and its image processor.

    Raises:
        ValueError: transformers' DETR computes other numbers with this backbone, or cannot be built like this model.
    """
    try:
        theirs = _transformers_model(model)
    except Exception as error:  # of timm and transformers: this backbone, or too small a mask head
        raise ValueError(f'`format="transformers"`: transformers cannot build this model: {error}') from error
    _check_same_numbers(model, theirs)
    theirs.save_pretrained(folder)
    fields = {name: getattr(processor, name) for name in PROCESSOR_FIELDS}
    DetrImageProcessor(size=dict(processor.size), **fields).save_pretrained(folder)


def _transformers_model(model: DetrPanopticForSegmentation) -> DetrForSegmentation:
    """Returns transformers' DETR with the weights of a model."""
    ours = model.state_dict()
    with torch.device("meta"):
        theirs = DetrForSegmentation(_transformers_config(model.config))
    names = list(theirs.state_dict())
    numbered = rename({name: torch.tensor(number) for number, name in enumerate(names)}, TRANSFORMERS)
    weights: dict[str, Tensor] = {names[int(number)]: ours[name] for name, number in numbered.items()}
    theirs.load_state_dict(weights, assign=True)
    return theirs.eval()


def _transformers_config(config: Any) -> DetrConfig:
    """Translates our config; transformers keeps and ignores `stuff_label_ids` and `category_ids`."""
    arguments: dict[str, Any] = {name: getattr(config, name) for name in SAME_NAMES}
    arguments |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), config.num_heads)
    arguments |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), config.ffn_dim)
    arguments |= dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), config.dropout)
    # transformers has whole numbers for these; others count in training only and are left at their defaults.
    arguments |= {name: int(value) for name in WEIGHTS if (value := getattr(config, name)) == int(value)}
    return DetrConfig(**arguments, d_model=config.hidden_size, eos_coefficient=float(config.eos_coefficient))


def _check_same_numbers(model: DetrPanopticForSegmentation, theirs: DetrForSegmentation) -> None:
    """Raises ValueError unless both compute the same for one small image."""
    pixels = torch.randn(1, model.config.num_channels, 64, 96, generator=torch.Generator().manual_seed(0))
    ours, other = (copy.deepcopy(module).cpu().float().eval() for module in (model, theirs))
    with torch.no_grad():
        found, expected = other(pixels), ours(pixels, mask_queries="all")
    for name in ("logits", "pred_boxes", "pred_masks"):
        difference = (found[name] - expected[name]).abs().max().item()
        if not difference <= TOLERANCE * max(1.0, expected[name].abs().max().item()):
            raise ValueError(
                f'`format="transformers"` needs a backbone that transformers computes alike, such as a ResNet; with '
                f"{model.config.backbone!r} its `{name}` differ by {difference:.1g}."
            )
