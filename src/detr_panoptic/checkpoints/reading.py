"""Reads the tensors, the config and the image processor's settings of a DETR checkpoint from disk or from the Hub.

Sources are the `.pth` files of facebookresearch/detr (29901c5), and folders that transformers 4 or 5 saves for
`DetrForSegmentation` and `DetrForObjectDetection`. Nothing is unpickled but tensors and plain values.
"""

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from torch import Tensor

from ..data.contained_paths import path_inside
from ..data.hub_names import hub_name

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
CHECKPOINT_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
PROCESSOR_FILE = "preprocessor_config.json"
#: Command-line arguments that the reference saves in its training checkpoints, by the names of DetrConfig.
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


def local_checkpoint(source: str | Path, **hub_arguments: Any) -> Path:
    """Returns the file or folder of a checkpoint, downloaded if `source` names a repository on the Hub.

    Args:
        source: a path, or OWNER/NAME on the Hub.
        **hub_arguments: `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        ValueError: there is no such file or folder, and it is not the name of a repository.
        OSError: the repository cannot be reached.
    """
    path = Path(source)
    if path.exists():
        return path
    if not hub_name(str(source)) or path.suffix in CHECKPOINT_SUFFIXES:
        raise ValueError(f"`source` must be a file, a folder or OWNER/NAME on the Hub, got {str(source)!r}.")
    return fetch_checkpoint(str(source), **hub_arguments)


def fetch_checkpoint(name: str, **hub_arguments: Any) -> Path:
    """Downloads a repository's checkpoint, or finds it in the cache.

    Args:
        name: OWNER/NAME on the Hub.
        **hub_arguments: `revision`, `token`, `cache_dir`, `local_files_only`.

    Returns:
        The folder in the cache.

    Raises:
        OSError: the repository cannot be reached.
    """
    # Only one kind of weights: many repositories hold the same weights in both formats.
    for weights in ("*.safetensors", "*.bin"):
        folder = Path(snapshot_download(name, allow_patterns=["*.json", weights], **hub_arguments))
        if any(folder.glob(weights)):
            break
    return folder


def read_checkpoint(source: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Reads the tensors of a folder or file, and the config in or beside it.

    Args:
        source: a folder with `config.json` and `model.safetensors` or `pytorch_model.bin`, in one piece or in shards;
            or a `.pth`, `.bin` or `.safetensors` file.

    Returns:
        Tensors by their own names, and the config in the names of transformers' `DetrConfig`; None without one.

    Raises:
        ValueError: it does not exist or cannot be read; names the file.
    """
    if source.is_dir():
        return _read_folder(source), _read_json(source / "config.json")
    if not source.is_file():
        raise ValueError(f"No checkpoint at {source}: expected a folder or a file.")
    return _read_tensors(source)


def read_processor_settings(source: Path) -> dict[str, Any]:
    """Returns arguments of our image processor from the one saved in or beside a checkpoint; none without one.

    Raises:
        ValueError: it cannot be read, or belongs to another model; names the file.
    """
    path = (source if source.is_dir() else source.parent) / PROCESSOR_FILE
    if not path.is_file():
        return {}
    try:
        return processor_settings(_read_json(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def processor_settings(foreign: Mapping[str, Any]) -> dict[str, Any]:
    """Translates the `preprocessor_config.json` of transformers' DETR to arguments of our image processor.

    Reads the old spellings too: `size` as a number with `max_size`, and `pad_and_return_pixel_mask`.

    Raises:
        ValueError: it is the processor of another model.
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


def _read_folder(folder: Path) -> dict[str, Tensor]:
    for name in WEIGHT_FILES:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return _read_tensors(folder / name)[0]
        if index.is_file():
            shards = [path_inside(folder, shard, str(index)) for shard in _shards(index)]
            return {key: value for shard in shards for key, value in _read_tensors(shard)[0].items()}
    raise ValueError(f"No weights in {folder}: expected {' or '.join(WEIGHT_FILES)}.")


def _shards(index: Path) -> list[str]:
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise ValueError(f"{index} must have a `weight_map` from names of tensors to names of files.")
    return sorted(set(weight_map.values()))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"Cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}.")
    return content


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Returns the tensors of one file, and the reference's arguments if it has them."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path), None
        if zipfile.is_zipfile(path) and any(entry.compress_type for entry in zipfile.ZipFile(path).infolist()):
            raise ValueError("it is compressed, which torch.save never does.")  # a small file could fill the memory
        # The reference's training also saves its command line, as a Namespace: attributes and no code.
        with torch.serialization.safe_globals([(SimpleNamespace, "argparse.Namespace")]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch raise anything, KeyError and AssertionError too
        is_pickle = isinstance(error, pickle.UnpicklingError)  # torch's text would advise to trust the file
        reason = "it holds more than tensors and plain values" if is_pickle else _first_line(error)
        raise ValueError(f"{path} is not a complete checkpoint: {reason}") from error
    tensors = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ValueError(f"{path} must hold tensors by name, or a dict of them as `model`.")
    arguments = content.get("args")
    if not isinstance(arguments, SimpleNamespace):
        return dict(tensors), None
    given = vars(arguments)
    return dict(tensors), {theirs: given[ours] for ours, theirs in _REFERENCE_ARGUMENTS.items() if ours in given}


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
