"""From object embeddings to masks: attention maps over the encoded image, then an FPN-style head.

Follows MHAttentionMap and MaskHeadSmallConv of facebookresearch/detr (29901c5). The same weights give the same masks
up to rounding, but what the queries of an image share is computed once, and the head runs for any list of (image,
query) rows instead of all B x Q:
  * conv([image, attention]) = conv(image) + conv(attention), the first once per image;
  * conv(adapter(skip) + up(x)) = conv(adapter(skip)) + conv(up(x)), the first once per image;
  * a 3x3 convolution after nearest upsampling by two is a transposed 4x4 convolution of the small map with stride 2:
    each pixel of the large map sees 2x2 sources, so there are 4 products instead of 9.

Legend: B images, Q queries, N rows (pairs of image and query), D hidden size, M heads, (h, w) map of stride 32 or 16.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import guard_or_false
from torch.nn import functional as F  # noqa: N812  the field's name for it
from transformers import initialization as init

from .backbone import is_plain

CHUNK_BYTES = {"cpu": 16 * 2**20, "cuda": 512 * 2**20}
"""Size of the largest map of rows that run through the head together in inference (docs/performance.md)."""
MASK_STRIDE = 4  # pixels of the canvas per element of the masks, along each side
SKIPPED_MASK_LOGIT = -1e4
"""Mask logit of queries that the head did not run for: probability 0, finite in half precision, survives resizing."""


class MaskAttention(nn.Module):
    """Multi-head attention from object embeddings to the encoded image, without values: where each object looks."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(hidden_size, hidden_size)
        self.k_proj = nn.Linear(hidden_size, hidden_size)

    def reset_parameters(self) -> None:
        """Initializes the projections as the reference does."""
        for linear in (self.q_proj, self.k_proj):
            init.xavier_uniform_(linear.weight)
            init.zeros_(linear.bias)

    def forward(self, queries: Tensor, encoded: Tensor, mask: Tensor | None) -> Tensor:
        """Computes attention maps (B, Q, M, h, w), whose sum over M, h and w together is 1.

        Takes object embeddings (B, Q, D), the encoded image (B, h, w, D) and its mask (B, h, w), True on the image.
        """
        q = self.q_proj(queries).unflatten(-1, (self.num_heads, -1))  # (B, Q, M, d)
        k = self.k_proj(encoded).unflatten(-1, (self.num_heads, -1))  # (B, h, w, M, d)
        scores = torch.einsum("bqmd,bhwmd->bqmhw", q * q.shape[-1] ** -0.5, k)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min)
        # One softmax over heads *and* pixels: the published weights were trained with competing heads.
        return scores.flatten(2).softmax(-1).view_as(scores)


class BoxHead(nn.Module):
    """Three linear layers from object embeddings to boxes."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(hidden_size, size) for size in (hidden_size, hidden_size, 4))

    def forward(self, x: Tensor) -> Tensor:
        """Computes boxes (..., 4) cxcywh in [0, 1] from embeddings (..., D)."""
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x).sigmoid()


class ConvBlock(nn.Module):
    """3x3 convolution, group norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm = RowGroupNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block: (N, in, h, w) to (N, out, h, w)."""
        return self.norm(self.conv(x)).relu_()

    def convolve_shared(self, shared: Tensor) -> Tensor:
        """Convolves what a whole image shares, the first C channels: (B, C, h, w) to (B, out, h, w)."""
        return F.conv2d(shared, self.conv.weight[:, : shared.shape[1]], self.conv.bias, padding=1)

    def add_own(self, own: Tensor, convolved: Tensor, image_index: Tensor) -> Tensor:
        """Applies the block to [shared, own]: (N, in - C, h, w) and what was shared to (N, out, h, w)."""
        convolved_own = F.conv2d(own, self.conv.weight[:, -own.shape[1] :], padding=1)
        return self.norm(_add_rows(convolved_own, convolved, image_index)).relu_()


class FusionStage(nn.Module):
    """Upsamples the rows, adds the backbone's map of that size, convolves."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.adapter = nn.Conv2d(skip_channels, in_channels, 1)
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm = RowGroupNorm(out_channels)

    def convolve_skip(self, skip: Tensor) -> Tensor:
        """Convolves the backbone's map, once for all rows: (B, skip, 2h, 2w) to (B, out, 2h, 2w)."""
        return self.conv(self.adapter(skip))

    def forward(self, x: Tensor, convolved_skip: Tensor, image_index: Tensor) -> Tensor:
        """Applies the stage to rows: (N, in, h, w) and the result of `convolve_skip` to (N, out, 2h, 2w)."""
        own = convolve_upsampled(x, self.conv.weight, convolved_skip.shape[-2:])
        return self.norm(_add_rows(own, convolved_skip, image_index)).relu_()


