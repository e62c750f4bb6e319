"""Renames the weights of other DETR implementations: one table per source, in which every name must match."""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from ..data.plain_text import listing

StateDict = dict[str, Tensor]
#: A pattern for a whole name without the leading "detr.", and our name. A name with `{}` means three: the tensor is
#: split along its first axis into the weights of queries, keys and values.
Rule = tuple[str, str]

MASK_PREFIXES = ("mask_head.", "mask_attention.")  # our names; a detection-only model lacks them

_LEAF = r"\.(weight|bias)"
_BODY = r"model.backbone.body."
_LAYER = r"model.\1.layers.\2."
_MASK_HEAD = {
    **{f"lay{i + 1}": f"blocks.{i}.conv" for i in range(2)},
    **{f"gn{i + 1}": f"blocks.{i}.norm" for i in range(2)},
    **{f"adapter{i + 1}": f"stages.{i}.adapter" for i in range(3)},
    **{f"lay{i + 3}": f"stages.{i}.conv" for i in range(3)},
    **{f"gn{i + 3}": f"stages.{i}.norm" for i in range(3)},
    "out_lay": "predictor",
}
_MASK_RULES: tuple[Rule, ...] = (
    (rf"bbox_attention\.([qk])_(?:linear|proj){_LEAF}", r"mask_attention.\1_proj.\2"),
    *((rf"mask_head\.{theirs}{_LEAF}", rf"mask_head.{ours}.\1") for theirs, ours in _MASK_HEAD.items()),
)

_REFERENCE_LAYER = r"transformer\.(encoder|decoder)\.layers\.(\d+)\."
REFERENCE: tuple[Rule, ...] = (
    *_MASK_RULES,
    (r"backbone\.0\.body\.(.+)", _BODY + r"\1"),
    (rf"input_proj{_LEAF}", r"model.input_projection.\1"),
    (r"query_embed\.weight", "model.query_embeddings.weight"),
    (_REFERENCE_LAYER + r"self_attn\.in_proj_(weight|bias)", _LAYER + r"self_attn.{}_proj.\3"),
    (_REFERENCE_LAYER + r"multihead_attn\.in_proj_(weight|bias)", _LAYER + r"cross_attn.{}_proj.\3"),
    (_REFERENCE_LAYER + rf"multihead_attn\.out_proj{_LEAF}", _LAYER + r"cross_attn.out_proj.\3"),
    (_REFERENCE_LAYER + rf"(self_attn\.out_proj|linear\d|norm\d){_LEAF}", _LAYER + r"\3.\4"),
    (rf"transformer\.decoder\.norm{_LEAF}", r"model.decoder.norm.\1"),
    (rf"class_embed{_LEAF}", r"class_head.\1"),
    (rf"bbox_embed\.layers\.(\d){_LEAF}", r"box_head.layers.\1.\2"),
)

