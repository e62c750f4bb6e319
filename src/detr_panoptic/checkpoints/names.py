"""Renames the weights of other DETR implementations: one table per source, in which every name must match."""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

StateDict = dict[str, Tensor]
#: One line of a rename table: a pattern for the whole name, and our names for its tensor. Without a name the tensor is
#: dropped; with three it is split into thirds along its first axis.
Rule = tuple[str, tuple[str, ...]]

MASK_PREFIXES = ("mask_head.", "mask_attention.")  # our names; a detection-only model lacks them

_LEAF = r"\.(weight|bias)"
_MASK_HEAD = {
    **{f"lay{i + 1}": f"blocks.{i}.conv" for i in range(2)},
    **{f"gn{i + 1}": f"blocks.{i}.norm" for i in range(2)},
    **{f"adapter{i + 1}": f"stages.{i}.adapter" for i in range(3)},
    **{f"lay{i + 3}": f"stages.{i}.conv" for i in range(3)},
    **{f"gn{i + 3}": f"stages.{i}.norm" for i in range(3)},
    "out_lay": "predictor",
}
_MASK_RULES: tuple[Rule, ...] = (
    (rf"bbox_attention\.([qk])_(?:linear|proj){_LEAF}", (r"mask_attention.\1_proj.\2",)),
    *((rf"mask_head\.{source}{_LEAF}", (rf"mask_head.{ours}.\1",)) for source, ours in _MASK_HEAD.items()),
)

REFERENCE: tuple[Rule, ...] = (
    *_MASK_RULES,
    # A panoptic model holds its detector as `detr`, a detection-only file is the detector itself.
    *(
        (r"(?:detr\.)?" + source, ours)
        for source, ours in (
            (r"backbone\.0\.body\..+\.num_batches_tracked", ()),
            (r"backbone\.0\.body\.(.+)", (r"model.backbone.body.\1",)),
            (rf"input_proj{_LEAF}", (r"model.input_projection.\1",)),
            (r"query_embed\.weight", ("model.query_embeddings.weight",)),
            (
                r"transformer\.(encoder|decoder)\.layers\.(\d+)\.self_attn\.in_proj_(weight|bias)",
                tuple(rf"model.\1.layers.\2.self_attn.{letter}_proj.\3" for letter in "qkv"),
            ),
            (
                r"transformer\.decoder\.layers\.(\d+)\.multihead_attn\.in_proj_(weight|bias)",
                tuple(rf"model.decoder.layers.\1.cross_attn.{letter}_proj.\2" for letter in "qkv"),
            ),
            (
                rf"transformer\.decoder\.layers\.(\d+)\.multihead_attn\.out_proj{_LEAF}",
                (r"model.decoder.layers.\1.cross_attn.out_proj.\2",),
            ),
            (
                rf"transformer\.(encoder|decoder)\.layers\.(\d+)\.(self_attn\.out_proj|linear\d|norm\d){_LEAF}",
                (r"model.\1.layers.\2.\3.\4",),
            ),
            (rf"transformer\.decoder\.norm{_LEAF}", (r"model.decoder.norm.\1",)),
            (rf"class_embed{_LEAF}", (r"class_head.\1",)),
            (rf"bbox_embed\.layers\.(\d){_LEAF}", (r"box_head.layers.\1.\2",)),
        )
    ),
)

#: Names inside transformers 5 that differ from those in its files, which keep the names of version 4. A state dict
#: saved by hand has them.
_TRANSFORMERS_5_MASK_HEAD = {
    **{f"conv{i + 1}": f"blocks.{i}" for i in range(2)},
    **{f"fpn_stages.{i}.refine": f"stages.{i}" for i in range(3)},
}
_HF_BODY = r"(?:detr\.)?model\.backbone\.(?:conv_encoder\.)?model\."
_HF_LAYER = r"(?:detr\.)?model\.(encoder|decoder)\.layers\.(\d+)\."
_HF_NORMS = {
    "encoder": {"self_attn_layer_norm": "norm1", "final_layer_norm": "norm2"},
    "decoder": {"self_attn_layer_norm": "norm1", "encoder_attn_layer_norm": "norm2", "final_layer_norm": "norm3"},
}

