"""Converts the config of another DETR implementation to ours, from the shapes of the weights and its own config."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..data.categories import COCO_PANOPTIC, UNUSED

#: (blocks per stage, bottleneck) of the plain ResNets: 7x7 stem, 64 channels in the first stage, no groups.
RESNETS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((2, 2, 2, 2), True): "resnet26",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}

_BODY = "model.backbone.body."
DEFAULT_HEADS = 8  # the reference's --nheads
COCO_PANOPTIC_LABELS = 250  # the reference's class count for coco_panoptic: COCO's category ids, 0 and gaps included
COCO_DETECTION_LABELS = 91  # the same for COCO's things

#: Fields of transformers' DetrConfig that the shapes of the weights show too, and our names for them.
_FOREIGN_SIZES = {
    "d_model": "hidden_size",
    "encoder_layers": "encoder_layers",
    "decoder_layers": "decoder_layers",
    "encoder_ffn_dim": "ffn_dim",
    "decoder_ffn_dim": "ffn_dim",
    "num_queries": "num_queries",
    "encoder_attention_heads": "num_heads",
    "decoder_attention_heads": "num_heads",
    "num_channels": "num_channels",
}
#: Weights of the matching and of the losses, which transformers' config and ours call the same.
WEIGHTS = (
    *(f"{cost}_cost" for cost in ("class", "bbox", "giou")),
    *(f"{loss}_loss_coefficient" for loss in ("bbox", "giou", "mask", "dice")),
)
_FOREIGN_VALUES = ("dropout", "auxiliary_loss", *WEIGHTS, "eos_coefficient")
#: Fields for which this model supports one value.
_SUPPORTED = {
    "model_type": "detr",
    "position_embedding_type": "sine",
    "activation_function": "relu",
    "normalize_before": False,
}
_SUPPORTED_RESNET = {
    "model_type": "resnet",
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
}


def _sizes(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads from the shapes: `num_heads` only with a mask head, `num_channels` only of a ResNet."""
    num_queries, hidden_size = _shape(state_dict, "model.query_embeddings.weight")
    widths = {half: _shape(state_dict, f"model.{half}.layers.0.linear1.weight")[0] for half in ("encoder", "decoder")}
    if len(set(widths.values())) > 1:
        raise ValueError(f"Encoder and decoder must have one `ffn_dim`, got {widths}.")
    sizes: dict[str, Any] = {
        "hidden_size": hidden_size,
        "num_queries": num_queries,
        "num_labels": _shape(state_dict, "class_head.weight")[0] - 1,  # the last row is "no object"
        "ffn_dim": widths["encoder"],
        "encoder_layers": _count(state_dict, "model.encoder.layers."),
        "decoder_layers": _count(state_dict, "model.decoder.layers."),
    }
    if (block := state_dict.get("mask_head.blocks.0.conv.weight")) is not None:
        sizes["num_heads"] = block.shape[1] - hidden_size
    if (stem := state_dict.get(f"{_BODY}conv1.weight")) is not None:
        sizes["num_channels"] = stem.shape[1]
    return sizes


def convert_config(
    state_dict: Mapping[str, Tensor], foreign: Mapping[str, Any], *, has_masks: bool
) -> tuple[dict[str, Any], list[str]]:
    """Makes our config from the shapes of our weights and from the source's config, which may be empty.

    Returns:
        Arguments of `DetrPanopticConfig`, and a sentence for each assumption.

    Raises:
        ValueError: the two disagree, or the source has something that this model lacks.
    """
    _check_supported(foreign, _SUPPORTED)
    sizes = _sizes(state_dict)
    num_labels = sizes.pop("num_labels")
    backbone, notes = _backbone(_plain_resnet(state_dict), foreign)
    for theirs, ours in _FOREIGN_SIZES.items():
        if foreign.get(theirs) is not None and sizes.setdefault(ours, foreign[theirs]) != foreign[theirs]:
            raise ValueError(f"The config says `{theirs}` {foreign[theirs]}, but `{ours}` is {sizes[ours]}.")
    if "num_heads" not in sizes:
        sizes["num_heads"] = DEFAULT_HEADS
        notes.append(f"Weights without a mask head do not show the heads: `num_heads={DEFAULT_HEADS}` is assumed.")
    labels, label_notes = _labels(num_labels, foreign, has_masks=has_masks)
    values = {name: foreign[name] for name in _FOREIGN_VALUES if foreign.get(name) is not None}
    return {**backbone, **sizes, **values, **labels}, notes + label_notes


def label_fields(names: list[str]) -> dict[str, Any]:
    """Returns `id2label` and `label2id` of contiguous labels."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def _backbone(plain: str | None, foreign: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Returns `backbone` and `dilation` from the plain ResNet that the shapes show, if any, and from the config."""
    named = _foreign_backbone(foreign)
    notes = []
    backbone = named or plain
    if backbone is None:
        raise ValueError("The backbone is not a plain ResNet, and no config names it.")
    architecture = backbone.split(".")[0]  # what follows the dot in timm's names is the training of its weights
    if plain and architecture in RESNETS.values() and architecture != plain:
        raise ValueError(f"The config says `backbone` {named!r}, the weights are a {plain}'s.")
    if plain is None:
        notes.append(f"Backbone {backbone}: equal numbers are tested for plain ResNets only.")
    return {"backbone": backbone, "dilation": _foreign_dilation(foreign)}, notes