class MaskHead(nn.Module):
    """Computes masks; `skip_channels` are those of the backbone's maps of stride 16, 8 and 4."""

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

    def reset_parameters(self) -> None:
        """Initializes the convolutions as the reference does."""
        for conv in [m for m in self.modules() if isinstance(m, nn.Conv2d)]:
            init.kaiming_uniform_(conv.weight, a=1)
            if conv.bias is not None:
                init.zeros_(conv.bias)

    def forward(self, projected: Tensor, attention: Tensor, image_index: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """Computes mask logits (N, 8h, 8w) of rows: attention maps (N, M, h, w) with the image (N,) int64 of each.

        Takes the images' projected features (B, D, h, w) and the backbone's maps (B, C, 2h, 2w), (B, C, 4h, 4w) and
        (B, C, 8h, 8w); odd sizes differ by one.
        """
        compute: Any = self._rows
        if all(type(step.conv) is nn.Conv2d and is_plain(step.conv) for step in (*self.blocks, *self.stages)):
            shared = [self.blocks[0].convolve_shared(projected)]
            shared += [stage.convolve_skip(skip) for stage, skip in zip(self.stages, skips, strict=True)]
        else:
            compute, shared = self._rows_by_module, [projected, *skips]
        if self.gradient_checkpointing and self.training:
            compute = partial(self._gradient_checkpointing_func, compute)
        attention = attention.contiguous(memory_format=torch.channels_last)
        count = self._rows_per_chunk(shared)
        if count is None or count >= attention.shape[0]:
            return compute(attention, image_index, *shared)
        chunks = zip(attention.split(count), image_index.split(count), strict=True)
        return torch.cat([compute(maps, index, *shared) for maps, index in chunks])

    def _rows(self, attention: Tensor, image_index: Tensor, *shared: Tensor) -> Tensor:
        """Computes the mask logits (N, 8h, 8w) of some rows, given what each step shares."""
        x = self.blocks[1](self.blocks[0].add_own(attention, shared[0], image_index))
        for stage, convolved_skip in zip(self.stages, shared[1:], strict=True):
            x = stage(x, convolved_skip, image_index)
        return self.predictor(x)[:, 0]

    def _rows_by_module(self, attention: Tensor, image_index: Tensor, projected: Tensor, *skips: Tensor) -> Tensor:
        """Computes the same with each convolution called as a whole, for adapters (LoRA) and hooks."""
        x = torch.cat((projected[image_index], attention), dim=1)
        for block in self.blocks:
            x = block(x)
        for stage, skip in zip(self.stages, skips, strict=True):
            upsampled = F.interpolate(x, size=skip.shape[-2:])
            x = stage.norm(stage.conv(_add_rows(upsampled, stage.adapter(skip), image_index))).relu_()
        return self.predictor(x)[:, 0]

    def _rows_per_chunk(self, shared: Sequence[Tensor]) -> int | None:
        """Returns how many rows to compute together; None for all, if gradients keep every map or a graph is built."""
        kept = torch.is_grad_enabled() and not (self.gradient_checkpointing and self.training)
        if kept or torch.compiler.is_compiling():
            return None
        row_bytes = max(map_[0].nbytes for map_ in shared)
        return max(1, CHUNK_BYTES.get(shared[0].device.type, CHUNK_BYTES["cpu"]) // row_bytes)


def convolve_upsampled(x: Tensor, weight: Tensor, size: Sequence[int]) -> Tensor:
    """Upsamples to the nearest, then convolves with padding 1: (N, in, h, w) and (out, in, 3, 3) to (N, out, H, W).

    It is fast for a size of 2h or 2h - 1 by 2w or 2w - 1, which strides of two give; others work too.
    """
    doubled = [2 * length for length in x.shape[-2:]]
    odd = [full - length for full, length in zip(doubled, size, strict=True)]
    if min(x.shape[-2:]) < 2 or not all(0 <= cut <= 1 for cut in odd):  # the first stage of a dilated backbone
        return F.conv2d(F.interpolate(x, size=size), weight, padding=1)
    y = F.conv_transpose2d(x, upsampling_kernel(weight), stride=2, padding=1)[..., : size[0], : size[1]]
    # With an odd length the map ends one pixel before the doubled one: its last row or column sees the border.
    if odd[0]:
        last = F.interpolate(x[..., -2:, :], size=(2, size[1]))
        y = _replace_last(y, F.conv2d(last, weight[..., :2, :], padding=(0, 1)), dim=-2)
    if odd[1]:
        last = F.interpolate(x[..., -2:], size=(size[0], 2))
        y = _replace_last(y, F.conv2d(last, weight[..., :2], padding=(1, 0)), dim=-1)
    return y


def _replace_last(y: Tensor, last: Tensor, *, dim: int) -> Tensor:
    """Replaces the last row or column of `y` along `dim`, in place unless compiled."""
    kept = y.narrow(dim, 0, y.shape[dim] - 1)
    if torch.compiler.is_compiling():  # in a graph, writing in place copies the whole map
        return torch.cat((kept, last), dim)
    y.narrow(dim, -1, 1).copy_(last)
    return y


def upsampling_kernel(weight: Tensor) -> Tensor:
    """Returns the kernel of the transposed convolution that equals upsampling by two, then convolving.

    Sums the taps (out, in, 3, 3) that fall on one source pixel to (in, out, 4, 4), for stride 2 and padding 1.
    """
    flipped = weight.flip(-2, -1).transpose(0, 1)  # a transposed convolution runs the kernel backwards
    rows = F.pad(flipped, (0, 0, 0, 1)) + F.pad(flipped, (0, 0, 1, 0))
    return F.pad(rows, (0, 1)) + F.pad(rows, (1, 0))


def _add_rows(own: Tensor, once: Tensor, image_index: Tensor) -> Tensor:
    """Adds to each row (N, C, h, w) the map of its image (B, C, h, w)."""
    return own + (once if once.shape[0] == 1 else once[image_index])


class RowGroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` that also accepts a single value per group, which PyTorch refuses.

    It has eight groups as published; narrower heads, which the reference cannot build, have as many as divide them.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(math.gcd(8, channels), channels)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  the name that the base class gives it
        """Normalizes (N, C, h, w)."""
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


def select_rows(logits: Tensor, mask_queries: str | int) -> Tensor:
    """Selects the queries that get a mask, (N,) int64 ascending indices into B*Q, given logits (B, Q, K+1)."""
    batch, num_queries = logits.shape[:2]
    first = torch.arange(batch, device=logits.device)[:, None] * num_queries
    if mask_queries == "all":
        return (first + torch.arange(num_queries, device=logits.device)).flatten()
    score, kept = object_scores(logits)
    if mask_queries == "kept":
        return kept.flatten().nonzero()[:, 0]
    best = (score + kept).topk(int(mask_queries), dim=1).indices  # kept queries rank before all others
    return (first + best.sort(dim=1).values).flatten()


def object_scores(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the probability of each query's best object class, and whether "no object" has less: (B, Q) each."""
    probs = logits.float().softmax(-1)
    score = probs[..., :-1].amax(-1)
    return score, score >= probs[..., -1]


def spread_rows(masks: Tensor, rows: Tensor, shape: Sequence[int], shown: Tensor | None = None) -> Tensor:
    """Returns masks (N, h, w) as (B, Q, h, w): `SKIPPED_MASK_LOGIT` for queries without row or not `shown` (B*Q,)."""
    batch, num_queries = shape
    if shown is not None:
        masks = masks.masked_fill(~shown[:, None, None], SKIPPED_MASK_LOGIT)
    if guard_or_false(rows.shape[0] == batch * num_queries):  # compilers need not know how many rows there are
        return masks.unflatten(0, (batch, num_queries))
    spread = masks.new_full((batch * num_queries, *masks.shape[1:]), SKIPPED_MASK_LOGIT)
    return spread.index_copy(0, rows, masks).unflatten(0, (batch, num_queries))
