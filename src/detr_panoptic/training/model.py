"""The model of a training run: new, or a checkpoint with the classes of the data."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints import BUNDLED
from ..checkpoints.backbone_weights import load_backbone_weights
from ..checkpoints.configs import label_fields
from ..configuration_detr_panoptic import DetrPanopticConfig
from ..data.categories import Categories, match_labels
from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
from ..inference.loading import load
from ..modeling_detr_panoptic import DetrPanopticForSegmentation
from .aids import attach_training_aids
from .data import TrainingData
from .optimization import freeze
from .settings import ModelSettings, TrainingSettings

logger = logging.getLogger(__name__)

OVERFITTED_IMAGES = 10_000  # that a new transformer overfits: the paper trained on 118 000
# What a fine-tuned model's image processor inherits from its checkpoint:
KEPT_OF_A_PROCESSOR = ("image_mean", "image_std", "merging", "mask_threshold", "overlap_mask_area_threshold")


def build_model(
    settings: TrainingSettings, data: TrainingData
) -> tuple[DetrPanopticForSegmentation, DetrPanopticImageProcessor]:
    """Builds or loads the model, freezes what is not trained, and builds its image processor.

    Raises ValueError if there is no such checkpoint, the stage would leave a new class head untrained, or the
    architecture or the weights of the backbone are wrong.
    """
    wanted = settings.model
    if wanted.model is None:
        model, unknown = _new_model(wanted, data.categories), list(data.categories.names)
        inherited: dict[str, Any] = model.model.backbone.image_statistics
        if len(data.train) < OVERFITTED_IMAGES:
            text = "%d images are few for a new transformer: below %d, a recipe with a checkpoint avoids overfitting."
            logger.warning(text, len(data.train), OVERFITTED_IMAGES)
    else:
        is_ours = wanted.model == "bundled" and not Path("bundled").exists()
        model, processor = load(BUNDLED if is_ours else wanted.model, device="cpu")
        unknown = fit_class_head(model, data.categories)
        inherited = {name: getattr(processor, name) for name in KEPT_OF_A_PROCESSOR}
        known = len(data.categories) - len(unknown)
        logger.info("class head: the checkpoint knows %d of %d classes by name", known, len(data.categories))
    if wanted.stage == "masks" and unknown:
        shown = ", ".join(unknown[:5]) + (" …" if len(unknown) > 5 else "")
        raise ValueError(
            f"`stage` masks does not train the class head, but {wanted.model or 'a new model'} does not know the "
            f"classes {shown}. Train the boxes first and pass that model as `model`."
        )
    if wanted.eos_coefficient is not None:  # of a new model, too: the threshold follows the weight
        weights = model.config.eos_coefficient, wanted.eos_coefficient
        model.config.threshold = round(equivalent_threshold(model.config.threshold, *weights), 2)
        model.config.eos_coefficient = wanted.eos_coefficient
    if wanted.aids and wanted.stage != "boxes":  # the aids learn from masks
        attach_training_aids(model)
    freeze(model, wanted)
    size = {"shortest_edge": settings.data.short_side, "longest_edge": settings.data.long_side}
    return model, DetrPanopticImageProcessor.for_model(model.config, **inherited, size=size)


def equivalent_threshold(threshold: float, old_weight: float, new_weight: float) -> float:
    """Returns the score threshold for the same true probability with another weight of "no object" in the loss.

    Examples:
        >>> round(equivalent_threshold(0.85, 0.1, 1.0), 2)
        0.36
    """
    odds = threshold * old_weight
    return odds / (odds + (1 - threshold) * new_weight) if odds and new_weight else threshold


def _new_model(wanted: ModelSettings, categories: Categories) -> DetrPanopticForSegmentation:
    """Builds a model with random weights and, if the settings name any, pretrained weights of the backbone."""
    values, fields = asdict(wanted), DetrPanopticConfig.__dataclass_fields__.keys() - {"eos_coefficient"}
    architecture = {name: value for name, value in values.items() if name in fields and value is not None}
    model = DetrPanopticForSegmentation(DetrPanopticConfig(**architecture, **_label_fields(categories)))
    if wanted.backbone_weights is not None:
        load_backbone_weights(model.model.backbone, wanted.backbone, wanted.backbone_weights)
    return model


def _label_fields(categories: Categories) -> dict[str, Any]:
    """Returns the fields of a model's configuration that describe its labels."""
    own = {"stuff_label_ids": categories.stuff_label_ids, "category_ids": list(categories.category_ids)}
    return label_fields(list(categories.names)) | own


