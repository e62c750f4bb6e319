"""DETR for panoptic segmentation as a transformers model.

The network is that of facebookresearch/detr (29901c5; arXiv 2005.12872); every difference has a line in
docs/deviations.md. This file alone knows the configuration: it turns it into arguments of the parts.

Legend: B images, Q queries, K labels, L decoder layers, D hidden size, M heads, T targets, (H, W) the padded canvas,
(h, w) the map of stride 32 (16 with a dilated backbone).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput, logging
from transformers.utils.generic import can_return_tuple

from .backbone import Backbone, resize_mask
from .configuration_detr_panoptic import DetrPanopticConfig, check_mask_queries
from .losses import LossNormalizers, detection_losses, loss_normalizers, mask_losses
from .mask_head import MaskAttention, MaskHead
from .matcher import Matching, match
from .position_encoding import sine_position_encoding
from .transformer import ATTENTION_FUNCTIONS, Attention, Decoder, DecoderLayer, Encoder, EncoderLayer

logger = logging.get_logger(__name__)
ModelType = TypeVar("ModelType", bound="DetrPanopticPreTrainedModel")

SKIPPED_MASK_LOGIT = -1e4
"""Mask logits of queries that the head did not run for: probability 0, finite in half precision, resizable."""


@dataclass
class DetrPanopticModelOutput(ModelOutput):
    """What the detector computes before its heads.

    Args:
        last_hidden_state: (B, Q, D) object embeddings.
        intermediate_hidden_states: (L, B, Q, D) queries after each decoder layer and the shared norm; [-1] is
            `last_hidden_state`.
        encoder_last_hidden_state: (B, h*w, D) encoded image.
        projected: (B, D, h, w) projected map of the last stage.
        feature_maps: the backbone's maps of strides 4, 8, 16 and 32.
        feature_mask: (B, h, w) bool, True on the image.
        decoder_attentions: on request, L tensors (B, M, Q, Q).
        cross_attentions: on request, L tensors (B, M, Q, h*w).
        encoder_hidden_states: on request, 1 + layers tensors (B, h*w, D).
        encoder_attentions: on request, tensors (B, M, h*w, h*w).
    """

    last_hidden_state: Tensor | None = None
    intermediate_hidden_states: Tensor | None = None
    encoder_last_hidden_state: Tensor | None = None
    projected: Tensor | None = None
    feature_maps: tuple[Tensor, ...] | None = None
    feature_mask: Tensor | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None


@dataclass
class DetrPanopticSegmentationOutput(ModelOutput):
    """Predictions, and losses where labels were given.

    Args:
        loss: weighted sum of `loss_dict`.
        loss_dict: `loss_ce`, `loss_bbox`, `loss_giou`, `loss_mask`, `loss_dice`, and the first three with `_0 ...
            _{L-2}` for the auxiliary layers.
        logits: (B, Q, K+1), the last class is "no object".
        pred_boxes: (B, Q, 4) cxcywh in [0, 1] of the unpadded image.
        pred_masks: (B, Q, H/4, W/4) logits over the padded canvas; -1e4 where the head did not run for a query.
        image_sizes: (B, 2) height and width of each image without its padding.
        canvas_sizes: (B, 2) height and width of the padded canvas, the same in every row.
        auxiliary_outputs: with labels, `logits` and `pred_boxes` of each decoder layer but the last.
        last_hidden_state: (B, Q, D) object embeddings.
        encoder_last_hidden_state: (B, h*w, D) encoded image.
        decoder_hidden_states: on request, L tensors (B, Q, D), after the shared norm.
        decoder_attentions: on request, L tensors (B, M, Q, Q).
        cross_attentions: on request, L tensors (B, M, Q, h*w).
        encoder_hidden_states: on request, 1 + layers tensors (B, h*w, D).
        encoder_attentions: on request, tensors (B, M, h*w, h*w).
        mask_attentions: on request, with attentions, (B, Q, M, h, w) where each object looks.
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    pred_boxes: Tensor | None = None
    pred_masks: Tensor | None = None
    image_sizes: Tensor | None = None
    canvas_sizes: Tensor | None = None
    auxiliary_outputs: list[dict[str, Tensor]] | None = None
    last_hidden_state: Tensor | None = None
    encoder_last_hidden_state: Tensor | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None
    mask_attentions: Tensor | None = None


class DetrPanopticPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialization."""

    config_class = DetrPanopticConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = {"Backbone", "EncoderLayer", "DecoderLayer", "MaskAttention", "MaskHead"}  # noqa: RUF012

    if TYPE_CHECKING:  # transformers leaves these without types, or with ones that its users cannot live with
        config: Any  # a DetrPanopticConfig; in transformers' type the names of labels may be None

        def eval(self: ModelType) -> ModelType: ...  # noqa: D102
        def train(self: ModelType, mode: bool = True) -> ModelType: ...  # noqa: D102
        def to(self: ModelType, *args: Any, **kwargs: Any) -> ModelType: ...  # type: ignore[override]  # noqa: D102

    def get_input_embeddings(self) -> None:  # type: ignore[override]  # there, a module
        """None: there are no tokens. What asks, as Accelerate does before it shards a model, need not fail."""

    foreign_readers: ClassVar[list[Callable[..., Any]]] = []
    """Readers of other projects' checkpoints, which `from_pretrained` tries first; empty in code loaded from the Hub.

    Each is called as `reader(cls, source, **hub_arguments)`. It returns None if the source is not in its format;
    otherwise the arguments of `DetrPanopticConfig`, a state dict for `cls`, and notes for the log.
    """

    @classmethod
    def from_pretrained(
        cls: type[ModelType], pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any
    ) -> ModelType:
        """Loads a checkpoint.

        Takes the arguments of `PreTrainedModel.from_pretrained`. With the package installed, it also loads
        transformers' own DETR checkpoints; a checkpoint for detection only gets a new mask head.

        Raises:
            ValueError: a foreign checkpoint has parameters that this model lacks, or lacks some.
        """
        is_named = pretrained_model_name_or_path is not None and "state_dict" not in kwargs
        for reader in cls.foreign_readers if is_named else ():
            foreign = reader(cls, pretrained_model_name_or_path, **_hub_arguments(kwargs))
            if foreign is not None:
                config_fields, state_dict, notes = foreign
                for note in notes:
                    logger.warning(note)
                config_fields |= {name: kwargs.pop(name) for name in list(kwargs) if name in _config_fields()}
                kwargs |= {"config": DetrPanopticConfig(**config_fields), "state_dict": state_dict}
                return cls.from_pretrained(None, *args, **kwargs)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        for module in (loaded[0] if isinstance(loaded, tuple) else loaded).modules():
            if isinstance(module, Backbone):
                module.freeze_stem()  # parameters from a checkpoint come back with gradients
        return loaded

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: transformers then lets modules without parameters of their own initialize their children.

        What it guards custom code against, drawing loaded weights anew, `transformers.initialization` guards here.
        """
        return False

    def _init_weights(self, module: nn.Module) -> None:
        """Initializes one module as the reference does; children come before their parents."""
        if isinstance(module, (Attention, MaskAttention)):
            for name in [name for name, _ in module.named_children()]:
                linear: nn.Linear = getattr(module, name)
                # The reference draws the packed (3D, D) projection at once, which narrows q, k and v.
                packed = isinstance(module, Attention) and name != "out_proj"
                init.xavier_uniform_(linear.weight, gain=0.5**0.5 if packed else 1.0)
                init.zeros_(linear.bias)
        elif isinstance(module, (EncoderLayer, DecoderLayer)):
            init.xavier_uniform_(module.linear1.weight)
            init.xavier_uniform_(module.linear2.weight)
        elif isinstance(module, MaskHead):
            for conv in [m for m in module.modules() if isinstance(m, nn.Conv2d)]:
                init.kaiming_uniform_(conv.weight, a=1)
                if conv.bias is not None:
                    init.zeros_(conv.bias)
        elif isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding, nn.LayerNorm, nn.GroupNorm)):
            module.reset_parameters()  # PyTorch's own; transformers spares what was loaded