def _foreign_backbone(foreign: Mapping[str, Any]) -> str | None:
    """Returns timm's name of the backbone, None if only the shapes show it; raises ValueError for other kinds."""
    nested = foreign.get("backbone_config")
    if not nested:
        return foreign.get("backbone") if foreign.get("use_timm_backbone", True) else None
    if nested.get("model_type") == "timm_backbone":
        return nested.get("backbone")
    _check_supported(nested, _SUPPORTED_RESNET, "backbone_config.")
    return None


def _check_supported(config: Mapping[str, Any], supported: Mapping[str, Any], prefix: str = "") -> None:
    for name, value in supported.items():
        if config.get(name, value) != value:
            raise ValueError(f"`{prefix}{name}` must be {value!r}, got {config[name]!r}.")


def _foreign_dilation(foreign: Mapping[str, Any]) -> bool:
    options = [foreign.get(key) or {} for key in ("backbone_config", "backbone_kwargs")]
    stride = next((found["output_stride"] for found in options if found.get("output_stride") is not None), None)
    if stride not in (None, 16, 32):
        raise ValueError(f"`output_stride` of the backbone must be 16 or 32, got {stride}.")
    return stride == 16 if stride is not None else bool(foreign.get("dilation", False))


def _labels(num_labels: int, foreign: Mapping[str, Any], *, has_masks: bool) -> tuple[dict[str, Any], list[str]]:
    """Returns names and stuff of the labels: the config's real names, else COCO's if the count fits."""
    given = {int(label): name for label, name in (foreign.get("id2label") or {}).items()}
    if given and sorted(given) != list(range(num_labels)):
        raise ValueError(f"The config names {len(given)} labels, the class head has {num_labels}.")
    names, stuff = _coco_names(num_labels)
    has_names = any(not re.fullmatch(r"LABEL_\d+", name) for name in given.values())
    if has_names:
        # transformers' COCO detectors call every gap "N/A".
        real = [UNUSED.format(i) if given[i] == "N/A" else given[i] for i in range(num_labels)]
        stuff = stuff if names and all(real[i] == names[i] for i in stuff) else []
        names = real
    stuff = list(foreign.get("stuff_label_ids") or stuff)  # as our own export writes it
    notes = []
    if has_masks and not stuff:
        notes.append("The checkpoint does not say which labels are stuff: set `stuff_label_ids` to fuse them.")
    fields = label_fields(names or [f"LABEL_{i}" for i in range(num_labels)])
    return {**fields, "stuff_label_ids": stuff, "category_ids": foreign.get("category_ids")}, notes


def _coco_names(num_labels: int) -> tuple[list[str], list[int]]:
    """Returns COCO's names by category id and the ids of its stuff, if `num_labels` is that of a COCO model."""
    if num_labels not in (COCO_PANOPTIC_LABELS, COCO_DETECTION_LABELS):
        return [], []
    names = dict(zip(COCO_PANOPTIC.category_ids, COCO_PANOPTIC.names, strict=True))
    stuff = [COCO_PANOPTIC.category_ids[label] for label in COCO_PANOPTIC.stuff_label_ids]
    return [names.get(i, UNUSED.format(i)) for i in range(num_labels)], [i for i in stuff if i < num_labels]


def _plain_resnet(state_dict: Mapping[str, Tensor]) -> str | None:
    names = ("conv1.weight", "layer1.0.conv1.weight", "layer1.0.conv2.weight")
    stem, first, second = (state_dict.get(_BODY + name) for name in names)
    if stem is None or first is None or second is None:
        return None
    if stem.shape[2] != 7 or not first.shape[0] == second.shape[1] == 64:
        return None
    depths = tuple(_count(state_dict, f"{_BODY}layer{stage}.") for stage in range(1, 5))
    return RESNETS.get((depths, f"{_BODY}layer1.0.conv3.weight" in state_dict))


def _shape(state_dict: Mapping[str, Tensor], name: str) -> torch.Size:
    if name not in state_dict:
        raise ValueError(f"The checkpoint has no `{name}` (by our names): it is incomplete.")
    return state_dict[name].shape


def _count(state_dict: Mapping[str, Tensor], prefix: str) -> int:
    """Counts the different numbers that follow the prefix."""
    return len({name[len(prefix) :].split(".")[0] for name in state_dict if name.startswith(prefix)})


def stuff_labels(model_config: Mapping[str, Any]) -> list[int]:
    """Returns the stuff labels that a config states, or those of COCO if the labels are its panoptic category ids."""
    return list(model_config.get("stuff_label_ids") or _coco_names(len(model_config.get("id2label", ())))[1])
