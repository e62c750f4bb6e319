"""Converts checkpoints of other DETR implementations to ours.

Sources: the `.pth` files of facebookresearch/detr (29901c5), and what transformers 4 and 5 save for
`DetrForSegmentation` and `DetrForObjectDetection`, with timm's backbones or transformers' own ResNet.

Fields that the weights do not show come from the source's config, else from the caller, else from the reference's
defaults; the notes say which. Every weight keeps its bits; only `compact_classes` leaves some out.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..configuration_detr_panoptic import DetrPanopticConfig
from ..data.categories import UNUSED
from ..data.files import check_folder
from ..image_processing_detr_panoptic import DetrPanopticImageProcessor
from ..modeling_detr_panoptic import DetrPanopticForSegmentation, DetrPanopticPreTrainedModel
from .configs import convert_config, label_fields
from .names import MASK_PREFIXES, StateDict, check_names, rename, table_of
from .reading import local_checkpoint, processor_settings, read_checkpoint, read_json

logger = logging.getLogger(__name__)

NO_MASK_HEAD = "The checkpoint has no mask head: a new one was initialized, and needs training."


@dataclass(frozen=True)
class ConvertedCheckpoint:
    """A foreign checkpoint in our names: arguments of our config, and the weights.

    A source for detection only has no weights of the mask head. The notes say what was assumed, one sentence each.
    """

    config_kwargs: dict[str, Any]
    state_dict: StateDict
    is_detection_only: bool
    notes: list[str]

    def check_fit(self, expected: Iterable[str]) -> None:
        """Raises ValueError unless the names are those of our model; a detection-only source lacks the mask head."""
        wanted = (name for name in expected if not (self.is_detection_only and name.startswith(MASK_PREFIXES)))
        check_names(self.state_dict, wanted)


@dataclass(frozen=True)
class ConvertedModel:
    """Result of `convert_checkpoint`; its text is a summary.

    Args:
        folder: that the model and its image processor were written to.
        model: the converted model.
        processor: its image processor.
        notes: what was assumed, one sentence each.
    """

    folder: Path
    model: DetrPanopticForSegmentation
    processor: DetrPanopticImageProcessor
    notes: list[str]

    def __str__(self) -> str:
        """Says what was written, and what was assumed."""
        config = self.model.config
        built = f"{config.backbone} with {config.num_queries} queries and {config.num_labels} labels"
        return "\n".join([f"{built}, written to {self.folder}", *(f"note: {note}" for note in self.notes)])


def convert_checkpoint(
    source: str | Path, output: str | Path, *, dilation: bool | None = None, compact: bool = False
) -> ConvertedModel:
    """Converts a DETR checkpoint to a model folder of this package, with the image processor beside it.

    A detection-only checkpoint gets a new mask head, which needs training.

    Args:
        source: a `.pth`, `.bin` or `.safetensors` file, a folder of transformers, or OWNER/NAME on the Hub.
        output: the folder to write.
        dilation: whether the model is a DC5 model, which the weights do not show. None: as the source's config says,
            or else the file's name.
        compact: leave out the classes that the dataset never has: 133 of COCO's 250 remain. Scores rise or stay.

    Returns:
        The model, its processor, the folder and notes on what was assumed.

    Raises:
        ValueError: the source is not a DETR checkpoint, or has something that this model lacks; or `output` is a file
            or the source itself.
        OSError: the repository cannot be reached.

    Examples:
        >>> from detr_panoptic import convert_checkpoint
        >>> print(convert_checkpoint("facebook/detr-resnet-50-panoptic", "detr_r50", compact=True))  # doctest: +SKIP
        resnet50 with 100 queries and 133 labels, written to detr_r50
    """
    folder = Path(output)
    check_folder(folder)
    path = local_checkpoint(source)
    if folder.resolve() == path.resolve():
        raise ValueError(f"`output` must not be the source itself, got {folder}.")
    converted = convert_files(path, dilation=dilation, compact=compact)
    saved = (path if path.is_dir() else path.parent) / "preprocessor_config.json"
    settings = processor_settings(read_json(saved)) if saved.is_file() else {}
    model = build_model(converted)
    processor = DetrPanopticImageProcessor.for_model(model.config, **settings)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    for note in converted.notes:
        logger.info(note)
    return ConvertedModel(folder, model, processor, converted.notes)


def convert_files(path: Path, *, dilation: bool | None = None, compact: bool = False) -> ConvertedCheckpoint:
    """Reads a file or folder and converts it; arguments and errors as in `convert_checkpoint`."""
    state_dict, foreign = read_checkpoint(path)
    by_name = dilation is None and (foreign is None or "dilation" not in foreign) and "dc5" in path.name.lower()
    converted = convert_state_dict(state_dict, foreign, dilation=True if by_name else dilation)
    notes = list(converted.notes)
    if by_name:
        notes.append(f"Weights do not show dilation: `dilation=True` is assumed from the name {path.name!r}.")
    if not compact:
        return replace(converted, notes=notes)
    config_kwargs, compacted, report = compact_classes(converted.config_kwargs, converted.state_dict)
    return replace(converted, config_kwargs=config_kwargs, state_dict=compacted, notes=[*notes, report])


def convert_state_dict(
    state_dict: Mapping[str, Tensor], foreign: Mapping[str, Any] | None, *, dilation: bool | None = None
) -> ConvertedCheckpoint:
    """Converts names and config of a foreign checkpoint; ValueError if this model cannot represent it."""
    ours = rename(state_dict, table_of(state_dict))
    has_masks = any(name.startswith(MASK_PREFIXES) for name in ours)
    config, notes = convert_config(ours, foreign or {}, has_masks=has_masks)
    if dilation is None and foreign is None:
        notes.append("Weights do not show dilation: `dilation=False` is assumed; a DC5 model needs True.")
    if dilation is not None:
        config["dilation"] = dilation
    if not has_masks:
        notes.append(NO_MASK_HEAD)
    return ConvertedCheckpoint(config, ours, is_detection_only=not has_masks, notes=notes)


def compact_classes(
    config_kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor]
) -> tuple[dict[str, Any], StateDict, str]:
    """Leaves out the rows of the class head whose labels are named `unused_*`; the others become contiguous.

    The softmax then runs over fewer classes: a probability p becomes p / (1 - dropped), where dropped is the query's
    probability of the classes left out. Returns config arguments, the state dict and a note; ValueError if none is.
    """
    id2label: dict[int, str] = config_kwargs["id2label"]
    kept = [label for label, name in id2label.items() if name != UNUSED.format(label)]
    num_dropped = len(id2label) - len(kept)
    if not num_dropped:
        raise ValueError(f"`compact` needs unused labels: all of the {len(id2label)} labels have names of their own.")
    category_ids = config_kwargs.get("category_ids") or list(id2label)
    stuff = set(config_kwargs["stuff_label_ids"])
    rows = torch.tensor([*kept, len(id2label)])  # "no object" stays the last
    report = (
        f"{num_dropped} of {len(id2label)} labels do not occur in the dataset and were left out. Their probability is "
        "shared among the query's other classes in proportion: scores rise or stay, their order in a query is kept."
    )
    config = {
        **config_kwargs,
        **label_fields([id2label[label] for label in kept]),
        "stuff_label_ids": [i for i, label in enumerate(kept) if label in stuff],
        "category_ids": [category_ids[label] for label in kept],
    }
    heads = {name: state_dict[name][rows] for name in ("class_head.weight", "class_head.bias")}
    return config, {**state_dict, **heads}, report


def build_model(converted: ConvertedCheckpoint, **kwargs: Any) -> DetrPanopticForSegmentation:
    """Builds a model from a converted checkpoint; takes the arguments of `from_pretrained`."""
    state_dict = weights_for(DetrPanopticForSegmentation, converted)
    config = DetrPanopticConfig(**converted.config_kwargs)
    return DetrPanopticForSegmentation.from_pretrained(None, config=config, state_dict=state_dict, **kwargs)


def weights_for(cls: type[DetrPanopticPreTrainedModel], converted: ConvertedCheckpoint) -> StateDict:
    """Returns the weights that a class loads: all, or those of the base model; ValueError if their names misfit."""
    with torch.device("meta"):
        whole = DetrPanopticForSegmentation(DetrPanopticConfig(**converted.config_kwargs))
    converted.check_fit(whole.state_dict())
    state_dict = converted.state_dict
    if issubclass(cls, DetrPanopticForSegmentation):
        return state_dict
    prefix = cls.base_model_prefix + "."
    return {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}