class DetrPanopticModel(DetrPanopticPreTrainedModel):
    """Backbone and transformer: images to object embeddings."""

    def __init__(self, config: DetrPanopticConfig) -> None:
        super().__init__(config)
        transformer: dict[str, Any] = {
            "hidden_size": config.hidden_size,
            "num_heads": config.num_heads,
            "ffn_dim": config.ffn_dim,
            "dropout": config.dropout,
        }
        self.backbone = Backbone(
            config.backbone,
            dilation=config.dilation,
            num_channels=config.num_channels,
            # On the meta device a checkpoint is being loaded, and the backbone's weights are in it.
            pretrained=config.use_pretrained_backbone and not torch.empty(0).is_meta,
        )
        self.input_projection = nn.Conv2d(self.backbone.channels[-1], config.hidden_size, 1)
        self.query_embeddings = nn.Embedding(config.num_queries, config.hidden_size)
        self.encoder = Encoder(config.encoder_layers, **transformer)
        self.decoder = Decoder(config.decoder_layers, **transformer)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> DetrPanopticModelOutput:
        """Computes the object embeddings of a batch.

        Args:
            pixel_values: (B, 3, H, W) normalized images.
            pixel_mask: (B, H, W), 1 on the image, 0 on padding; None without padding.
            output_attentions: also return the attention weights; the result stays the same to the bit.
            output_hidden_states: also return the states between the layers of the encoder.

        Raises:
            ValueError: the shapes are not those.
        """
        _check_images(pixel_values, pixel_mask, num_channels=self.config.num_channels)
        with_weights = self.config.output_attentions if output_attentions is None else output_attentions
        with_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        attention = ATTENTION_FUNCTIONS[self.config._attn_implementation]

        feature_maps = self.backbone(pixel_values)
        projected = self.input_projection(feature_maps[-1])
        batch, size = projected.shape[0], projected.shape[-2:]
        if pixel_mask is None:
            mask = None
            feature_mask = torch.ones((batch, *size), dtype=torch.bool, device=projected.device)
        else:
            feature_mask = resize_mask(pixel_mask.bool(), size)
            mask = feature_mask.flatten(1)[:, None, None]
        position = sine_position_encoding(feature_mask, self.config.hidden_size).to(projected.dtype)
        position = position.flatten(2).transpose(1, 2)  # (B, h*w, D)

        encoder_states, encoder_attentions = self.encoder(
            projected.flatten(2).transpose(1, 2), position, mask, attention=attention, with_weights=with_weights
        )
        queries = self.query_embeddings.weight.expand(batch, -1, -1)
        decoder_states, decoder_attentions, cross_attentions = self.decoder(
            queries, encoder_states[-1], position, mask, attention=attention, with_weights=with_weights
        )
        return DetrPanopticModelOutput(
            last_hidden_state=decoder_states[-1],
            intermediate_hidden_states=decoder_states,
            encoder_last_hidden_state=encoder_states[-1],
            projected=projected,
            feature_maps=tuple(feature_maps),
            feature_mask=feature_mask,
            decoder_attentions=tuple(decoder_attentions) if with_weights else None,
            cross_attentions=tuple(cross_attentions) if with_weights else None,
            encoder_hidden_states=tuple(encoder_states) if with_states else None,
            encoder_attentions=tuple(encoder_attentions) if with_weights else None,
        )


class BoxHead(nn.Module):
    """Three linear layers from object embeddings to boxes."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(hidden_size, size) for size in (hidden_size, hidden_size, 4))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., 4) cxcywh in [0, 1]."""
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x).sigmoid()


