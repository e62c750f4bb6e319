"""DETR for panoptic segmentation as a transformers model.

The network is that of facebookresearch/detr (29901c5; arXiv 2005.12872); docs/deviations.md lists every difference.

Legend: B images, Q queries, K labels, L decoder layers, D hidden size, M heads, T targets, (H, W) the padded canvas,
(h, w) the map of stride 32 (16 with a dilated backbone).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import guard_or_false
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .backbone import Backbone, check_images, image_sizes_of, resize_mask
from .configuration_detr_panoptic import DetrPanopticConfig, check_mask_queries
from .losses import Criterion, LossNormalizers, MaskCanvas
from .mask_head import MASK_STRIDE, BoxHead, MaskAttention, MaskHead, object_scores, select_rows, spread_rows
from .matcher import Labels, MatchedLayers, check_labels
from .transformer import Attention, Decoder, Encoder, FeedForwardLayer, sine_position_encoding

HUB_ARGUMENTS = {"revision", "token", "cache_dir", "local_files_only", "subfolder"}
INITIALIZED = (
    *(nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.Embedding, nn.LayerNorm, nn.GroupNorm),
    *(Backbone, Attention, FeedForwardLayer, MaskAttention, MaskHead),
)
ModelType = TypeVar("ModelType", bound="DetrPanopticPreTrainedModel")


@dataclass
class DetrPanopticModelOutput(ModelOutput):
    """The results of backbone and transformer, before the heads. Attentions and hidden states come on request."""

    last_hidden_state: Tensor | None = None  # (B, Q, D) object embeddings
    intermediate_hidden_states: Tensor | None = None  # (L, B, Q, D) after each decoder layer and the shared norm
    encoder_last_hidden_state: Tensor | None = None  # (B, h*w, D) encoded image
    projected: Tensor | None = None  # (B, D, h, w) projected map of the last stage
    feature_maps: tuple[Tensor, ...] | None = None  # the backbone's maps of strides 4, 8, 16 and 32
    feature_mask: Tensor | None = None  # (B, h, w) bool, True on the image
    decoder_hidden_states: tuple[Tensor, ...] | None = None  # L+1 x (B, Q, D), before each layer, then the embeddings
    decoder_attentions: tuple[Tensor, ...] | None = None  # L x (B, M, Q, Q)
    cross_attentions: tuple[Tensor, ...] | None = None  # L x (B, M, Q, h*w)
    encoder_hidden_states: tuple[Tensor, ...] | None = None  # 1 + layers x (B, h*w, D)
    encoder_attentions: tuple[Tensor, ...] | None = None  # layers x (B, M, h*w, h*w)


@dataclass
class DetrPanopticSegmentationOutput(ModelOutput):
    """Predictions, losses if there are labels, and what `DetrPanopticModelOutput` has of the same names."""

    loss: Tensor | None = None  # weighted sum of `loss_dict`
    loss_dict: dict[str, Tensor] | None = None  # by term; `_0 ... _{L-2}` are the auxiliary layers
    logits: Tensor | None = None  # (B, Q, K+1), the last class is "no object"
    pred_boxes: Tensor | None = None  # (B, Q, 4) cxcywh in [0, 1] of the unpadded image
    pred_masks: Tensor | None = None  # (B, Q, H/4, W/4) logits over the canvas; -1e4 where the head did not run
    image_sizes: Tensor | None = None  # (B, 2) height and width of each image without its padding
    canvas_sizes: Tensor | None = None  # (B, 2) height and width of the padded canvas, the same in every row
    auxiliary_outputs: list[dict[str, Tensor]] | None = None  # `logits` and `pred_boxes` of the earlier layers
    last_hidden_state: Tensor | None = None
    encoder_last_hidden_state: Tensor | None = None
    projected: Tensor | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None
    mask_attentions: Tensor | None = None  # with attentions, (B, Q, M, h, w): where each object looks


PASSED_ON = [
    name for name in DetrPanopticModelOutput.__dataclass_fields__ if hasattr(DetrPanopticSegmentationOutput, name)
]


class DetrPanopticPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialization."""

    config_class = DetrPanopticConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = {"Backbone", "EncoderLayer", "DecoderLayer", "MaskAttention", "MaskHead"}  # noqa: RUF012

    foreign_readers: ClassVar[list[Callable[..., Any]]] = []
    """Readers of other projects' checkpoints, which `from_pretrained` tries first; empty in code loaded from the Hub.

    `reader(cls, source, **hub_arguments)` returns the fields of a configuration and a state dict for `cls`, or None.
    """

    if TYPE_CHECKING:  # transformers leaves these without types, or with types that do not fit
        config: Any  # a DetrPanopticConfig; in transformers' type `id2label` may be None
        eval: Callable[..., Any]
        train: Callable[..., Any]
        to: Callable[..., Any]  # type: ignore[assignment]

    def get_input_embeddings(self) -> Any:
        """Returns the first layer of the transformer's input, where peft begins the gradients of adapters."""
        return self.base_model.input_projection

    @classmethod
    def from_pretrained(
        cls: type[ModelType], pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any
    ) -> ModelType:
        """Loads a checkpoint, with the arguments of `PreTrainedModel.from_pretrained`.

        With the package it also reads transformers' DETR (a detector gets a new mask head); ValueError if one misfits.
        """
        source = pretrained_model_name_or_path
        for reader in cls.foreign_readers if source is not None and "state_dict" not in kwargs else ():
            foreign = reader(cls, source, **{name: kwargs[name] for name in HUB_ARGUMENTS & kwargs.keys()})
            if foreign is not None:
                config_fields, state_dict = foreign
                if kwargs.get("config") is None:
                    config, kwargs = DetrPanopticConfig.from_dict(config_fields, return_unused_kwargs=True, **kwargs)
                    kwargs["config"] = config
                source, kwargs["state_dict"] = None, state_dict
                break
        loaded = super().from_pretrained(source, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if source != pretrained_model_name_or_path:  # adapters are saved with the name
            model.name_or_path = model.config.name_or_path = str(pretrained_model_name_or_path)
        for backbone in (module for module in model.modules() if isinstance(module, Backbone)):
            backbone.freeze_stem()  # loaded parameters require gradients
        return loaded

    @classmethod
    def is_custom_code(cls) -> bool:
        """Returns False, so that `_init_weights` may initialize children; it skips what was loaded."""
        return False

    def _init_weights(self, module: nn.Module) -> None:
        """Initializes one module as the reference does; children come before their parents."""
        if isinstance(module, INITIALIZED):
            module.reset_parameters()  # by `transformers.initialization`, which skips what was loaded


class DetrPanopticModel(DetrPanopticPreTrainedModel):
    """Backbone and transformer: computes object embeddings from images."""

    def __init__(self, config: DetrPanopticConfig) -> None:
        super().__init__(config)
        self.backbone = Backbone(
            config.backbone,
            dilation=config.dilation,
            num_channels=config.num_channels,
            pretrained=config.use_pretrained_backbone and not torch.empty(0).is_meta,  # else the checkpoint has them
        )
        self.input_projection = nn.Conv2d(self.backbone.channels[-1], config.hidden_size, 1)
        self.query_embeddings = nn.Embedding(config.num_queries, config.hidden_size)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
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
        """Computes the object embeddings of a batch; see `DetrPanopticForSegmentation.forward` for the arguments."""
        check_images(pixel_values, pixel_mask, num_channels=self.config.num_channels)
        with_weights = self.config.output_attentions if output_attentions is None else output_attentions
        with_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        if with_weights and (kernel := self.config._attn_implementation) not in ("eager", "sdpa"):
            raise ValueError(f'`output_attentions` needs `attn_implementation` "eager" or "sdpa", got "{kernel}".')
        pixel_values, pixel_mask = self.backbone.padded(pixel_values, pixel_mask)
        feature_maps = self.backbone(pixel_values.to(self.input_projection.weight.dtype))
        projected = self.input_projection(feature_maps[-1])
        feature_mask = resize_mask(pixel_mask, projected)
        cells_mask = None if pixel_mask is None else feature_mask.flatten(1)
        position = sine_position_encoding(feature_mask, self.config.hidden_size).to(projected.dtype)
        cells, position = (maps.flatten(2).transpose(1, 2) for maps in (projected, position))  # (B, h*w, D)
        encoder_states, encoder_weights = self.encoder(
            cells, position, self._attention_mask(cells, cells, cells_mask), with_weights=with_weights
        )
        encoded = encoder_states[-1]
        numbers = torch.arange(self.config.num_queries, device=cells.device)
        queries = self.query_embeddings(numbers).expand(cells.shape[0], -1, -1)  # `len` would fix an exported batch
        decoded = self.decoder(
            queries, encoded, position, self._attention_mask(queries, encoded, cells_mask), with_weights=with_weights
        )
        return DetrPanopticModelOutput(
            last_hidden_state=decoded.normed[-1],
            intermediate_hidden_states=decoded.normed,
            encoder_last_hidden_state=encoded,
            projected=projected,
            feature_maps=tuple(feature_maps),
            feature_mask=feature_mask,
            decoder_hidden_states=tuple(decoded.states) if with_states else None,
            decoder_attentions=tuple(decoded.self_weights) if with_weights else None,
            cross_attentions=tuple(decoded.cross_weights) if with_weights else None,
            encoder_hidden_states=tuple(encoder_states) if with_states else None,
            encoder_attentions=tuple(encoder_weights) if with_weights else None,
        )

    def _attention_mask(self, queries: Tensor, keys: Tensor, cells_mask: Tensor | None) -> Any:
        """Returns the mask (B, h*w) in the form that the attention implementation takes; None without padding."""
        if cells_mask is None:
            return None
        options = {"encoder_hidden_states": keys, "allow_is_bidirectional_skip": False}  # which waits for the GPU
        return create_bidirectional_mask(self.config, queries, cells_mask, **options)


class DetrPanopticForSegmentation(DetrPanopticPreTrainedModel):
    """DETR with class, box and mask heads. Returns panoptic predictions, and losses if there are labels.

    Examples:
        >>> model = DetrPanopticForSegmentation(DetrPanopticConfig(backbone="test_resnet", num_labels=3))
        >>> model(torch.rand(1, 3, 64, 96), mask_queries="all").pred_masks.shape
        torch.Size([1, 100, 16, 24])
    """

    def __init__(self, config: DetrPanopticConfig) -> None:
        super().__init__(config)
        self.model = DetrPanopticModel(config)
        self.class_head = nn.Linear(config.hidden_size, len(config.id2label or {}) + 1)
        self.box_head = BoxHead(config.hidden_size)
        self.mask_attention = MaskAttention(config.hidden_size, config.num_heads)
        self.mask_head = MaskHead(config.hidden_size, config.num_heads, self.model.backbone.channels[-2::-1])
        self.post_init()

    @property
    def criterion(self) -> Criterion:
        """The loss, as the configuration describes it."""
        return Criterion(
            costs={name: getattr(self.config, name) for name in ("class_cost", "bbox_cost", "giou_cost")},
            weights=self.config.loss_weights,
            eos_coefficient=self.config.eos_coefficient,
            mask_resolution=self.config.mask_loss_resolution,
        )

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        labels: Labels | None = None,
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
            labels: B targets with `class_labels` (T,), `boxes` (T, 4) cxcywh in [0, 1] of the unpadded image, and
                `masks` (T, H_i, W_i), without which there are no mask losses.
            mask_queries: which queries get masks in addition to those matched with labels. None: no others in
                training; otherwise, those that the configuration names.
            normalizers: divisors of the losses; None: computed from this batch.
            output_attentions: also return attention weights, with "eager" or "sdpa"; the predictions do not change.
            output_hidden_states: also return the states between the layers.

        Raises:
            ValueError: an argument has a wrong shape or value, or a target has a class that does not exist.
        """
        if mask_queries is not None:
            check_mask_queries(mask_queries, self.config.num_queries)
        if labels is not None:
            check_labels(labels, batch=len(pixel_values), num_labels=self.config.num_labels)
        wanted: Any = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        features = self.model(pixel_values, pixel_mask, return_dict=True, **wanted)
        # Auxiliary losses run the heads for the earlier layers separately, so they change no bit of the predictions.
        logits, boxes = self._detect(features.last_hidden_state)
        image_sizes = image_sizes_of(pixel_values, pixel_mask)
        on_cpu = None if labels is None else image_sizes.to("cpu", non_blocking=True)  # complete once all are matched
        matched = None if labels is None else self._match(labels, features, logits, boxes)

        attention_maps = self.attend(features)
        rows, shown = self._mask_rows(logits, mask_queries, matched)
        height, width = pixel_values.shape[-2:]
        masks = self._segment(features, attention_maps, rows)
        if any(self.model.backbone.margins(pixel_values)):
            masks = masks[..., : -(-height // MASK_STRIDE), : -(-width // MASK_STRIDE)]
        loss, loss_dict = None, None
        if matched is not None and on_cpu is not None:
            canvas = MaskCanvas(masks, rows, (height, width), on_cpu.tolist())
            loss, loss_dict = self.criterion(matched, canvas, normalizers)
        return DetrPanopticSegmentationOutput(
            loss=loss,
            loss_dict=loss_dict,
            logits=logits,
            pred_boxes=boxes,
            pred_masks=spread_rows(masks, rows, logits.shape[:2], shown),
            image_sizes=image_sizes,
            canvas_sizes=image_sizes_of(pixel_values, None),
            auxiliary_outputs=None if matched is None else matched.auxiliary_outputs(),
            mask_attentions=None if features.cross_attentions is None else attention_maps,
            **{name: getattr(features, name) for name in PASSED_ON},
        )

    def attend(self, features: Any) -> Tensor:
        """Computes attention maps (B, Q, M, h, w), where each object looks, from the base model's output."""
        encoded = features.encoder_last_hidden_state.unflatten(1, features.projected.shape[-2:])
        return self.mask_attention(features.last_hidden_state, encoded, features.feature_mask)

    def _detect(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Computes logits (..., K+1) and boxes (..., 4) from object embeddings (..., D)."""
        return self.class_head(embeddings), self.box_head(embeddings)

    def _match(self, labels: Labels, features: Any, logits: Tensor, boxes: Tensor) -> MatchedLayers:
        """Matches the layers that the loss uses with the labels."""
        earlier = features.intermediate_hidden_states[: -1 if self.config.auxiliary_loss else 0]
        layers = zip(self._detect(earlier), (logits, boxes), strict=True)
        return self.criterion.match(labels, *(torch.cat((others, last[None])) for others, last in layers))

    def _mask_rows(self, logits: Tensor, mask_queries: Any, matched: MatchedLayers | None) -> tuple[Tensor, Any]:
        """Selects the rows among the batch's B*Q queries that get masks: (N,) int64, ascending; see `spread_rows`."""
        if self.training and mask_queries is None and matched is not None:
            # Without matched masks one row still runs, so that every parameter has a gradient in every process.
            return rows if len(rows := matched.rows()) else rows.new_zeros(1), None
        choice = self.config.mask_queries if mask_queries is None else mask_queries
        if choice == "kept" and torch.compiler.is_compiling():  # a graph needs a number of rows that it knows
            shown = object_scores(logits)[1].flatten()
            shown = shown if matched is None else shown.index_fill(0, matched.rows(), True)
            return select_rows(logits, "all"), shown
        rows = select_rows(logits, choice)
        return rows if matched is None else torch.cat((rows, matched.rows())).unique(), None

    def _segment(self, features: Any, attention_maps: Tensor, rows: Tensor) -> Tensor:
        """Computes masks (N, H/4, W/4) of the rows from the features and attention maps (B, Q, M, h, w)."""
        skips = features.feature_maps[-2::-1]
        if guard_or_false(rows.shape[0] == 0):
            return skips[-1].new_zeros(0, *skips[-1].shape[-2:])
        image_index = torch.div(rows, attention_maps.shape[1], rounding_mode="floor")
        return self.mask_head(features.projected, attention_maps.flatten(0, 1)[rows], image_index, skips)


__all__ = ["DetrPanopticForSegmentation", "DetrPanopticModel", "DetrPanopticPreTrainedModel"]