@torch.no_grad()
def fit_class_head(model: DetrPanopticForSegmentation, categories: Categories) -> list[str]:
    """Replaces the labels of a model; the rows of classes that it knows by name, and of "no object", are copied.

    Args:
        model: changed in place, with its configuration.
        categories: of the data; names are matched by `match_labels`.

    Returns:
        The names that the model did not know; their rows are new.

    Examples:
        >>> from detr_panoptic import DetrPanopticForSegmentation
        >>> from detr_panoptic.checkpoints import BUNDLED
        >>> from detr_panoptic.data.categories import Categories
        >>> model = DetrPanopticForSegmentation.from_pretrained(BUNDLED)
        >>> fit_class_head(model, Categories(("sheep", "goat", "Sky"), (True, True, False), (1, 2, 3)))
        ['goat']
    """
    old, old_names = model.class_head, {int(label): str(name) for label, name in model.config.id2label.items()}
    sources = {new_row: old_row for old_row, new_row in match_labels(categories, old_names).items()}
    unknown = [name for label, name in enumerate(categories.names) if label not in sources]
    sources[len(categories)] = old.out_features - 1  # the last class is "no object"
    head = nn.Linear(old.in_features, len(categories) + 1, device=old.weight.device, dtype=old.weight.dtype)
    copied, rows = list(sources), list(sources.values())
    head.weight[copied], head.bias[copied] = old.weight[rows], old.bias[rows]
    model.class_head = head
    for name, value in _label_fields(categories).items():
        setattr(model.config, name, value)
    return unknown


# ------ calibration

ADAPTED_STD = 0.5  # of adapted features: about that of a normalized and rectified map
ATTENTION_SHARE = 0.1  # std of the attention's contribution to the first convolution, relative to the image's
FIRST_BIAS_STD = 1.0


@torch.no_grad()
def calibrate(model: DetrPanopticForSegmentation, pixel_values: Tensor, pixel_mask: Tensor | None) -> None:
    """Scales the initial weights of a new mask head and decoder to their inputs. Not in the paper.

    The paper's backbone has features of about unit scale. Each stage of the mask head adds adapted features of the
    image to the maps of the queries and normalizes the sum. If the features are ten times larger than the maps, they
    take nine tenths of the gradient at every stage; attention maps, with values near 0.001, lose most of the rest.
    After three stages and gradient clipping, almost no gradient reaches the attention, and the masks of all queries
    stay the same for thousands of steps.

    The values of the decoder's first self-attention are zero because queries start at zero, so its output is the bias
    alone. With a bias of zero, the following norm divides zero by its epsilon and multiplies the gradient of the bias
    by 300: at the start, 243 parts of 245 of the gradient norm belonged to this one vector, and clipping shrank all
    other gradients. So the bias is drawn at random.

    Args:
        model: changed in place; its backbone has its weights. The network and its checkpoints stay as they are.
        pixel_values: (B, 3, H, W), some training images.
        pixel_mask: (B, H, W), 1 on the image; None without padding.
    """
    nn.init.normal_(model.model.decoder.layers[0].self_attn.out_proj.bias, std=FIRST_BIAS_STD)
    was_training = model.training
    features = model.eval().model(pixel_values, pixel_mask)
    attention, head = model.attend(features), model.mask_head
    for stage, skip in zip(head.stages, features.feature_maps[-2::-1], strict=True):
        stage.adapter.weight *= ADAPTED_STD / stage.adapter(skip).std()
    weight, channels = head.blocks[0].conv.weight, features.projected.shape[1]
    image_share = features.projected.std() * channels**0.5
    attention_share = attention.std() * (weight.shape[1] - channels) ** 0.5
    weight[:, channels:] *= ATTENTION_SHARE * image_share / attention_share
    model.train(was_training)