class DetrPanopticForSegmentation(DetrPanopticPreTrainedModel):
    """DETR with class, box and mask heads: images to panoptic predictions, and to losses where there are labels."""

    def __init__(self, config: DetrPanopticConfig) -> None:
        super().__init__(config)
        self.model = DetrPanopticModel(config)
        self.class_head = nn.Linear(config.hidden_size, len(config.id2label or {}) + 1)
        self.box_head = BoxHead(config.hidden_size)
        self.mask_attention = MaskAttention(config.hidden_size, config.num_heads)
        self.mask_head = MaskHead(config.hidden_size, config.num_heads, self.model.backbone.channels[-2::-1])
        # Further losses, if the training code puts a module here: it adds terms and changes no prediction.
        self.training_aids: Any = None
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        labels: Sequence[dict[str, Any]] | None = None,
        *,
        mask_queries: str | int | None = None,
        normalizers: LossNormalizers | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> DetrPanopticSegmentationOutput:
        """Segments a batch.

        Args:
            pixel_values: (B, 3, H, W) normalized images.
            pixel_mask: (B, H, W), 1 on the image, 0 on padding; None without padding.
            labels: B targets {`class_labels` (T,), `boxes` (T, 4) cxcywh in [0, 1] of the unpadded image, `masks`
                (T, H_i, W_i)}. Without `masks` there are no mask losses.
            mask_queries: which queries get masks, see `DetrPanopticConfig`; None: the matched ones in training, the
                configuration's otherwise. Matched queries always get theirs where there are labels.
            normalizers: what the losses are divided by; None: computed from this batch.
            output_attentions: also return the attention weights and maps; predictions stay the same to the bit.
            output_hidden_states: also return the states between the layers.

        Raises:
            ValueError: an argument has the wrong shape or value, or a target a class that does not exist.
        """
        if mask_queries is not None:
            check_mask_queries(mask_queries, self.config.num_queries)
        features = self.model(
            pixel_values, pixel_mask, output_attentions=output_attentions, output_hidden_states=output_hidden_states
        )
        states = features.intermediate_hidden_states
        # The last layer's heads run on their own, so that auxiliary losses cannot move a bit of the predictions.
        logits, boxes = self._detect(states[-1])
        matched = None
        if labels is not None:
            _check_labels(labels, batch=len(logits), num_labels=self.class_head.out_features - 1)
            matched = self._match(labels, states[:-1], logits, boxes)

        attention_maps = self.attend(features, pixel_mask)
        rows = self._mask_rows(logits, mask_queries, matched)
        masks = self._segment(features, attention_maps, rows)
        sizes = _image_sizes(pixel_values, pixel_mask)
        loss_dict = None
        if matched is not None:
            canvas_size = (pixel_values.shape[-2], pixel_values.shape[-1])
            normalizers = normalizers or self._normalizers(matched.labels, logits.device)
            loss_dict = self._losses(matched, masks, rows, canvas_size, sizes, normalizers)
            if self.training and self.training_aids is not None and matched.has_masks:
                loss_dict |= self.training_aids(
                    features, matched.labels, canvas_size=canvas_size, num_targets=normalizers.num_targets
                )
        return DetrPanopticSegmentationOutput(
            loss=None if loss_dict is None else self._weighted_sum(loss_dict),
            loss_dict=loss_dict,
            logits=logits,
            pred_boxes=boxes,
            pred_masks=_spread_rows(masks, rows, logits.shape[:2]),
            image_sizes=sizes,
            canvas_sizes=torch.tensor(pixel_values.shape[-2:], device=logits.device).expand(logits.shape[0], 2),
            auxiliary_outputs=None if matched is None else matched.auxiliary_outputs(),
            last_hidden_state=features.last_hidden_state,
            encoder_last_hidden_state=features.encoder_last_hidden_state,
            decoder_hidden_states=None if features.encoder_hidden_states is None else tuple(states),
            decoder_attentions=features.decoder_attentions,
            cross_attentions=features.cross_attentions,
            encoder_hidden_states=features.encoder_hidden_states,
            encoder_attentions=features.encoder_attentions,
            mask_attentions=None if features.cross_attentions is None else attention_maps,
        )

    def attend(self, features: Any, pixel_mask: Tensor | None) -> Tensor:
        """Where each object looks: the model's output to attention maps (B, Q, M, h, w)."""
        return self.mask_attention(
            features.last_hidden_state,
            features.encoder_last_hidden_state.unflatten(1, features.projected.shape[-2:]),
            None if pixel_mask is None else features.feature_mask,
        )

    def _detect(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Object embeddings (..., D) to logits (..., K+1) and boxes (..., 4)."""
        return self.class_head(embeddings), self.box_head(embeddings)

    def _match(
        self, labels: Sequence[dict[str, Any]], states: Tensor, logits: Tensor, boxes: Tensor
    ) -> "MatchedPredictions":
        """Matches the layers that the loss uses, given the other layers' states and the last one's predictions."""
        all_logits, all_boxes = logits[None], boxes[None]
        if self.config.auxiliary_loss and len(states):
            other_logits, other_boxes = self._detect(states)
            all_logits, all_boxes = torch.cat((other_logits, all_logits)), torch.cat((other_boxes, all_boxes))
        costs = {name: getattr(self.config, name) for name in ("class_cost", "bbox_cost", "giou_cost")}
        return MatchedPredictions(labels, all_logits, all_boxes, match(all_logits, all_boxes, labels, **costs))

    def _mask_rows(
        self, logits: Tensor, mask_queries: str | int | None, matched: "MatchedPredictions | None"
    ) -> Tensor:
        """The rows of the batch's B*Q queries that get masks: (N,) int64, ascending."""
        matched_rows = None
        if matched is not None and matched.has_masks:
            matched_rows = matched.rows(self.config.num_queries).to(logits.device)
            if self.training and mask_queries is None:
                # Without objects one row goes through all the same: every parameter has a gradient on every process.
                return matched_rows if len(matched_rows) else matched_rows.new_zeros(1)
        rows = select_rows(logits, self.config.mask_queries if mask_queries is None else mask_queries)
        return rows if matched_rows is None else torch.cat((rows, matched_rows)).unique()

    def _normalizers(self, labels: Sequence[dict[str, Any]], device: torch.device) -> LossNormalizers:
        return loss_normalizers(
            labels,
            num_queries=self.config.num_queries,
            eos_coefficient=self.config.eos_coefficient,
            device=device,
        )

    def _losses(
        self,
        matched: "MatchedPredictions",
        masks: Tensor,
        rows: Tensor,
        canvas_size: tuple[int, int],
        image_sizes: Tensor,
        normalizers: LossNormalizers,
    ) -> dict[str, Tensor]:
        """All loss terms, given the masks (N, H/4, W/4) of the rows."""
        terms = detection_losses(
            matched.logits,
            matched.boxes,
            matched.labels,
            matched.matchings,
            eos_coefficient=self.config.eos_coefficient,
            normalizers=normalizers,
        )
        if matched.has_masks:
            places = torch.searchsorted(rows, matched.rows(self.config.num_queries).to(rows.device))
            terms |= mask_losses(
                masks[places],
                matched.labels,
                matched.matchings[-1],
                canvas_size=canvas_size,
                image_sizes=image_sizes.tolist(),
                num_targets=normalizers.num_targets,
                resolution=self.config.mask_loss_resolution,
            )
        return terms

    def _segment(self, features: Any, attention_maps: Tensor, rows: Tensor) -> Tensor:
        """Masks (N, H/4, W/4) of the rows, given the model's output and attention maps (B, Q, M, h, w)."""
        skips = features.feature_maps[-2::-1]
        if rows.shape[0] == 0:
            return skips[-1].new_zeros(0, *skips[-1].shape[-2:])
        image_index = torch.div(rows, attention_maps.shape[1], rounding_mode="floor")
        return self.mask_head(features.projected, attention_maps.flatten(0, 1)[rows], image_index, skips)

    def _weighted_sum(self, loss_dict: dict[str, Tensor]) -> Tensor:
        weights = self.config.loss_weights
        aids = {} if self.training_aids is None else self.training_aids.weights
        terms = [
            (aids[name] if name in aids else weights["_".join(name.split("_")[:2])]) * value
            for name, value in loss_dict.items()
        ]
        return torch.stack(terms).sum()


class MatchedPredictions(NamedTuple):
    """The predictions of the layers that the loss uses, and which of them belongs to which target."""

    labels: Sequence[dict[str, Any]]
    logits: Tensor
    """(L, B, Q, K+1), the last layer last."""
    boxes: Tensor
    """(L, B, Q, 4)."""
    matchings: list[Matching]

    @property
    def has_masks(self) -> bool:
        """Whether every target tells its masks."""
        return all("masks" in target for target in self.labels)

    def rows(self, num_queries: int) -> Tensor:
        """The last layer's matched queries among the batch's B*Q: (N,) int64 on the processor, ascending."""
        matching = self.matchings[-1]
        return matching.image * num_queries + matching.query

    def auxiliary_outputs(self) -> list[dict[str, Tensor]]:
        """Predictions of each layer but the last."""
        layers = zip(self.logits[:-1], self.boxes[:-1], strict=True)
        return [{"logits": logits, "pred_boxes": boxes} for logits, boxes in layers]


def select_rows(logits: Tensor, mask_queries: str | int) -> Tensor:
    """Which of the batch's queries get a mask.

    Args:
        logits: (B, Q, K+1).
        mask_queries: "all"; "kept": queries whose best class is an object; k: the k most confident of each image.

    Returns:
        (N,) int64, ascending indices into the B*Q queries.
    """
    batch, num_queries = logits.shape[:2]
    first = torch.arange(batch, device=logits.device)[:, None] * num_queries
    if mask_queries == "all":
        return (first + torch.arange(num_queries, device=logits.device)).flatten()
    probs = logits.float().softmax(-1)
    score = probs[..., :-1].amax(-1)
    kept = score >= probs[..., -1]
    if mask_queries == "kept":
        return kept.flatten().nonzero()[:, 0]
    # A query that can be kept ranks before one that cannot.
    best = (score + kept).topk(int(mask_queries), dim=1).indices
    return (first + best.sort(dim=1).values).flatten()


def _spread_rows(masks: Tensor, rows: Tensor, shape: Sequence[int]) -> Tensor:
    """Masks (N, h, w) of the rows to (B, Q, h, w), the lowest logit elsewhere."""
    batch, num_queries = shape
    if rows.shape[0] == batch * num_queries:
        return masks.unflatten(0, (batch, num_queries))
    spread = masks.new_full((batch * num_queries, *masks.shape[1:]), SKIPPED_MASK_LOGIT)
    return spread.index_copy(0, rows, masks).unflatten(0, (batch, num_queries))


def _image_sizes(pixel_values: Tensor, pixel_mask: Tensor | None) -> Tensor:
    """(B, 2) int64, height and width of each image without its padding."""
    if pixel_mask is None:
        return torch.tensor(pixel_values.shape[-2:], device=pixel_values.device).expand(len(pixel_values), 2)
    real = pixel_mask.bool()
    return torch.stack((real.any(2).sum(1), real.any(1).sum(1)), dim=-1)


def _check_images(pixel_values: Tensor, pixel_mask: Tensor | None, *, num_channels: int) -> None:
    if pixel_values.ndim != 4 or pixel_values.shape[1] != num_channels:
        raise ValueError(
            f"`pixel_values` must have shape (batch, {num_channels}, height, width), got {tuple(pixel_values.shape)}."
        )
    expected = (pixel_values.shape[0], *pixel_values.shape[2:])
    if pixel_mask is not None and tuple(pixel_mask.shape) != expected:
        raise ValueError(f"`pixel_mask` must have shape {expected} like the images, got {tuple(pixel_mask.shape)}.")


def _check_labels(labels: Sequence[dict[str, Any]], *, batch: int, num_labels: int) -> None:
    if len(labels) != batch:
        raise ValueError(f"`labels` must hold a target for each of the {batch} images, got {len(labels)}.")
    classes = torch.cat([target["class_labels"] for target in labels])
    wrong = classes[(classes < 0) | (classes >= num_labels)]
    if len(wrong):
        raise ValueError(
            f"`class_labels` must lie between 0 and {num_labels - 1} in a model with {num_labels} labels, "
            f"got {sorted(set(wrong.tolist()))}."
        )


def _hub_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    names = ("revision", "token", "cache_dir", "local_files_only", "subfolder")
    return {name: kwargs[name] for name in names if kwargs.get(name) is not None}


def _config_fields() -> Sequence[str]:
    return tuple(DetrPanopticConfig.__dataclass_fields__)


__all__ = ["DetrPanopticForSegmentation", "DetrPanopticModel", "DetrPanopticPreTrainedModel"]
