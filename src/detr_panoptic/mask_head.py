"""From object embeddings to masks: attention maps over the encoded image, then an FPN-style head.

Follows MHAttentionMap and MaskHeadSmallConv of facebookresearch/detr (29901c5): the same weights give the same masks,
to rounding. The arithmetic is arranged so that what queries share is computed once per image, and the head takes any
list of (image, query) rows, not all B x Q of them:
  * conv([image, attention]) = conv(image) + conv(attention): the image's part once per image;
  * conv(adapter(skip) + up(x)) = conv(adapter(skip)) + conv(up(x)): the skip's part once per image;
  * a 3x3 convolution after nearest upsampling by two is a transposed 4x4 convolution of the small map with stride 2:
    every pixel of the large map sees 2x2 sources, so 4 products take the place of 9;
  * maps are channels-last in memory, as they come from the backbone.

Legend: B images, Q queries, N rows (pairs of image and query), D hidden size, M heads, (h, w) map of stride 32 or 16.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the field's name for it

CHUNK_BYTES = {"cpu": 16 * 2**20, "cuda": 512 * 2**20}
"""The largest map of the rows that go through the head together when memory is to be saved, by type of device: enough
to keep the cores busy, on a CPU few enough that the maps stay in its cache (docs/performance.md). A row of R50's head
at 800x1066 has 3.4 MB."""


class MaskAttention(nn.Module):
    """Where each object looks: multi-head attention of object embeddings over the encoded image, scores only."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(hidden_size, hidden_size)
        self.k_proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, queries: Tensor, encoded: Tensor, mask: Tensor | None) -> Tensor:
        """Attends from each object to the encoded image.

        Args:
            queries: (B, Q, D) object embeddings.
            encoded: (B, h, w, D) encoded image.
            mask: (B, h, w) bool, True on the image; None without padding.

        Returns:
            (B, Q, M, h, w), non-negative; sums to 1 over M, h and w together.
        """
        q = self.q_proj(queries).unflatten(-1, (self.num_heads, -1))  # (B, Q, M, d)
        k = self.k_proj(encoded).unflatten(-1, (self.num_heads, -1))  # (B, h, w, M, d)
        scores = torch.einsum("bqmd,bhwmd->bqmhw", q * q.shape[-1] ** -0.5, k)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min)
        # One softmax over heads *and* pixels: the released weights were trained with heads competing.
        return scores.flatten(2).softmax(-1).view_as(scores)


class ConvBlock(nn.Module):
    """3x3 convolution, group norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm = _group_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, h, w) to (N, out, h, w)."""
        return self.norm(self.conv(x)).relu_()

    def convolve_shared(self, shared: Tensor) -> Tensor:
        """The image's share of the convolution: (B, C, h, w), the first C channels, to (B, out, h, w)."""
        return F.conv2d(shared, self.conv.weight[:, : shared.shape[1]], self.conv.bias, padding=1)

    def add_own(self, own: Tensor, convolved: Tensor, image_index: Tensor) -> Tensor:
        """The block on [shared, own] along the channels.

        Args:
            own: (N, in - C, h, w) what is each row's own.
            convolved: (B, out, h, w) what `convolve_shared` returned for the images.
            image_index: (N,) the image of each row.

        Returns:
            (N, out, h, w).
        """
        convolved_own = F.conv2d(own, self.conv.weight[:, -own.shape[1] :], padding=1)
        return self.norm(_add_rows(convolved_own, convolved, image_index)).relu_()


class FusionStage(nn.Module):
    """Upsample the rows, add the image's map of that size, convolve."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.adapter = nn.Conv2d(skip_channels, in_channels, 1)
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm = _group_norm(out_channels)

    def convolve_skip(self, skip: Tensor) -> Tensor:
        """The image's share of the convolution: (B, skip, 2h, 2w) to (B, out, 2h, 2w), once for all rows."""
        return self.conv(self.adapter(skip))

    def forward(self, x: Tensor, convolved_skip: Tensor, image_index: Tensor) -> Tensor:
        """Rows (N, in, h, w) to (N, out, 2h, 2w), given what `convolve_skip` returned for their images."""
        own = convolve_upsampled(x, self.conv.weight, convolved_skip.shape[-2:])
        return self.norm(_add_rows(own, convolved_skip, image_index)).relu_()


