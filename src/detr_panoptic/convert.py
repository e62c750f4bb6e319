"""Checkpoints of other DETR implementations, as ours: names, shapes and tensors in, names, sizes and tensors out.

Sources: the `.pth` files of facebookresearch/detr (29901c5), and what transformers 4 and 5 save for
`DetrForSegmentation` and `DetrForObjectDetection`, with timm's backbones or transformers' own ResNet.

What is not in the tensors comes from the source's config, else from the caller, else from the reference's defaults;
`ConvertedCheckpoint.notes` says which. Every weight is bit-identical; only `compact_classes` leaves some out.
"""

import argparse
import json
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from torch import Tensor

from .contained_paths import path_inside
from .convert_config import UNUSED, convert_config, infer_sizes, label_fields
from .convert_names import MASK_PREFIXES, StateDict, check_names, rename, table_of

_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
#: The reference's command line, saved in the checkpoints that its training writes, by the names of DetrConfig.
_REFERENCE_ARGUMENTS = {
    "backbone": "backbone",
    "dilation": "dilation",
    "position_embedding": "position_embedding_type",
    "pre_norm": "normalize_before",
    "nheads": "encoder_attention_heads",
    "dropout": "dropout",
    "aux_loss": "auxiliary_loss",
    "set_cost_class": "class_cost",
    "set_cost_bbox": "bbox_cost",
    "set_cost_giou": "giou_cost",
    "bbox_loss_coef": "bbox_loss_coefficient",
    "giou_loss_coef": "giou_loss_coefficient",
    "mask_loss_coef": "mask_loss_coefficient",
    "dice_loss_coef": "dice_loss_coefficient",
    "eos_coef": "eos_coefficient",
}
_PROCESSOR_FIELDS = (
    *(f"do_{step}" for step in ("resize", "rescale", "normalize", "pad")),
    "resample",
    "pad_size",
    "rescale_factor",
    "image_mean",
    "image_std",
)


@dataclass(frozen=True)
class ConvertedCheckpoint:
    """A foreign checkpoint, as ours.

    Args:
        config_kwargs: arguments of `DetrPanopticConfig`.
        state_dict: our names to tensors; without a mask head's names if `is_detection_only`.
        is_detection_only: the source has no mask head; whoever loads it makes a new one, and says so.
        notes: what was assumed, one sentence each, for a log.
    """

    config_kwargs: dict[str, Any]
    state_dict: StateDict
    is_detection_only: bool
    notes: list[str]

    def check_fit(self, expected: Iterable[str]) -> None:
        """Compares with the names of a whole model of ours; one for detection only may lack the mask head's.

        Raises:
            ValueError: names are missing or left over; lists them.
        """
        wanted = (name for name in expected if not (self.is_detection_only and name.startswith(MASK_PREFIXES)))
        check_names(self.state_dict, wanted)


def convert_checkpoint(source: Path, *, dilation: bool | None = None, compact: bool = False) -> ConvertedCheckpoint:
    """Reads a folder or a file and converts it.

    Args:
        source: a folder of transformers, or a `.pth`, `.bin` or `.safetensors` file.
        dilation: whether the model is a DC5 one; None asks the source's config, then the file's name.
        compact: leave out the classes that the dataset never has, see `compact_classes`.

    Raises:
        ValueError: no checkpoint, one that is not a DETR, or one with something that this model lacks.
    """
    state_dict, foreign = read_checkpoint(source)
    by_name = dilation is None and (foreign is None or "dilation" not in foreign) and "dc5" in source.name.lower()
    converted = convert_state_dict(state_dict, foreign, dilation=True if by_name else dilation)
    notes = list(converted.notes)
    if by_name:
        notes.append(f"Dilation cannot be seen in weights: `dilation=True` because of the name {source.name!r}.")
    if not compact:
        return replace(converted, notes=notes)
    config_kwargs, compacted, report = compact_classes(converted.config_kwargs, converted.state_dict)
    return ConvertedCheckpoint(config_kwargs, compacted, converted.is_detection_only, [*notes, report])


def convert_state_dict(
    state_dict: Mapping[str, Tensor], foreign: Mapping[str, Any] | None, *, dilation: bool | None = None
) -> ConvertedCheckpoint:
    """Names and config of a foreign checkpoint to ours.

    Args:
        state_dict: the foreign names and tensors.
        foreign: its config in the names of transformers' `DetrConfig`, or None.
        dilation: overrides what the config says; False if neither says anything.

    Raises:
        ValueError: as `convert_checkpoint`.
    """
    ours = rename(state_dict, table_of(state_dict))
    has_masks = any(name.startswith(MASK_PREFIXES) for name in ours)
    config, notes = convert_config(ours, foreign or {}, has_masks=has_masks)
    if dilation is None and foreign is None:
        notes.append("Dilation cannot be seen in weights: `dilation=False` is assumed; a DC5 model needs True.")
    if dilation is not None:
        config["dilation"] = dilation
    return ConvertedCheckpoint(config, ours, is_detection_only=not has_masks, notes=notes)


