"""Configuration of DETR for panoptic segmentation: what is saved with the weights."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import field, fields
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME, logging

logger = logging.get_logger(__name__)

SIZES = ("num_channels", "hidden_size", "encoder_layers", "decoder_layers", "num_heads", "ffn_dim", "num_queries")
SAVED_BESIDES = ("auto_map", "custom_pipelines", "torch_dtype", "attn_implementation", "experts_implementation")
LABEL_FIELDS = ("num_labels", "id2label", "label2id", "stuff_label_ids", "category_ids")


@strict
class DetrPanopticConfig(PreTrainedConfig):
    """Architecture, loss and labels of a DETR panoptic model.

    Sizes default to DETR-R50 (arXiv 2005.12872, section 4). Names follow transformers' `DetrConfig`.

    Args:
        backbone: a timm model with maps of strides 4, 8, 16 and 32, or a vision transformer (ViT, DINOv2, DINOv3).
        use_pretrained_backbone: whether a model built from scratch gets timm's weights. Loading never downloads them.
        dilation: DC5: the last stage keeps stride 16 and dilates its convolutions instead.
        num_channels: channels of the images.
        hidden_size: D; a multiple of `num_heads` and of 16.
        encoder_layers, decoder_layers: numbers of layers; the decoder's is L.
        num_heads: M, the number of heads of every attention layer, and of attention maps per object.
        ffn_dim: width of the feed-forward networks.
        dropout: probability in the transformer, attention weights included (as in the reference).
        num_queries: Q, the maximum number of objects in an image.
        is_encoder_decoder: always True, as for transformers' DETR.
        auxiliary_loss: sum the losses of every decoder layer. It does not change predictions.
        class_cost, bbox_cost, giou_cost: weights of class probability, L1 distance and GIoU of boxes in the matching.
        ce_loss_coefficient, bbox_loss_coefficient, giou_loss_coefficient: weights of the losses of classes and boxes.
        mask_loss_coefficient, dice_loss_coefficient: weights of the focal and the Dice loss of masks.
        eos_coefficient: weight of the "no object" class in the classification loss.
        mask_loss_resolution: "image" compares masks pixel by pixel, as the reference does; "mask" at their own stride
            of 4, a different loss that takes less memory and time.
        mask_queries: which queries get a mask in inference: "kept", those whose best class is an object; a number k,
            the k most confident ones (a static shape, for compilation and export); or "all".
        threshold: confidence below which post-processing drops a query; 0.85 in the paper's evaluation.
        stuff_label_ids: labels that are stuff, of which an image has at most one segment each.
        category_ids: the dataset's category id of each label; None if ids and labels are equal.

    Examples:
        >>> from detr_panoptic import DetrPanopticConfig
        >>> config = DetrPanopticConfig(id2label={0: "person", 1: "sky"}, stuff_label_ids=[1])
        >>> config.num_labels
        2
    """

    model_type = "detr_panoptic"
    attribute_map = {  # noqa: RUF012  read by PreTrainedConfig, never written
        **dict.fromkeys(("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads"), "num_heads"),
        **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), "ffn_dim"),
        "d_model": "hidden_size",
        "num_hidden_layers": "encoder_layers",
    }
    # What transformers' Trainer does not gather in evaluation. It gathers classes, boxes, masks and their sizes.
    keys_to_ignore_at_inference = [  # noqa: RUF012  Trainer adds a list to it
        *("loss_dict", "auxiliary_outputs", "last_hidden_state", "encoder_last_hidden_state", "projected"),
    ]

    backbone: str = "resnet50"
    use_pretrained_backbone: bool = False
    dilation: bool = False
    num_channels: int = 3

    hidden_size: int = 256
    encoder_layers: int = 6
    decoder_layers: int = 6
    num_heads: int = 8
    ffn_dim: int = 2048
    dropout: float | int = 0.1
    num_queries: int = 100
    is_encoder_decoder: bool = True

    auxiliary_loss: bool = True
    class_cost: float | int = 1
    bbox_cost: float | int = 5
    giou_cost: float | int = 2
    ce_loss_coefficient: float | int = 1
    bbox_loss_coefficient: float | int = 5
    giou_loss_coefficient: float | int = 2
    mask_loss_coefficient: float | int = 1
    dice_loss_coefficient: float | int = 1
    eos_coefficient: float | int = 0.1
    mask_loss_resolution: str = "image"

    mask_queries: str | int = "kept"
    threshold: float | int = 0.85
    stuff_label_ids: list[int] = field(default_factory=list)
    category_ids: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Raises ValueError for wrong labels or a misspelled field, and warns about fields that have no effect."""
        if unknown := ", ".join(_unknown_fields(kwargs)):
            logger.warning_once(f"These are not fields of DetrPanopticConfig and have no effect: {unknown}.")
        if self.id2label is None and self.label2id:
            self.id2label = {int(label): name for name, label in self.label2id.items()}
        _check_names(self.id2label, kwargs.get("num_labels"))
        self.label2id = {name: int(label) for label, name in self.id2label.items()} if self.id2label else None
        if not __name__.startswith(TRANSFORMERS_DYNAMIC_MODULE_NAME):
            kwargs.pop("custom_pipelines", None)  # registered by the package; here it would need `trust_remote_code`
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Builds a configuration from fields. `replace_labels` handles labels among the keyword arguments."""
        _unknown_fields(kwargs)
        labels = {name: kwargs.pop(name) for name in LABEL_FIELDS if name in kwargs}
        return super().from_dict(replace_labels(config_dict, labels), **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Returns all fields, and the places where the Auto classes and `pipeline` find the saved code."""
        return super().to_dict() | hub_code()

    def validate_sizes(self) -> None:
        """Checks sizes, whether the heads divide the hidden size, `mask_queries` and `mask_loss_resolution`."""
        for name in (*SIZES, "num_labels"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for divisor, reason in ((self.num_heads, "`num_heads`"), (16, "16, the last width of the mask head")):
            if self.hidden_size % divisor:
                raise ValueError(f"`hidden_size` must be a multiple of {reason} ({divisor}), got {self.hidden_size}.")
        check_mask_queries(self.mask_queries, self.num_queries)
        if self.mask_loss_resolution not in ("image", "mask"):
            raise ValueError(f'`mask_loss_resolution` must be "image" or "mask", got {self.mask_loss_resolution!r}.')

    def validate_fractions(self) -> None:
        """Checks that probabilities lie in [0, 1] and that costs and weights are not negative."""
        for name in ("dropout", "threshold", "eos_coefficient"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be between 0 and 1, got {getattr(self, name)}.")
        for name in [f.name for f in fields(self) if f.name.endswith(("_cost", "_coefficient"))]:
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"`{name}` must be a non-negative number, got {getattr(self, name)}.")

    def validate_labels(self) -> None:
        """Checks that stuff and category ids agree with the number of labels."""
        count = len(self.id2label or {})
        if wrong := [label for label in self.stuff_label_ids if not 0 <= label < count]:
            raise ValueError(f"`stuff_label_ids` must be labels from 0 to {count - 1}, got {wrong}.")
        found = count if self.category_ids is None else len(self.category_ids)
        if found != count:
            raise ValueError(f"`category_ids` must name the category of each of the {count} labels, got {found} ids.")

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weight of each loss term of a decoder layer and of its masks."""
        names = ("ce", "bbox", "giou", "mask", "dice")
        return {f"loss_{name}": getattr(self, f"{name}_loss_coefficient") for name in names}


def replace_labels(config_dict: Mapping[str, Any], labels: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a configuration's fields with other labels: those of `LABEL_FIELDS` that `labels` has.

    Stuff and category ids follow the names that old and new labels share, case aside; a new name is a thing, and
    category ids are dropped if there is one. A warning says what changed.
    """
    if labels.get("id2label") is None and labels.get("label2id"):
        labels = {**labels, "id2label": {int(label): name for name, label in labels["label2id"].items()}}
    _check_names(labels.get("id2label"), labels.get("num_labels"))
    old = _folded_names(config_dict)
    result = {name: value for name, value in config_dict.items() if name not in ("num_labels", "label2id")}
    if labels.get("num_labels", len(old)) != len(old):
        result.pop("id2label", None)
    result |= labels
    new = _folded_names(result)
    if not labels or new == old:
        return result if labels else dict(config_dict)
    stuff = {old[label] for label in config_dict.get("stuff_label_ids") or () if label in old}
    ids = {old.get(label): category for label, category in enumerate(config_dict.get("category_ids") or ())}
    followed = {
        "stuff_label_ids": [label for label, name in new.items() if name in stuff],
        "category_ids": [ids[name] for name in new.values()] if new and ids.keys() >= set(new.values()) else None,
    }
    for field_name, value in followed.items():
        if config_dict.get(field_name) and field_name not in labels:
            result[field_name] = value
            logger.warning(f"The labels are new: `{field_name}` is now {value}. Pass `{field_name}` to choose others.")
    return result


def _unknown_fields(names: Iterable[str]) -> list[str]:
    """Returns the names that no configuration has; raises ValueError for one that looks like a field."""
    fields_of = DetrPanopticConfig.__dataclass_fields__
    known = {*fields_of, *DetrPanopticConfig.attribute_map, *dir(PreTrainedConfig), *SAVED_BESIDES}
    unknown = [name for name in names if name not in known and not name.startswith("_")]
    for name in unknown:
        if close := difflib.get_close_matches(name, [*fields_of, *LABEL_FIELDS], n=1, cutoff=0.85):
            raise ValueError(f"`{name}` is not a field of DetrPanopticConfig; did you mean `{close[0]}`?")
    return unknown


def _check_names(id2label: Any, num_labels: int | None) -> None:
    """Raises ValueError unless `id2label`, if given, names the labels from 0, as many as `num_labels` says."""
    keys = set(map(str, id2label)) if isinstance(id2label, Mapping) else {""}
    if id2label is not None and keys != set(map(str, range(len(keys)))):
        raise ValueError(f"`id2label` must map the numbers 0, 1, 2 … to names, got {str(id2label)[:80]}.")
    if id2label is not None and num_labels not in (None, len(keys)):
        raise ValueError(f"`num_labels` must be the number of names in `id2label`, {len(keys)}, got {num_labels}.")


def _folded_names(config_dict: Mapping[str, Any]) -> dict[int, str]:
    return {int(label): str(name).casefold() for label, name in (config_dict.get("id2label") or {}).items()}


def hub_code() -> dict[str, Any]:
    """Returns the classes of the code in a Hub repository, for config.json."""
    model = "modeling_detr_panoptic.DetrPanopticForSegmentation"
    pipeline = "pipeline_detr_panoptic.DetrPanopticImageSegmentationPipeline"
    task = {"impl": pipeline, "pt": ["AutoModelForImageSegmentation"], "type": "image"}
    return {
        "auto_map": {
            "AutoConfig": "configuration_detr_panoptic.DetrPanopticConfig",
            "AutoModel": "modeling_detr_panoptic.DetrPanopticModel",
            "AutoModelForImageSegmentation": model,
            "AutoModelForUniversalSegmentation": model,
        },
        "custom_pipelines": {"image-segmentation": task},
    }


def check_mask_queries(mask_queries: str | int, num_queries: int) -> None:
    """Raises ValueError unless `mask_queries` is "kept", "all" or a number from 0 to `num_queries`."""
    is_count = isinstance(mask_queries, int) and 0 <= mask_queries <= num_queries
    if not is_count and mask_queries not in ("kept", "all"):
        raise ValueError(
            f'`mask_queries` must be "kept", "all" or a number from 0 to {num_queries}, got {mask_queries!r}.'
        )


__all__ = ["DetrPanopticConfig"]
