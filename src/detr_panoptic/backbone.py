"""The backbone: a timm model cut after its last stage.

Follows models/backbone.py of facebookresearch/detr (29901c5), with these differences (docs/deviations.md has others):
  * any timm model with maps of strides 4, 8, 16 and 32 can be used, not only torchvision's ResNets;
  * the frozen parameters are those up to the end of the stride-4 stage: for a ResNet the stem and layer1, as there;
  * a vision transformer gets a simple feature pyramid (ViTDet, arXiv 2203.16527).
"""

import copy
import operator
from collections.abc import Iterator
from functools import partial
from itertools import chain, pairwise, repeat
from typing import Any

import timm
import torch
from timm.layers import Format, LayerNorm2d
from timm.models import is_model_in_modules
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the field's name for it
from transformers import initialization as init

STRIDES = (4, 8, 16, 32)
DILATED_STRIDES = (4, 8, 16, 16)
VIT_FAMILIES = ("vision_transformer", "deit", "eva")  # timm's modules; DINOv3 is in `eva`
PATCH = 16
"""Patch size of vision transformers, for whole strides. timm resamples weights of other sizes (DINOv2 has 14)."""
_is_vit = partial(is_model_in_modules, module_names=VIT_FAMILIES)


class Backbone(nn.Module):
    """Computes feature maps of strides 4, 8, 16 and 32, or 16 at the end with `dilation` (DC5).

    Raises ValueError if timm does not know a model of that name, or it has no such maps.
    """

    def __init__(self, name: str, *, dilation: bool = False, num_channels: int = 3, pretrained: bool = False) -> None:
        super().__init__()
        self._create = partial(_create_body, name, dilation=dilation, num_channels=num_channels)
        body: Any = self._create(pretrained=pretrained)
        features, expected = body.feature_info, DILATED_STRIDES if dilation else STRIDES
        self._first_stage, self.pyramid = "", None
        if _is_vit(name):
            width: int = body.embed_dim
            self.channels = [width // 4, width // 2, width, width]
            self.pyramid = simple_pyramid(width)
        elif (strides := tuple(features.reduction())) != expected:
            raise ValueError(f"`backbone` must have feature maps of strides {expected}, got {strides} from {name!r}.")
        else:
            self.channels = features.channels()
            self._first_stage = features.module_name()[0].replace(".", "_")
        self.image_statistics = {f"image_{name}": list(body.pretrained_cfg[name]) for name in ("mean", "std")}
        self._channels_last_output = getattr(body, "output_fmt", None) == Format.NHWC  # Swin and its relatives
        self.body: Any = freeze_norms(body)
        # In a tuple, so that it is not registered and checkpoints and adapters (LoRA) see timm's layers alone.
        self._fused = ([*self.body.modules()], fuse_norms(self.body))
        self._watch: Any = [[None]]  # dictionaries of all modules, for `_body_to_run`
        self.freeze_stem()
        self.canvas_multiple = self._find_canvas_multiple(name, expected, num_channels)
        # timm has initialized or downloaded the weights; on the meta device there is nothing yet.
        for module in (self, *self.body.modules()):
            vars(module)["_is_hf_initialized"] = not any(tensor.is_meta for tensor in self.body.parameters())

    def freeze_stem(self) -> None:
        """Turns off the gradient of every parameter up to the end of the stride-4 stage, which a ViT lacks."""
        names = [name for name, _ in self.body.named_parameters()]
        first_stage = [i for i, name in enumerate(names) if name.replace(".", "_").startswith(self._first_stage + "_")]
        for parameter in list(self.body.parameters())[: max(first_stage, default=-1) + 1]:
            parameter.requires_grad_(False)

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Computes maps (B, C_i, H/s, W/s) of strides 4, 8, 16 and 32 (16 if dilated) from images (B, 3, H, W)."""
        maps = self._body_to_run()(pixel_values.contiguous(memory_format=torch.channels_last))
        if self.pyramid is not None:  # these are tokens
            height, width = (length // PATCH for length in pixel_values.shape[-2:])
            last = maps[:, self.body.num_prefix_tokens :].unflatten(1, (height, width)).permute(0, 3, 1, 2)
            return [layers(last) for layers in self.pyramid]
        return [m.permute(0, 3, 1, 2) for m in maps] if self._channels_last_output else maps

    def reset_parameters(self) -> None:
        """Initializes what a checkpoint lacks, as timm does, and the buffers that no checkpoint has."""
        for module in self.body.modules():
            if hasattr(module, "init_non_persistent_buffers"):
                module.init_non_persistent_buffers()
        tensors = self.body.state_dict(keep_vars=True)
        if not all(getattr(tensor, "_is_hf_initialized", False) for tensor in tensors.values()):
            initial = freeze_norms(self._create()).state_dict()
            for name, tensor in tensors.items():
                init.copy_(tensor, initial[name])

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether a vision transformer recomputes its activations in the backward pass; transformers sets it."""
        if self.pyramid is None:
            raise AttributeError("Other bodies have no such attribute.")
        return bool(self.body.grad_checkpointing)

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool) -> None:
        self.body.set_grad_checkpointing(enable)

    def margins(self, pixel_values: Tensor) -> tuple[int, ...]:
        """Returns the padding of `F.pad` that images (B, C, H, W) need if the layers depend on whole strides."""
        height, width = pixel_values.shape[-2:]
        return 0, -width % self.canvas_multiple, 0, -height % self.canvas_multiple

    def padded(self, pixel_values: Tensor, pixel_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Pads images (B, C, H, W) and their mask (B, H, W) at the right and the bottom by `margins`, if any."""
        margins = self.margins(pixel_values)
        if not any(margins):
            return pixel_values, pixel_mask
        mask = torch.ones_like(pixel_values[:, 0], dtype=torch.int64) if pixel_mask is None else pixel_mask
        return F.pad(pixel_values, margins), F.pad(mask, margins)

    @torch.enable_grad()  # so that no scaled weight is kept
    def _find_canvas_multiple(self, name: str, strides: tuple[int, ...], num_channels: int) -> int:
        """Returns 1 if maps of odd sizes are where they should be, otherwise the largest stride."""
        reason: Any = "its maps have other sizes"
        self.eval()
        first = next(self.parameters())
        buffers = {name: buffer.to(first.device) for name, buffer in self.named_buffers()}  # not always on "meta"
        for multiple, size in ((1, (97, 65)), (STRIDES[-1], (160, 224))):
            try:
                maps = torch.func.functional_call(self, buffers, first.new_zeros(1, num_channels, *size))
            except (RuntimeError, AssertionError) as error:
                reason = error
                continue
            is_exact = [[*m.shape[2:]] for m in maps] == [[-(-n // stride) for n in size] for stride in strides]
            if is_exact and not (multiple == 1 and _needs_whole_strides(self.body)):
                self.train()
                return multiple
        raise ValueError(f"`backbone` must have four feature maps at any image size, got {name!r}: {reason}.")

    def train(self, mode: bool = True) -> "Backbone":
        """Switches between training and inference."""
        super().train(mode)
        self._fused[1].train(mode)
        return self

    def _body_to_run(self) -> nn.Module:
        """Returns the body with `ConvNorm`s; the body itself if it is hooked or a replica of `nn.DataParallel`."""
        if getattr(self, "_is_replica", False):
            return self.body
        watch = self._watch  # a tenth of the time of a walk over all modules in every forward; a copy has another body
        if vars(self.body) is not watch[0][0] or watch[1] != [*chain(*map(dict.values, watch[2]))]:
            modules = [*self.body.modules()]
            if modules != self._fused[0]:
                self._fused = modules, fuse_norms(self.body)  # an adapter has wrapped a layer
            parents = [module._modules for module in modules]
            hooks = [hooks for module in modules for hooks in (module._forward_hooks, module._forward_pre_hooks)]
            watch = self._watch = [*map(vars, modules)], [*chain(*map(dict.values, parents))], parents, hooks
        hooked = any(watch[3]) or any(map(operator.contains, watch[0], repeat("forward")))  # not `is_plain`
        return self.body if hooked else self._fused[1]


class FrozenNorm(nn.Module):
    """Batch norm with fixed statistics and affine parameters as buffers, and the activation that timm puts into it."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name).detach().clone())
        self.eps = norm.eps
        self.act: nn.Module = getattr(norm, "act", nn.Identity())

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Returns the norm as a product and a sum: two tensors (C,), float32 or wider."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        scale = self.weight.to(wide) * (self.running_var.to(wide) + self.eps).rsqrt()
        return scale, self.bias.to(wide) - self.running_mean.to(wide) * scale

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes and activates (B, C, h, w)."""
        scale, shift = (values.to(x.dtype)[:, None, None] for values in self.scale_and_shift())
        return self.act(x * scale + shift)


def freeze_norms(module: nn.Module) -> nn.Module:
    """Replaces every batch norm in a module, in place, and returns the module or its own replacement."""
    if isinstance(module, nn.BatchNorm2d):
        return FrozenNorm(module)
    for name, child in module.named_children():
        setattr(module, name, freeze_norms(child))
    return module


class ConvNorm(nn.Module):
    """A convolution and the frozen norm after it as one convolution, without the activation.

    The norm scales the convolution's weight instead of its output: for a ResNet-50 23 M products, where the maps of an
    800x1066 image have 190 M elements. Without gradients the scaled weight is kept until a tensor that it depends on
    changes; a change through `.data` goes unnoticed, as it does in autograd.
    """

    def __init__(self, conv: nn.Conv2d, norm: FrozenNorm) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm
        self._kept: Any = None

    def forward(self, x: Tensor) -> Tensor:
        """Convolves and normalizes: (B, in, h, w) to (B, out, h', w')."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.conv._conv_forward(x, *self._scaled())
        sources = (*self.conv._parameters.values(), *self.norm._buffers.values())
        try:
            versions = [source if source is None else (source._version, source.data_ptr()) for source in sources]
        except RuntimeError:  # tensors of inference mode have no version
            return self.conv._conv_forward(x, *self._scaled())
        kept = self._kept
        if kept is None or kept[0] != versions or not all(map(operator.is_, kept[1], sources)):
            kept = self._kept = versions, sources, self._scaled()
        return self.conv._conv_forward(x, *kept[2])

    def __getstate__(self) -> dict[str, Any]:
        """Returns what copying and pickling keep: all but the scaled weight."""
        return self.__dict__ | {"_kept": None}

    def _scaled(self) -> tuple[Tensor, Tensor]:
        """Returns weight and bias with the norm applied."""
        scale, shift = self.norm.scale_and_shift()
        if self.conv.bias is not None:
            shift = shift + self.conv.bias * scale
        weight = self.conv.weight.to(scale.dtype) * scale[:, None, None, None]
        return weight.to(self.conv.weight.dtype), shift.to(self.conv.weight.dtype)


def fuse_norms(body: nn.Module) -> nn.Module:
    """Returns a network that runs `ConvNorm`s and shares every layer and tensor with the given one, where they are.

    Only modules that do nothing but call others are copied. A norm that follows no convolution stays.
    """
    replacements: dict[int, Any] = {}
    for conv, norm in conv_norm_pairs(body):
        replacements |= {id(conv): ConvNorm(conv, norm), id(norm): norm.act}
    for module in body.modules():
        has_tensors = any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False)))
        if has_tensors or next(module.children(), None) is None:
            replacements.setdefault(id(module), module)
    return copy.deepcopy(body, replacements)


