"""Reads the tensors, the config and the image processor's settings of a DETR checkpoint from disk or from the Hub.

Sources are the `.pth` files of facebookresearch/detr (29901c5), and folders that transformers 4 or 5 saves for
`DetrForSegmentation` and `DetrForObjectDetection`. Nothing is unpickled but tensors and plain values.
"""

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

from ..data import folders
from ..data.contained_paths import path_inside
from ..data.hub_names import hub_name
from ..data.plain_text import first_line

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
CHECKPOINT_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
#: Command-line arguments that the reference saves in its training checkpoints, by the names of DetrConfig.
_REFERENCE_ARGUMENTS = {
    "backbone": "backbone",
    "dilation": "dilation",
    "position_embedding": "position_embedding_type",
    "pre_norm": "normalize_before",
    "nheads": "encoder_attention_heads",
    "dropout": "dropout",
    "aux_loss": "auxiliary_loss",
    **{f"set_cost_{cost}": f"{cost}_cost" for cost in ("class", "bbox", "giou")},
    **{f"{loss}_loss_coef": f"{loss}_loss_coefficient" for loss in ("bbox", "giou", "mask", "dice")},
    "eos_coef": "eos_coefficient",
}
PROCESSOR_FIELDS = (
    *(f"do_{step}" for step in ("resize", "rescale", "normalize", "pad")),
    *("resample", "rescale_factor", "image_mean", "image_std"),
)


def local_checkpoint(source: str | Path, **hub_arguments: Any) -> Path:
    """Returns the file or folder of a checkpoint; one on the Hub is downloaded with the options of its client.

    Raises:
        ValueError: there is no such file or folder, and it is not the name of a repository.
        OSError: the repository cannot be reached.
    """
    path = Path(source)
    if path.exists():
        return path
    if not hub_name(str(source)) or path.suffix in CHECKPOINT_SUFFIXES:
        raise ValueError(f"`source` must be a file, a folder or OWNER/NAME on the Hub, got {str(source)!r}.")
    # Only one kind of weights: many repositories hold the same weights in both formats.
    for weights in ("*.safetensors", "*.bin"):
        path = Path(snapshot_download(str(source), allow_patterns=["*.json", weights], **hub_arguments))
        if any(path.glob(weights)):
            break
    return path


def read_checkpoint(source: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Reads the tensors of a folder or file, and the config in it.

    Args:
        source: a folder with `config.json` and `model.safetensors` or `pytorch_model.bin`, in one piece or in shards;
            or a `.pth`, `.bin` or `.safetensors` file.

    Returns:
        Tensors by their own names, and the config in the names of transformers' `DetrConfig`; None without one.

    Raises:
        ValueError: a file is missing or cannot be read; names it.
    """
    if not source.is_dir():
        return _read_tensors(source)
    for name in WEIGHT_FILES:
        index = source / f"{name}.index.json"
        if (source / name).is_file():
            files = [source / name]
        elif index.is_file():
            shards: Any = read_json(index).get("weight_map")
            if not isinstance(shards, dict):
                raise ValueError(f"{index} must have a `weight_map` from names of tensors to names of files.")
            files = [path_inside(source, shard, str(index)) for shard in sorted(set(map(str, shards.values())))]
        else:
            continue
        tensors = {key: value for file in files for key, value in _read_tensors(file)[0].items()}
        return tensors, read_json(source / "config.json")
    raise ValueError(f"No weights in {source}: expected {' or '.join(WEIGHT_FILES)}.")


def processor_settings(foreign: Mapping[str, Any]) -> dict[str, Any]:
    """Translates the `preprocessor_config.json` of transformers' DETR to arguments of our image processor.

    Reads the old spellings too: `size` as a number with `max_size`, and `pad_and_return_pixel_mask`.

    Raises:
        ValueError: it is the processor of another model.
    """
    kind = foreign.get("image_processor_type") or foreign.get("feature_extractor_type") or "DetrImageProcessor"
    if not kind.startswith(("DetrImageProcessor", "DetrFeatureExtractor")):
        raise ValueError(f"The image processor must be a DetrImageProcessor, got {kind}.")
    kwargs = {name: foreign[name] for name in (*PROCESSOR_FIELDS, "pad_size") if foreign.get(name) is not None}
    if foreign.get("pad_and_return_pixel_mask") is not None:
        kwargs.setdefault("do_pad", foreign["pad_and_return_pixel_mask"])
    size = foreign.get("size") or 800
    if isinstance(size, int):
        size = {"shortest_edge": size, "longest_edge": foreign.get("max_size") or 1333}
    return {**kwargs, "size": dict(size)}


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; ValueError if there is none."""
    content = folders.read_json(path)
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
        reason = "it holds more than tensors and plain values" if is_pickle else first_line(error)
        raise ValueError(f"{path} is not a complete checkpoint: {reason}") from error
    tensors = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ValueError(f"{path} must hold tensors by name, or a dict of them as `model`.")
    if not isinstance(arguments := content.get("args"), SimpleNamespace):
        return tensors, None
    given = vars(arguments)
    return tensors, {theirs: given[ours] for ours, theirs in _REFERENCE_ARGUMENTS.items() if ours in given}
