"""The convolutional backbone: a timm model cut after its last stage.

Follows models/backbone.py of facebookresearch/detr (29901c5), with these differences:
  * any timm model with maps of strides 4, 8, 16 and 32 serves, not only torchvision's ResNets;
  * frozen are the parameters up to the end of the stride-4 stage, found by the order of definition: for a ResNet
    the stem and layer1, as in the reference;
  * a frozen batch norm keeps the epsilon of its layer. That is the reference's 1e-5 for every ResNet; weights that
    were trained with another epsilon (tf_efficientnet: 1e-3) need their own;
  * a frozen batch norm after a convolution scales the convolution's weight instead of its output: 23 M products for
    a ResNet-50, where the maps of an 800x1066 image are 190 M. Nothing is kept between calls, so weights may change
    and be saved as ever, gradients flow, and training and inference give the same bits;
  * maps are channels-last in memory, which is how the fast kernels of CPU and GPU want them.
"""

from collections import Counter
from typing import Any

import timm
import torch
from timm.layers import Format, FrozenBatchNormAct2d, freeze_batch_norm_2d
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812  the field's name for it
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle
from torchvision.ops import FrozenBatchNorm2d

from .box_ops import at_least_float32

STRIDES = (4, 8, 16, 32)
DILATED_STRIDES = (4, 8, 16, 16)
PROBE_SIZE = (224, 224)  # (H, W) of an image for a model that does not say what it takes


class Backbone(nn.Module):
    """Images to four maps of features.

    Args:
        name: timm's name of the model.
        dilation: keep the last stage at stride 16 (DC5).
        num_channels: channels of the images.
        pretrained: fetch timm's weights.

    Raises:
        ValueError: timm does not know the model, or it has no such maps.
    """

    def __init__(self, name: str, *, dilation: bool = False, num_channels: int = 3, pretrained: bool = False) -> None:
        super().__init__()
        body = _create_feature_extractor(name, dilation=dilation, num_channels=num_channels, pretrained=pretrained)
        expected = DILATED_STRIDES if dilation else STRIDES
        features: Any = body.feature_info
        strides = tuple(features.reduction())
        if strides != expected:
            raise ValueError(f"`backbone` must have feature maps of strides {expected}, got {strides} from {name!r}.")
        statistics: Any = body.pretrained_cfg
        self.image_statistics = {"image_mean": list(statistics["mean"]), "image_std": list(statistics["std"])}
        self.channels: list[int] = features.channels()
        self._first_stage: str = features.module_name()[0].replace(".", "_")
        self._channels_last_output = getattr(body, "output_fmt", None) == Format.NHWC  # Swin and its kin
        self.body = freeze_batch_norm_2d(body)
        fold_frozen_norms(self.body, num_channels=num_channels)
        self.freeze_stem()
        self._keep_initial_weights()

    def freeze_stem(self) -> None:
        """Takes the gradient from every parameter up to the end of the stride-4 stage."""
        names = [name for name, _ in self.body.named_parameters()]
        first_stage = [i for i, name in enumerate(names) if name.replace(".", "_").startswith(self._first_stage + "_")]
        last = max(first_stage, default=-1)
        for parameter in list(self.body.parameters())[: last + 1]:
            parameter.requires_grad_(False)

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Maps (B, C_i, H/s, W/s) of strides 4, 8, 16 and 32 from images (B, 3, H, W); the last is 16 if dilated."""
        maps = self.body(pixel_values.contiguous(memory_format=torch.channels_last))
        return [m.permute(0, 3, 1, 2) for m in maps] if self._channels_last_output else maps

    def _keep_initial_weights(self) -> None:
        # timm has initialized, or fetched, what it built: transformers shall not draw it anew. On the meta device
        # there is nothing yet, and the checkpoint fills it.
        for module in self.body.modules():
            tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            module._is_hf_initialized = all(not tensor.is_meta for tensor in tensors)


class NormalizedConv2d(nn.Conv2d):
    """A convolution that does the affine part of the frozen batch norm after it."""

    norms: tuple[Any]
    """The norm, in a tuple: it is registered where timm put it, and saved under that name alone."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) to (B, out, h', w'), normalized."""
        (norm,) = self.norms
        tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        weight, bias, mean, variance = (at_least_float32(tensor) for tensor in tensors)
        scale = weight * (variance + norm.eps).rsqrt()
        shift = bias - mean * scale
        if self.bias is not None:
            shift = shift + self.bias * scale
        folded = at_least_float32(self.weight) * scale[:, None, None, None]
        return self._conv_forward(x, folded.to(self.weight.dtype), shift.to(self.weight.dtype))


class AppliedNorm2d(FrozenBatchNorm2d):
    """A frozen batch norm that the convolution before it has applied."""

    def forward(self, x: Tensor) -> Tensor:
        """The input."""
        return x


class AppliedNormAct2d(FrozenBatchNormAct2d):
    """A frozen batch norm with activation, of which the activation is left to do."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w), activated."""
        return self.act(self.drop(x))


