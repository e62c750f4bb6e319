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
_FOREIGN_VALUES = (
    "dropout",
    "auxiliary_loss",
    *(f"{cost}_cost" for cost in ("class", "bbox", "giou")),
    *(f"{loss}_loss_coefficient" for loss in ("bbox", "giou", "mask", "dice")),
    "eos_coefficient",
)
#: Fields for which this model supports one value.
_SUPPORTED = {
    "model_type": "detr",
    "position_embedding_type": "sine",
    "activation_function": "relu",
    "normalize_before": False,
}
_SUPPORTED_RESNET = {"hidden_act": "relu", "downsample_in_first_stage": False, "downsample_in_bottleneck": False}


def infer_sizes(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads fields of our config from the shapes of the weights.

    Returns:
        `hidden_size`, `num_queries`, `num_labels`, `ffn_dim`, `encoder_layers`, `decoder_layers`; `num_heads` if there
        is a mask head, `num_channels` and `backbone` if it is a plain ResNet.

    Raises:
        ValueError: a weight that every DETR has is missing, or encoder and decoder differ in width.
    """
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
    if "mask_head.blocks.0.conv.weight" in state_dict:
        sizes["num_heads"] = _shape(state_dict, "mask_head.blocks.0.conv.weight")[1] - hidden_size
    stem = state_dict.get("model.backbone.body.conv1.weight")
    if stem is not None:
        sizes["num_channels"] = stem.shape[1]
    backbone = _plain_resnet(state_dict)
    if backbone is not None:
        sizes["backbone"] = backbone
    return sizes


def convert_config(
    state_dict: Mapping[str, Tensor], foreign: Mapping[str, Any], *, has_masks: bool
) -> tuple[dict[str, Any], list[str]]:
    """Makes our config from the shapes and from the source's config, which must agree.

    Args:
        state_dict: by our names.
        foreign: the source's config in the names of transformers' `DetrConfig`; may be empty.
        has_masks: whether the source has a mask head.

    Returns:
        Arguments of `DetrPanopticConfig`, and a sentence for each assumption.

    Raises:
        ValueError: the two disagree, or the source has something that this model lacks.
    """
    for name, value in _SUPPORTED.items():
        if foreign.get(name, value) != value:
            raise ValueError(f"`{name}` must be {value!r}, got {foreign[name]!r}.")
    sizes = infer_sizes(state_dict)
    num_labels = sizes.pop("num_labels")
    backbone, notes = _backbone(sizes.pop("backbone", None), foreign)
    for theirs, ours in _FOREIGN_SIZES.items():
        if foreign.get(theirs) is not None and sizes.setdefault(ours, foreign[theirs]) != foreign[theirs]:
            raise ValueError(f"The config says `{theirs}` {foreign[theirs]}, but `{ours}` is {sizes[ours]}.")
    if "num_heads" not in sizes:
        sizes["num_heads"] = DEFAULT_HEADS
        notes.append(f"Weights without a mask head do not show the heads: `num_heads={DEFAULT_HEADS}` is assumed.")
    notes += [
        f"`{name}` {foreign[name]} is ignored: it affects training only."
        for name in ("encoder_layerdrop", "decoder_layerdrop")
        if foreign.get(name)
    ]
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
    dilation = _foreign_dilation(foreign)
    if dilation and named is None and foreign.get("use_timm_backbone") is False:
        notes.append("`dilation=True` as the config says; transformers ignores it with its own ResNet.")
    return {"backbone": backbone, "dilation": dilation}, notes


def _foreign_backbone(foreign: Mapping[str, Any]) -> str | None:
    """Returns timm's name of the backbone, None if only the shapes show it; raises ValueError for other kinds."""
    nested = foreign.get("backbone_config")
    if not nested:
        return foreign.get("backbone") if foreign.get("use_timm_backbone", True) else None
    kind = nested.get("model_type")
    if kind == "timm_backbone":
        return nested.get("backbone")
    if kind != "resnet":
        raise ValueError(f"`backbone_config` must be of `model_type` timm_backbone or resnet, got {kind!r}.")
    for name, value in _SUPPORTED_RESNET.items():
        if nested.get(name, value) != value:
            raise ValueError(f"`backbone_config.{name}` must be {value!r}, got {nested[name]!r}.")
    return None


def _foreign_dilation(foreign: Mapping[str, Any]) -> bool:
    stride = next(
        (
            source["output_stride"]
            for key in ("backbone_config", "backbone_kwargs")
            if (source := foreign.get(key)) and source.get("output_stride") is not None
        ),
        None,
    )
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
    names = [UNUSED.format(i) for i in range(num_labels)]
    stuff = []
    for category_id, name, is_thing in zip(
        COCO_PANOPTIC.category_ids, COCO_PANOPTIC.names, COCO_PANOPTIC.is_thing, strict=True
    ):
        if category_id < num_labels:
            names[category_id] = name
            stuff += [] if is_thing else [category_id]
    return names, stuff


def _plain_resnet(state_dict: Mapping[str, Tensor]) -> str | None:
    body = "model.backbone.body."
    stem, first, second = (
        state_dict.get(body + name) for name in ("conv1.weight", "layer1.0.conv1.weight", "layer1.0.conv2.weight")
    )
    if stem is None or first is None or second is None:
        return None
    is_plain = tuple(stem.shape[2:]) == (7, 7) and first.shape[0] == second.shape[1] == 64
    depths = tuple(_count(state_dict, f"{body}layer{stage}.") for stage in range(1, 5))
    return RESNETS.get((depths, f"{body}layer1.0.conv3.weight" in state_dict)) if is_plain else None


def _shape(state_dict: Mapping[str, Tensor], name: str) -> torch.Size:
    if name not in state_dict:
        raise ValueError(f"The checkpoint has no `{name}` (by our names): it is incomplete.")
    return state_dict[name].shape


def _count(state_dict: Mapping[str, Tensor], prefix: str) -> int:
    """Counts the different numbers that follow the prefix."""
    return len({name[len(prefix) :].split(".")[0] for name in state_dict if name.startswith(prefix)})


def stuff_labels(model_config: Mapping[str, Any]) -> list[int]:
    """Returns the stuff labels that a config states, or those of COCO if the labels are its panoptic category ids."""
    if model_config.get("stuff_label_ids"):
        return list(model_config["stuff_label_ids"])
    if len(model_config.get("id2label", ())) != COCO_PANOPTIC_LABELS:
        return []
    return [COCO_PANOPTIC.category_ids[label] for label in COCO_PANOPTIC.stuff_label_ids]