TRANSFORMERS: tuple[Rule, ...] = (
    *_MASK_RULES,
    *(
        (rf"mask_head\.{source}\.(conv|norm){_LEAF}", (rf"mask_head.{ours}.\1.\2",))
        for source, ours in _TRANSFORMERS_5_MASK_HEAD.items()
    ),
    (rf"mask_head\.fpn_stages\.(\d)\.fpn_adapter{_LEAF}", (r"mask_head.stages.\1.adapter.\2",)),
    (rf"mask_head\.output_conv{_LEAF}", (r"mask_head.predictor.\1",)),
    (_HF_BODY + r".+\.num_batches_tracked", ()),
    # transformers' own ResNet, by the names of torchvision and timm
    (_HF_BODY + r"embedder\.embedder\.convolution\.weight", ("model.backbone.body.conv1.weight",)),
    (_HF_BODY + r"embedder\.embedder\.normalization\.(\w+)", (r"model.backbone.body.bn1.\1",)),
    *(
        (
            _HF_BODY + rf"encoder\.stages\.{stage}\.layers\.(\d+)\.{source}\.(\w+)",
            (rf"model.backbone.body.layer{stage + 1}.\1.{ours}.\2",),
        )
        for stage in range(4)
        for source, ours in (
            (r"shortcut\.convolution", "downsample.0"),
            (r"shortcut\.normalization", "downsample.1"),
            *((rf"layer\.{i}\.convolution", f"conv{i + 1}") for i in range(3)),
            *((rf"layer\.{i}\.normalization", f"bn{i + 1}") for i in range(3)),
        )
    ),
    (_HF_BODY + r"(.+)", (r"model.backbone.body.\1",)),
    (rf"(?:detr\.)?model\.input_projection{_LEAF}", (r"model.input_projection.\1",)),
    (r"(?:detr\.)?model\.query_position_embeddings\.weight", ("model.query_embeddings.weight",)),
    (_HF_LAYER + rf"self_attn\.([qkv]_proj){_LEAF}", (r"model.\1.layers.\2.self_attn.\3.\4",)),
    (_HF_LAYER + rf"self_attn\.(?:out|o)_proj{_LEAF}", (r"model.\1.layers.\2.self_attn.out_proj.\3",)),
    (_HF_LAYER + rf"encoder_attn\.([qkv]_proj){_LEAF}", (r"model.\1.layers.\2.cross_attn.\3.\4",)),
    (_HF_LAYER + rf"encoder_attn\.(?:out|o)_proj{_LEAF}", (r"model.\1.layers.\2.cross_attn.out_proj.\3",)),
    (_HF_LAYER + rf"(?:mlp\.)?fc(\d){_LEAF}", (r"model.\1.layers.\2.linear\3.\4",)),
    *(
        (rf"(?:detr\.)?model\.{half}\.layers\.(\d+)\.{source}{_LEAF}", (rf"model.{half}.layers.\1.{ours}.\2",))
        for half, norms in _HF_NORMS.items()
        for source, ours in norms.items()
    ),
    (rf"(?:detr\.)?model\.decoder\.layernorm{_LEAF}", (r"model.decoder.norm.\1",)),
    (rf"(?:detr\.)?class_labels_classifier{_LEAF}", (r"class_head.\1",)),
    (rf"(?:detr\.)?bbox_predictor\.layers\.(\d){_LEAF}", (r"box_head.layers.\1.\2",)),
)

#: A name that occurs in this source only, and its table.
SOURCES = {"class_embed.weight": REFERENCE, "class_labels_classifier.weight": TRANSFORMERS}


def rename(state_dict: Mapping[str, Tensor], table: Iterable[Rule]) -> StateDict:
    """Renames a foreign state dict, each name by the first rule of the table that matches all of it.

    Raises:
        ValueError: no rule matches a name, or two names become one.
    """
    rules = [(re.compile(pattern), templates) for pattern, templates in table]
    ours: StateDict = {}
    unknown = []
    for name, tensor in state_dict.items():
        found = next(((match, to) for pattern, to in rules if (match := pattern.fullmatch(name))), None)
        if found is None:
            unknown.append(name)
            continue
        match, templates = found
        for target, part in _parts([match.expand(template) for template in templates], tensor):
            if target in ours:
                raise ValueError(f"Two names of the checkpoint mean `{target}`; one of them is `{name}`.")
            ours[target] = part
    if unknown:
        raise ValueError(f"The checkpoint has names that a DETR model does not have: {_listed(unknown)}.")
    return ours


def check_names(ours: Iterable[str], expected: Iterable[str]) -> None:
    """Raises a ValueError that lists missing and left over names, unless both hold the same ones."""
    have, want = set(ours), set(expected)
    complaints = [
        f"{what}: {_listed(names)}" for what, names in (("missing", want - have), ("left over", have - want)) if names
    ]
    if complaints:
        raise ValueError(f"The checkpoint does not fit the model; {'; '.join(complaints)}.")


def table_of(state_dict: Mapping[str, Tensor]) -> tuple[Rule, ...]:
    """Returns the rename table of the source that a foreign state dict comes from.

    Raises:
        ValueError: the source is not known.
    """
    for key, table in SOURCES.items():
        if key in state_dict or f"detr.{key}" in state_dict:
            return table
    raise ValueError(
        f"The checkpoint is neither the reference's nor transformers' DETR: it has none of {_listed(SOURCES)}."
    )


def _parts(targets: list[str], tensor: Tensor) -> Iterable[tuple[str, Tensor]]:
    """Yields each name with its part of the tensor, split along the first axis."""
    if len(targets) <= 1:
        return ((target, tensor) for target in targets)
    # Cloned: views of one storage cannot be saved as safetensors.
    return ((target, part.clone()) for target, part in zip(targets, tensor.chunk(len(targets)), strict=True))


def _listed(names: Iterable[str], *, limit: int = 20) -> str:
    names = sorted(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