#: transformers' own ResNet, by the names of torchvision and timm.
_RESNET = {
    r"shortcut\.convolution": "downsample.0",
    r"shortcut\.normalization": "downsample.1",
    **{rf"layer\.{i}\.convolution": f"conv{i + 1}" for i in range(3)},
    **{rf"layer\.{i}\.normalization": f"bn{i + 1}" for i in range(3)},
}
_HF_BODY = r"model\.backbone\.(?:conv_encoder\.)?model\."
_HF_LAYER = r"model\.(encoder|decoder)\.layers\.(\d+)\."
TRANSFORMERS: tuple[Rule, ...] = (
    *_MASK_RULES,
    # Inside transformers 5, and so in a state dict saved by hand; its files keep the names of version 4.
    *((rf"mask_head\.conv{i + 1}\.(conv|norm){_LEAF}", rf"mask_head.blocks.{i}.\1.\2") for i in range(2)),
    (rf"mask_head\.fpn_stages\.(\d)\.refine\.(conv|norm){_LEAF}", r"mask_head.stages.\1.\2.\3"),
    (rf"mask_head\.fpn_stages\.(\d)\.fpn_adapter{_LEAF}", r"mask_head.stages.\1.adapter.\2"),
    (rf"mask_head\.output_conv{_LEAF}", r"mask_head.predictor.\1"),
    (_HF_BODY + r"embedder\.embedder\.convolution\.(\w+)", _BODY + r"conv1.\1"),
    (_HF_BODY + r"embedder\.embedder\.normalization\.(\w+)", _BODY + r"bn1.\1"),
    *(
        (_HF_BODY + rf"encoder\.stages\.{i}\.layers\.(\d+)\.{theirs}\.(\w+)", _BODY + rf"layer{i + 1}.\1.{ours}.\2")
        for i in range(4)
        for theirs, ours in _RESNET.items()
    ),
    (_HF_BODY + r"(.+)", _BODY + r"\1"),
    (rf"model\.input_projection{_LEAF}", r"model.input_projection.\1"),
    (r"model\.query_position_embeddings\.weight", "model.query_embeddings.weight"),
    (_HF_LAYER + rf"self_attn\.([qkv]_proj){_LEAF}", _LAYER + r"self_attn.\3.\4"),
    (_HF_LAYER + rf"self_attn\.(?:out|o)_proj{_LEAF}", _LAYER + r"self_attn.out_proj.\3"),
    (_HF_LAYER + rf"encoder_attn\.([qkv]_proj){_LEAF}", _LAYER + r"cross_attn.\3.\4"),
    (_HF_LAYER + rf"encoder_attn\.(?:out|o)_proj{_LEAF}", _LAYER + r"cross_attn.out_proj.\3"),
    (_HF_LAYER + rf"(?:mlp\.)?fc(\d){_LEAF}", _LAYER + r"linear\3.\4"),
    (_HF_LAYER + rf"self_attn_layer_norm{_LEAF}", _LAYER + r"norm1.\3"),
    (_HF_LAYER + rf"encoder_attn_layer_norm{_LEAF}", _LAYER + r"norm2.\3"),
    (rf"model\.(encoder)\.layers\.(\d+)\.final_layer_norm{_LEAF}", _LAYER + r"norm2.\3"),
    (rf"model\.(decoder)\.layers\.(\d+)\.final_layer_norm{_LEAF}", _LAYER + r"norm3.\3"),
    (rf"model\.decoder\.layernorm{_LEAF}", r"model.decoder.norm.\1"),
    (rf"class_labels_classifier{_LEAF}", r"class_head.\1"),
    (rf"bbox_predictor\.layers\.(\d){_LEAF}", r"box_head.layers.\1.\2"),
)

#: A name that occurs in this source only, and its table.
SOURCES = {"class_embed.weight": REFERENCE, "class_labels_classifier.weight": TRANSFORMERS}


def rename(state_dict: Mapping[str, Tensor], table: Iterable[Rule]) -> StateDict:
    """Renames a foreign state dict, each name by the first rule of the table that matches all of it.

    Counters of batch norms are left out. Raises ValueError if no rule matches a name, or two names become one.
    """
    rules = [(re.compile(pattern), template) for pattern, template in table]
    ours: StateDict = {}
    unknown = []
    for name, tensor in state_dict.items():
        if name.endswith(".num_batches_tracked"):
            continue
        bare = name.removeprefix("detr.")
        renamed = next((match.expand(to) for pattern, to in rules if (match := pattern.fullmatch(bare))), None)
        if renamed is None:
            unknown.append(name)
            continue
        # Cloned: views of one storage cannot be saved as safetensors.
        parts = [part.clone() for part in tensor.chunk(3)] if "{}" in renamed else [tensor]
        for letter, part in zip("qkv", parts, strict=False):
            target = renamed.replace("{}", letter)
            if target in ours:
                raise ValueError(f"Two names of the checkpoint mean `{target}`; one of them is `{name}`.")
            ours[target] = part
    if unknown:
        raise ValueError(f"The checkpoint has names that a DETR model does not have: {listing(sorted(unknown))}.")
    return ours


def check_names(ours: Iterable[str], expected: Iterable[str]) -> None:
    """Raises a ValueError that lists missing and left over names, unless both hold the same ones."""
    have, want = set(ours), set(expected)
    differences = {"missing": sorted(want - have), "left over": sorted(have - want)}
    complaints = [f"{what}: {listing(names)}" for what, names in differences.items() if names]
    if complaints:
        raise ValueError(f"The checkpoint does not fit the model; {'; '.join(complaints)}.")


def table_of(state_dict: Mapping[str, Tensor]) -> tuple[Rule, ...]:
    """Returns the rename table of a foreign state dict; ValueError if its source is not known."""
    for key, table in SOURCES.items():
        if key in state_dict or f"detr.{key}" in state_dict:
            return table
    raise ValueError(
        f"The checkpoint is neither the reference's nor transformers' DETR: it has none of {listing(SOURCES)}."
    )
