"""TensorFlow's "same" padding (timm's `tf_` models) in a form whose shapes can be traced.

timm divides a length by the stride as a float and rounds up. PyTorch's shape solver cannot simplify that for a free
length: the shape after each convolution contains the shape before it several times, and an EfficientNet takes too
long to trace. In integers everything cancels: on a canvas of a multiple of 32 the padding of each layer is a constant.
"""

import copy

from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the field's name for it

from ..modeling_detr_panoptic import DetrPanopticForSegmentation


class WholeNumberConv2dSame(Conv2dSame):
    """Computes the same bits as timm's `Conv2dSame`."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in, h, w) to (B, out, ceil(h / stride), ceil(w / stride))."""
        rows, columns = (
            _missing(length, *sizes)
            for length, *sizes in zip(x.shape[-2:], self.kernel_size, self.stride, self.dilation, strict=True)
        )
        before, after = (columns // 2, rows // 2), (columns - columns // 2, rows - rows // 2)
        return self._conv_forward(F.pad(x, (before[0], after[0], before[1], after[1])), self.weight, self.bias)


def traceable_copy(model: DetrPanopticForSegmentation) -> DetrPanopticForSegmentation:
    """Returns a copy of a model on CPU, in evaluation mode, that `torch.export` traces to a short graph."""
    model = copy.deepcopy(model).cpu().eval()
    # The fused kernel is traced as a graph with more steps, which handle cases that cannot occur here.
    model.set_attn_implementation("eager")
    pad_in_whole_numbers(model)
    return model


def pad_in_whole_numbers(model: nn.Module) -> None:
    """Replaces each `Conv2dSame` of a model in place by one that can be traced. Weights keep their names."""
    for module in model.modules():
        if type(module) is Conv2dSame:
            module.__class__ = WholeNumberConv2dSame


def _missing(length: int, kernel: int, stride: int, dilation: int) -> int:
    """Returns the padding of an axis with which a kernel has one position for every `stride` cells."""
    return max((-(length // -stride) - 1) * stride + (kernel - 1) * dilation + 1 - length, 0)
