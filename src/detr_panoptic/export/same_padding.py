"""Convolutions with TensorFlow's padding (timm's `tf_` models) in a form whose shapes can be traced.

timm divides a length by the stride as a fraction and rounds it up. Of a free length PyTorch's solver of shapes cannot
simplify that: the shape behind each convolution holds the one before it, several times over, and an EfficientNet takes
so long to trace that nobody waits for it. In whole numbers everything cancels: on a canvas of a multiple of the
coarsest stride the padding of each layer is a constant.
"""

from __future__ import annotations

from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the field's name for it


class WholeNumberConv2dSame(Conv2dSame):
    """timm's `Conv2dSame`, bit for bit."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) to (B, out, ceil(h / stride), ceil(w / stride))."""
        rows, columns = (
            _missing(length, *sizes)
            for length, *sizes in zip(x.shape[-2:], self.kernel_size, self.stride, self.dilation, strict=True)
        )
        before, after = (columns // 2, rows // 2), (columns - columns // 2, rows - rows // 2)
        padded = F.pad(x, (before[0], after[0], before[1], after[1]))
        return self._conv_forward(padded, self.weight, self.bias)


def pad_in_whole_numbers(model: nn.Module) -> None:
    """Makes each `Conv2dSame` of a model one that can be traced, in place; weights and their names stay."""
    for module in model.modules():
        if type(module) is Conv2dSame:
            module.__class__ = WholeNumberConv2dSame


def _missing(length: int, kernel: int, stride: int, dilation: int) -> int:
    """Cells that an axis lacks, so that a kernel of that width has one place for every `stride` cells."""
    return max((-(length // -stride) - 1) * stride + (kernel - 1) * dilation + 1 - length, 0)