def conv_norm_pairs(body: nn.Module) -> Iterator[tuple[nn.Conv2d, FrozenNorm]]:
    """Yields each convolution with the frozen norm that reads its output.

    In timm's modules the two are neighbors in the order of definition, such as `conv1` and `bn1`, or `0` and `1` of a
    `downsample`. If the first is a sequence of layers, as in the stem of ResNet-D, its last one counts.
    """
    for parent in body.modules():
        for (conv_name, conv), (norm_name, norm) in pairwise(parent.named_children()):
            if conv_name[-1].isdigit() and not norm_name[-1].isdigit():
                continue  # RepViT's `bn` after `conv1` reads a sum of two convolutions
            while isinstance(conv, nn.Sequential) and len(conv):
                conv = conv[-1]
            if type(conv) is nn.Conv2d and isinstance(norm, FrozenNorm) and conv.out_channels == len(norm.weight):
                yield conv, norm


def is_plain(module: nn.Module) -> bool:
    """Returns whether using a module's weights equals calling it: it has no hook and no replaced `forward`."""
    return not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def resize_mask(mask: Tensor | None, features: Tensor) -> Tensor:
    """Resizes a mask (B, H, W) to a map (B, C, h, w): (B, h, w) bool, all True without a mask.

    Uses nearest neighbors as the reference does: a cell counts as image if its first pixel does.
    """
    if mask is None:
        return torch.ones_like(features[:, 0], dtype=torch.bool)
    return F.interpolate(mask[:, None].bool().float(), size=features.shape[-2:])[:, 0].bool()