def fold_frozen_norms(body: nn.Module, *, num_channels: int = 3) -> None:
    """Lets each convolution do the affine part of the frozen batch norm that alone reads it, in place.

    Parameters, buffers and their names stay. Where `body` cannot run without values, everything stays.

    Args:
        body: frozen already.
        num_channels: of the images that it takes.
    """
    applied = {FrozenBatchNorm2d: AppliedNorm2d, FrozenBatchNormAct2d: AppliedNormAct2d}
    for conv, norm in _normalized_convolutions(body, num_channels):
        conv.__class__ = NormalizedConv2d
        conv.norms = (norm,)
        norm.__class__ = applied[type(norm)]


class _Readers(TorchFunctionMode):
    """While a network runs: which modules, or other code, read the output of each of some modules.

    Modes and hooks belong to one thread and one network. `torch.fx` replaces methods of every `nn.Module` while it
    traces: a model that another thread runs meanwhile fails.
    """

    def __init__(self) -> None:
        super().__init__()
        self.runs: Counter[nn.Module] = Counter()
        self.readers: dict[nn.Module, list[nn.Module | None]] = {}
        """By the module whose output is read; None for code that is not one of the watched modules."""
        # By the number of the tensor; as these stay alive, no number comes twice.
        self._writers: dict[int, tuple[nn.Module, Tensor]] = {}
        self._inside = 0

    def watch(self, module: nn.Module) -> list[RemovableHandle]:
        """Notes what this module reads and who reads its output."""
        return [module.register_forward_pre_hook(self._enter), module.register_forward_hook(self._leave)]

    def read(self, value: object, reader: nn.Module | None) -> None:
        """Notes that a tensor is read, if a watched module wrote it."""
        module, tensor = self._writers.get(id(value), (None, None))
        if module is not None and tensor is value:
            self.readers.setdefault(module, []).append(reader)

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        for value in args:
            self.read(value, module)
        self._inside += 1

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG002
        self._inside -= 1
        self.runs[module] += 1
        self._writers[id(output)] = (module, output)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the function; its tensors are read unless a watched module is at work."""
        if not self._inside:
            for value in tree_leaves((args, kwargs)):
                self.read(value, None)
        return func(*args, **(kwargs or {}))


def _normalized_convolutions(body: nn.Module, num_channels: int) -> list[tuple[Any, Any]]:
    """Convolutions with the frozen norm that reads their output, where nothing else does and each runs once."""
    norms = (FrozenBatchNorm2d, FrozenBatchNormAct2d)
    # A hook may read what no code does: timm takes the maps of some models so.
    convs = [m for m in body.modules() if type(m) is nn.Conv2d and not m._forward_hooks]
    frozen = [m for m in body.modules() if type(m) in norms and not m._forward_pre_hooks]
    if not frozen:
        return []
    uses = _Readers()
    handles = [handle for module in (*convs, *frozen) for handle in uses.watch(module)]
    try:
        _run_without_values(body, num_channels, uses)
    except Exception:  # whatever a model says that cannot run so: its norms stay as they are
        return []
    finally:
        for handle in handles:
            handle.remove()
    pairs = []
    for conv in convs:
        match uses.readers.get(conv):
            case [nn.Module() as norm] if type(norm) in norms and uses.runs[conv] == uses.runs[norm] == 1:
                pairs.append((conv, norm))
    return pairs


def _run_without_values(body: nn.Module, num_channels: int, uses: _Readers) -> None:
    """One forward on the meta device, where tensors have shapes and nothing is computed; `body` stays as it is."""
    sides = getattr(body, "pretrained_cfg", {}).get("input_size", (num_channels, *PROBE_SIZE))[1:]
    image = torch.empty(1, num_channels, *sides, device="meta")
    tensors = dict([*body.named_parameters(), *body.named_buffers()])
    with uses:
        maps = functional_call(body, {name: tensor.to("meta") for name, tensor in tensors.items()}, (image,))
        for value in maps:
            uses.read(value, None)


def _create_feature_extractor(name: str, *, dilation: bool, num_channels: int, pretrained: bool) -> nn.Module:
    if not name.replace(".", "_").isidentifier():
        raise ValueError(f"`backbone` must be the name of a timm model, not where to fetch one, got {name!r}.")
    # Not every architecture takes `output_stride`: ask for it only where it says something.
    stride: dict[str, Any] = {"output_stride": DILATED_STRIDES[-1]} if dilation else {}
    try:
        return timm.create_model(
            name,
            pretrained=pretrained,
            features_only=True,
            out_indices=(-4, -3, -2, -1),
            in_chans=num_channels,
            **stride,
        )
    except (RuntimeError, TypeError, AttributeError, AssertionError) as error:
        raise ValueError(
            f"`backbone` must be a timm model with four feature maps{' that can be dilated' if dilation else ''}, "
            f"got {name!r}: {error}"
        ) from error


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Padding of the images at the size of a map: (B, H, W) bool to (B, h, w) bool, True on the image.

    Nearest, as the reference takes it: a cell counts as image when its first pixel does.
    """
    return F.interpolate(mask[:, None].float(), size=size)[:, 0].bool()