class MaskHead(nn.Module):
    """Attention maps and features of the image to mask logits.

    Args:
        hidden_size: D, channels of the projected map.
        num_heads: M, attention maps per row.
        skip_channels: channels of the backbone's maps of stride 16, 8 and 4.
    """

    def __init__(self, hidden_size: int, num_heads: int, skip_channels: Sequence[int]) -> None:
        super().__init__()
        width = hidden_size + num_heads
        widths = [hidden_size // 2, hidden_size // 4, hidden_size // 8, hidden_size // 16]
        self.blocks: Any = nn.ModuleList([ConvBlock(width, width), ConvBlock(width, widths[0])])
        self.stages: Any = nn.ModuleList(
            FusionStage(c_in, c_skip, c_out)
            for c_in, c_skip, c_out in zip(widths[:-1], skip_channels, widths[1:], strict=True)
        )
        self.predictor = nn.Conv2d(widths[-1], 1, 3, padding=1)
        self.gradient_checkpointing = False  # transformers sets it, and with it the next
        self._gradient_checkpointing_func: Any = None

    def forward(self, projected: Tensor, attention: Tensor, image_index: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """Mask logits of the given rows.

        Args:
            projected: (B, D, h, w) projected features of the images.
            attention: (N, M, h, w) attention maps of the rows.
            image_index: (N,) int64, the image of each row.
            skips: maps of the backbone, (B, C, 2h, 2w), (B, C, 4h, 4w), (B, C, 8h, 8w) or thereabouts.

        Returns:
            (N, 8h, 8w) logits, of the last skip's size.
        """
        shared = [self.blocks[0].convolve_shared(projected)]
        shared += [stage.convolve_skip(skip) for stage, skip in zip(self.stages, skips, strict=True)]
        compute: Any = self._rows
        if self.gradient_checkpointing and self.training:
            compute = partial(self._gradient_checkpointing_func, self._rows)
        attention = attention.contiguous(memory_format=torch.channels_last)
        count = self._rows_per_chunk(shared, attention.shape[0])
        if count >= attention.shape[0]:  # nothing to split, and no number of chunks that an export would fix
            return compute(attention, image_index, *shared)
        chunks = zip(attention.split(count), image_index.split(count), strict=True)
        return torch.cat([compute(maps, index, *shared) for maps, index in chunks])

    def _rows(self, attention: Tensor, image_index: Tensor, *shared: Tensor) -> Tensor:
        """Mask logits (N, 8h, 8w) of some rows, given what each step shares."""
        x = self.blocks[1](self.blocks[0].add_own(attention, shared[0], image_index))
        for stage, convolved_skip in zip(self.stages, shared[1:], strict=True):
            x = stage(x, convolved_skip, image_index)
        return self.predictor(x)[:, 0]

    def _rows_per_chunk(self, shared: Sequence[Tensor], rows: int) -> int:
        # Where a gradient keeps every map, chunks save nothing; a compiler fuses what they keep in cache, and would
        # write each of them out.
        kept = torch.is_grad_enabled() and not (self.gradient_checkpointing and self.training)
        if kept or torch.compiler.is_compiling():
            return max(rows, 1)
        row_bytes = max(map_[0].nbytes for map_ in shared)
        return max(1, CHUNK_BYTES.get(shared[0].device.type, CHUNK_BYTES["cpu"]) // row_bytes)


def convolve_upsampled(x: Tensor, weight: Tensor, size: Sequence[int]) -> Tensor:
    """Upsamples to the nearest, then convolves: (N, in, h, w) to (N, out, H, W).

    Args:
        x: the small map.
        weight: (out, in, 3, 3) of a convolution with padding 1.
        size: (H, W), of any size. Fast for 2h or 2h - 1 and 2w or 2w - 1, which is all that strides of two make.
    """
    doubled = [2 * length for length in x.shape[-2:]]
    odd = [full - length for full, length in zip(doubled, size, strict=True)]
    if min(x.shape[-2:]) < 2 or not all(0 <= cut <= 1 for cut in odd):  # the first stage of a dilated backbone
        return F.conv2d(F.interpolate(x, size=size), weight, padding=1)
    y = F.conv_transpose2d(x, upsampling_kernel(weight), stride=2, padding=1)[..., : size[0], : size[1]]
    # The map ends one pixel before the doubled one, and the last row or column has to see the border there.
    if odd[0]:
        last = F.interpolate(x[..., -2:, :], size=(2, size[1]))
        y = _replace_last(y, F.conv2d(last, weight[..., :2, :], padding=(0, 1)), dim=-2)
    if odd[1]:
        last = F.interpolate(x[..., -2:], size=(size[0], 2))
        y = _replace_last(y, F.conv2d(last, weight[..., :2], padding=(1, 0)), dim=-1)
    return y


def _replace_last(y: Tensor, last: Tensor, *, dim: int) -> Tensor:
    """`y`, its own to change, with the last row or column of `dim` replaced."""
    kept = y.narrow(dim, 0, y.shape[dim] - 1)
    if torch.compiler.is_compiling():  # a graph would write the whole map anew, and in ONNX turn it twice before
        return torch.cat((kept, last), dim)
    y.narrow(dim, -1, 1).copy_(last)
    return y


def upsampling_kernel(weight: Tensor) -> Tensor:
    """The kernel of the transposed convolution that equals upsampling by two and then convolving.

    Args:
        weight: (out, in, 3, 3) of a convolution with padding 1.

    Returns:
        (in, out, 4, 4), for `conv_transpose2d` with stride 2 and padding 1: the 3x3 taps that fall on one source pixel
        are summed.
    """
    flipped = weight.flip(-2, -1).transpose(0, 1)  # a transposed convolution runs the kernel backwards
    rows = F.pad(flipped, (0, 0, 0, 1)) + F.pad(flipped, (0, 0, 1, 0))
    return F.pad(rows, (0, 1)) + F.pad(rows, (1, 0))


def _add_rows(own: Tensor, once: Tensor, image_index: Tensor) -> Tensor:
    """Adds to each row (N, C, h, w) what its image (B, C, h, w) computed once."""
    return own + (once if once.shape[0] == 1 else once[image_index])


class RowGroupNorm(nn.GroupNorm):
    """`nn.GroupNorm`, also of one value: a map of one cell, in one channel per group, which PyTorch's refuses."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  the name that the base class gives it
        """(N, C, h, w), normalized."""
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


def _group_norm(channels: int) -> nn.GroupNorm:
    # Eight groups as published; narrower heads, which the reference cannot build, take as many as divide them.
    return RowGroupNorm(math.gcd(8, channels), channels)