def image_sizes_of(pixel_values: Tensor, pixel_mask: Tensor | None) -> Tensor:
    """Returns the height and width of each image without its padding: (B, 2) int64."""
    if pixel_mask is None:
        batch, _, height, width = pixel_values.shape  # `len` of a tensor would fix the batch of an exported graph
        lengths = [pixel_values.new_full((batch,), n, dtype=torch.int64) for n in (height, width)]
        return torch.stack(lengths, dim=-1)
    real = pixel_mask.bool()
    return torch.stack((real.any(2).sum(1), real.any(1).sum(1)), dim=-1)


def check_images(pixel_values: Tensor, pixel_mask: Tensor | None, *, num_channels: int) -> None:
    """Raises ValueError unless the images are (B, C, H, W) floats and the mask, if any, is (B, H, W)."""
    if pixel_values.ndim != 4 or pixel_values.shape[1] != num_channels or not pixel_values.is_floating_point():
        raise ValueError(
            f"`pixel_values` must be floating-point numbers of shape (batch, {num_channels}, height, width), "
            f"got {pixel_values.dtype} of shape {tuple(pixel_values.shape)}."
        )
    expected = (pixel_values.shape[0], *pixel_values.shape[2:])
    if pixel_mask is not None and tuple(pixel_mask.shape) != expected:
        raise ValueError(f"`pixel_mask` must have shape {expected} like the images, got {tuple(pixel_mask.shape)}.")


