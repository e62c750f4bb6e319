"""A model's inference copy for a CPU: layers with their norms, activations and sums in one oneDNN kernel each.

PyTorch computes a convolution, a sum and an activation one after the other and brings the weights into oneDNN's order
in every call; matrix products and 1x1 convolutions in float32 go to another library, which takes two to three times as
long on some processors. The copy calls oneDNN with weights in the order that suits the first input. It shares what it
does not replace with the model, but later changes of the model's weights do not reach it.
"""

import copy
from typing import Any

import torch
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from ..backbone import ConvNorm, is_plain
from ..modeling_detr_panoptic import DetrPanopticForSegmentation

DTYPES = (torch.float32, torch.bfloat16)


def can_fuse(model: nn.Module) -> bool:
    """Returns whether a model can be copied: it is on a CPU, no layer is hooked, and PyTorch has oneDNN."""
    tensors = [*model.parameters()]
    on_cpu = all(tensor.device.type == "cpu" and tensor.dtype in DTYPES for tensor in tensors)
    half = any(tensor.dtype == torch.bfloat16 for tensor in tensors)
    available = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    known = on_cpu and available and (not half or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return known and all(map(is_plain, model.modules()))


class FusedConv(nn.Module):
    """A convolution with fixed weights, then the sum with another map and ReLU if asked for."""

    def __init__(self, conv: nn.Conv2d, weight: Tensor, bias: Tensor | None, *, activation: str = "none") -> None:
        super().__init__()
        self.where = (list(map(int, conv.padding)), list(conv.stride), list(conv.dilation), conv.groups)
        self.weight = conv.weight.detach()  # which others read the type of
        self.unordered: Any = weight.detach()
        self.ordered: Any = None
        self.bias = None if bias is None else bias.detach()
        self.activation = activation

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """Convolves (B, in, h, w) to (B, out, h', w')."""
        unordered = self.unordered
        if unordered is not None:
            self.ordered = torch.ops.mkldnn._reorder_convolution_weight(unordered, *self.where, list(x.shape))
            self.unordered = None  # last, for other threads
        convolve: Any = torch.ops.mkldnn._convolution_pointwise
        if added is None:
            return convolve(x, self.ordered, self.bias, *self.where, self.activation, [], "")
        return convolve.binary(x, added, self.ordered, self.bias, *self.where, "add", 1.0, self.activation, [], "")


class FusedLinear(nn.Module):
    """A linear layer with fixed weights."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight.detach()  # which some of timm's layers read
        self.ordered: Any = None
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layer: (..., in) to (..., out)."""
        if self.ordered is None:
            self.ordered = torch.ops.mkldnn._reorder_linear_weight(self.weight, x[..., 0].numel())
        return torch.ops.mkldnn._linear_pointwise(x, self.ordered, self.bias, "none", [], "")


class FusedBlock(nn.Module):
    """A block of a ResNet: convolutions with ReLU, and the shortcut in the last one."""

    def __init__(self, convolutions: list[nn.Module], shortcut: nn.Module | None) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(convolutions)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block: (B, in, h, w) to (B, out, h', w')."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        for convolution in self.convolutions[:-1]:
            x = convolution(x)
        return self.convolutions[-1](x, shortcut)


def fused_copy(model: DetrPanopticForSegmentation) -> DetrPanopticForSegmentation:
    """Returns a model in evaluation mode whose layers run fused; see `can_fuse`.

    Examples:
        >>> from detr_panoptic import DetrPanopticConfig
        >>> config = DetrPanopticConfig(backbone="test_resnet", num_labels=3)
        >>> fast = fused_copy(DetrPanopticForSegmentation(config).eval())
    """
    backbone, head = model.model.backbone, model.mask_head
    fast_backbone = copy.copy(backbone)
    fast_backbone._fused = (backbone._fused[0], _fused(backbone._fused[1], {}))
    own = {id(step.conv): step.conv for step in (*head.blocks, *head.stages)}  # the head runs parts of their weights
    config = copy.copy(model.config)
    if model.dtype == torch.bfloat16:  # plain products take two thirds of the time of PyTorch's fused attention
        config._attn_implementation = "eager"
    return _fused(model, {id(backbone): fast_backbone, id(model.config): config, **own}).eval()


def _fused(root: Any, replacements: dict[int, Any]) -> Any:
    """Returns a copy of a module with `replacements` by id, and fused layers in place of others."""
    for module in root.modules():
        if id(module) in replacements:
            continue
        replacement = _fused_layer(module)
        owns_tensors = any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False)))
        if replacement is not None:
            replacements[id(module)] = replacement
        elif owns_tensors or next(module.children(), None) is None:
            replacements[id(module)] = module
    return copy.deepcopy(root, replacements)


def _fused_layer(module: Any, activation: str = "none") -> nn.Module | None:
    """Returns the fused layer in place of a module, or None if there is none."""
    if type(module) in (BasicBlock, Bottleneck):
        return _fused_block(module)
    if isinstance(module, ConvNorm) and _is_ordinary(module.conv):
        return FusedConv(module.conv, *module._scaled(), activation=activation)
    if _is_ordinary(module):
        return FusedConv(module, module.weight, module.bias, activation=activation)
    return FusedLinear(module) if type(module) is nn.Linear else None


def _is_ordinary(module: Any) -> bool:
    return type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def _fused_block(block: Any) -> nn.Module | None:
    """Returns the fused block of a ResNet, or None if it has more in it than convolutions and ReLU."""
    numbers = (1, 2, 3) if isinstance(block, Bottleneck) else (1, 2)
    convolutions = [getattr(block, f"conv{i}") for i in numbers]
    between = [block.aa, block.drop_block, *(getattr(block, f"bn{i}") for i in numbers)]
    activations = [getattr(block, f"act{i}") for i in numbers]
    plain = block.se is None and block.drop_path is None and all(type(m) is nn.Identity for m in between)
    ordinary = all(isinstance(conv, ConvNorm) and _is_ordinary(conv.conv) for conv in convolutions)
    if not (plain and ordinary and all(type(act) is nn.ReLU for act in activations)):
        return None
    layers = [_fused_layer(conv, "relu") for conv in convolutions]
    shortcut = None if block.downsample is None else _fused(block.downsample, {})
    return FusedBlock([layer for layer in layers if layer is not None], shortcut)