def compact_classes(
    config_kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor]
) -> tuple[dict[str, Any], StateDict, str]:
    """Leaves out the rows of the class head whose labels are named `unused_*`; the others become contiguous.

    The softmax runs over fewer classes then: a probability p becomes p / (1 - dropped), where dropped is what the
    query gave to the classes left out. So probabilities rise or stay, and their order within a query is kept.

    Returns:
        Config arguments with `category_ids`, the state dict, and a sentence for the log.

    Raises:
        ValueError: no label is unused.
    """
    id2label: dict[int, str] = config_kwargs["id2label"]
    kept = [label for label, name in id2label.items() if name != UNUSED.format(label)]
    num_dropped = len(id2label) - len(kept)
    if not num_dropped:
        raise ValueError(f"No class to leave out: all of the {len(id2label)} labels have names of their own.")
    category_ids = config_kwargs.get("category_ids") or list(id2label)
    stuff = set(config_kwargs["stuff_label_ids"])
    rows = torch.tensor([*kept, len(id2label)])  # "no object" stays the last
    report = (
        f"{num_dropped} of {len(id2label)} labels have no class in the dataset and were left out. What a query gave "
        "to them goes to its other classes in proportion: scores rise or stay, their order in a query is the same."
    )
    config = {
        **config_kwargs,
        **label_fields([id2label[label] for label in kept]),
        "stuff_label_ids": [i for i, label in enumerate(kept) if label in stuff],
        "category_ids": [category_ids[label] for label in kept],
    }
    heads = {name: state_dict[name][rows] for name in ("class_head.weight", "class_head.bias")}
    return config, {**state_dict, **heads}, report


def fetch_checkpoint(name: str, **hub_arguments: Any) -> Path:
    """Downloads a repository's checkpoint, unless the cache has it.

    Args:
        name: OWNER/NAME on the Hub.
        **hub_arguments: `revision`, `token`, `cache_dir`, `local_files_only`.

    Returns:
        The folder in the cache.

    Raises:
        OSError: the repository cannot be reached.
    """
    # One kind of weights, not both: many repositories hold the same in either format.
    for weights in ("*.safetensors", "*.bin"):
        folder = Path(snapshot_download(name, allow_patterns=["*.json", weights], **hub_arguments))
        if any(folder.glob(weights)):
            break
    return folder


def read_checkpoint(source: Path) -> tuple[StateDict, dict[str, Any] | None]:
    """The tensors of a folder or file, and the config beside or inside it, in the names of `DetrConfig`.

    Nothing is unpickled but tensors and plain values.

    Args:
        source: a folder with `config.json` and `model.safetensors` or `pytorch_model.bin`, in one piece or in shards;
            or a `.pth`, `.bin` or `.safetensors` file.

    Raises:
        ValueError: there is no such thing, or it cannot be read; names the file.
    """
    if source.is_dir():
        return _read_folder(source), _read_json(source / "config.json")
    if not source.is_file():
        raise ValueError(f"No checkpoint at {source}: expected a folder or a file.")
    return _read_tensors(source)


def processor_kwargs(foreign: Mapping[str, Any]) -> dict[str, Any]:
    """The `preprocessor_config.json` of a DETR of transformers as arguments of our image processor.

    Reads the old spellings too: `size` as a number with `max_size`, `pad_and_return_pixel_mask`.

    Raises:
        ValueError: it is another model's processor.
    """
    kind = foreign.get("image_processor_type") or foreign.get("feature_extractor_type") or "DetrImageProcessor"
    if not kind.startswith(("DetrImageProcessor", "DetrFeatureExtractor")):
        raise ValueError(f"The image processor must be a DetrImageProcessor, got {kind}.")
    kwargs = {name: foreign[name] for name in _PROCESSOR_FIELDS if foreign.get(name) is not None}
    if foreign.get("pad_and_return_pixel_mask") is not None:
        kwargs.setdefault("do_pad", foreign["pad_and_return_pixel_mask"])
    size = foreign.get("size") or 800
    if isinstance(size, int):
        size = {"shortest_edge": size, "longest_edge": foreign.get("max_size") or 1333}
    return {**kwargs, "size": dict(size)}


def _read_folder(folder: Path) -> StateDict:
    for name in _WEIGHT_FILES:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return _read_tensors(folder / name)[0]
        if index.is_file():
            shards = [path_inside(folder, shard, str(index)) for shard in _shards(index)]
            return {key: value for shard in shards for key, value in _read_tensors(shard)[0].items()}
    raise ValueError(f"No weights in {folder}: expected {' or '.join(_WEIGHT_FILES)}.")


def _shards(index: Path) -> list[str]:
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise ValueError(f"{index} must have a `weight_map` of names of tensors to names of files.")
    return sorted(set(weight_map.values()))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"Cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}.")
    return content


def _read_tensors(path: Path) -> tuple[StateDict, dict[str, Any] | None]:
    """One file's tensors, and the reference's arguments if it has them."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path), None
        if zipfile.is_zipfile(path) and any(entry.compress_type for entry in zipfile.ZipFile(path).infolist()):
            raise ValueError("it is compressed, which torch.save does not do, and may be of any size.")
        # The reference's training saves its command line too: a Namespace is attributes and no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch raise anything, KeyError and AssertionError too
        is_pickle = isinstance(error, pickle.UnpicklingError)  # torch's text would advise to trust the file
        reason = "it is not made of tensors and plain values alone" if is_pickle else _first_line(error)
        raise ValueError(f"{path} is no checkpoint, or only a part of one: {reason}") from error
    tensors = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ValueError(f"{path} must hold tensors by name, or such a dict as `model`.")
    arguments = content.get("args")
    if not isinstance(arguments, argparse.Namespace):
        return dict(tensors), None
    given = vars(arguments)
    return dict(tensors), {theirs: given[ours] for ours, theirs in _REFERENCE_ARGUMENTS.items() if ours in given}


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


__all__ = [
    "ConvertedCheckpoint",
    "check_names",
    "compact_classes",
    "convert_checkpoint",
    "convert_state_dict",
    "infer_sizes",
    "processor_kwargs",
    "read_checkpoint",
    "rename",
]