def _needs_whole_strides(body: nn.Module) -> bool:
    """Tells whether a map's cells move with the length of the image modulo the stride, as in ConvNeXt, not ResNet."""
    strided = [m for m in body.modules() if isinstance(m, nn.Conv2d) and max(m.stride) > 1]
    return any(
        type(conv) is not nn.Conv2d
        or tuple(conv.padding) != tuple(d * (k - 1) // 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
        for conv in strided
    )


def simple_pyramid(width: int) -> nn.ModuleList:
    """Returns the layers of ViTDet that turn a map of stride 16 into maps of strides 4, 8, 16 and 32."""
    half = partial(nn.ConvTranspose2d, kernel_size=2, stride=2)
    quarter = (half(width, width // 2), LayerNorm2d(width // 2), nn.GELU(), half(width // 2, width // 4))
    return nn.ModuleList([nn.Sequential(*quarter), half(width, width // 2), nn.Identity(), nn.MaxPool2d(2)])


def _create_body(name: str, *, dilation: bool, num_channels: int, pretrained: bool = False) -> nn.Module:
    if not name.replace(".", "_").isidentifier():
        raise ValueError(f"`backbone` must be the name of a timm model, not a path or address, got {name!r}.")
    options: dict[str, Any] = {"output_stride": DILATED_STRIDES[-1]} if dilation else {}
    options |= {"strict_img_size": False} if name.startswith("swin") else {}
    if _is_vit(name):
        options |= {"patch_size": PATCH, "dynamic_img_size": True}
    else:
        options |= {"features_only": True, "out_indices": (-4, -3, -2, -1)}
    try:
        body: Any = timm.create_model(name, pretrained=pretrained, in_chans=num_channels, **options)
        if _is_vit(name):
            body.prune_intermediate_layers(1)  # drops the classifier
        return body
    except (RuntimeError, TypeError, AttributeError, AssertionError, IndexError) as error:
        text = f"`backbone` must be a timm model with four feature maps{' that can be dilated' * dilation}"
        raise ValueError(f"{text}, got {name!r}: {error}") from error
