"""The transformer: an encoder over the image, a decoder over the queries.

Follows models/transformer.py and position_encoding.py of facebookresearch/detr (29901c5), in the published variant:
post-norm, ReLU, no norm at the end of the encoder. Queries, keys and values have separate projections, and attention
goes through transformers' `ALL_ATTENTION_FUNCTIONS`, so `attn_implementation` selects the kernel.

Legend: B images, Q queries, N cells of the map, L decoder layers, D hidden size, M heads. A `mask` has the form that
the attention implementation takes, and is None without padding. `with_weights` asks for attention weights.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the field's name for it
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

TEMPERATURE = 10_000
EPSILON = 1e-6


def sine_position_encoding(mask: Tensor, hidden_size: int) -> Tensor:
    """Encodes the position of each cell within the unpadded part of its image.

    Takes a mask (B, h, w), True on the image, and D, a multiple of 4. Returns (B, D, h, w) float32, of which the first
    half of D encodes the row and the second half the column.
    """
    real = mask.float()
    rows, columns = real.cumsum(1), real.cumsum(2)
    rows = rows / (rows[:, -1:, :] + EPSILON) * (2 * math.pi)
    columns = columns / (columns[:, :, -1:] + EPSILON) * (2 * math.pi)
    return torch.cat((_sines(rows, hidden_size // 2), _sines(columns, hidden_size // 2)), dim=1)


def _sines(phase: Tensor, channels: int) -> Tensor:
    """Returns alternating sines and cosines of falling frequency: phases (B, h, w) to (B, channels, h, w)."""
    pair = torch.arange(channels // 2, dtype=phase.dtype, device=phase.device)
    angle = phase[..., None] / TEMPERATURE ** (2 * pair / channels)  # (B, h, w, channels / 2)
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2).movedim(-1, 1)


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """Computes the softmax of scaled scores: (B, M, Q, d) and (B, M, N, d) to (B, M, Q, N).

    A bool mask is True where attention may look; a float mask is added to the scores.
    """
    scores = torch.einsum("bmqd,bmnd->bmqn", query * query.shape[-1] ** -0.5, key)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    return scores.softmax(-1)


def eager_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor]:
    """Computes attention without a fused kernel: (B, Q, M, d), and the weights (B, M, Q, N) before dropout."""
    weights = attention_weights(query, key, attention_mask)
    mixed = F.dropout(weights, options.get("dropout", 0.0), training=module.training) @ value
    return mixed.transpose(1, 2), weights


class Attention(nn.Module):
    """Multi-head attention with dropout on its weights."""

    is_causal = False  # read by transformers' attention functions, as is `config`

    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.hidden_size
        self.config = config
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def reset_parameters(self) -> None:
        """Initializes the projections as the reference does."""
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            # The reference draws the packed (3D, D) projection at once, which narrows queries, keys and values.
            init.xavier_uniform_(linear.weight, gain=1.0 if linear is self.out_proj else 0.5**0.5)
            init.zeros_(linear.bias)

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Any, *, with_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Attends from queries (B, Q, D) to keys and values (B, N, D); positions are included.

        Returns (B, Q, D), and the weights (B, M, Q, N) before dropout, or None. "eager" returns the weights that it
        used; for "sdpa", which keeps none, they are computed separately. Neither changes the result.
        """
        q, k, v = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, N, D) -> (B, M, N, d)
            for projection, x in ((self.q_proj, queries), (self.k_proj, keys), (self.v_proj, values))
        )
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        dropout = self.dropout if self.training else 0.0
        mixed, weights = attend(self, q, k, v, mask, dropout=dropout, scaling=q.shape[-1] ** -0.5)
        if with_weights and weights is None:
            weights = attention_weights(q, k, mask)
        return self.out_proj(mixed.flatten(2)), weights if with_weights else None


class FeedForwardLayer(GradientCheckpointingLayer):
    """A layer with a feed-forward network."""

    linear1: nn.Linear
    linear2: nn.Linear

    def reset_parameters(self) -> None:
        """Initializes the feed-forward network as the reference does."""
        init.xavier_uniform_(self.linear1.weight)
        init.xavier_uniform_(self.linear2.weight)


class EncoderLayer(FeedForwardLayer):
    """Self-attention over the map, then a feed-forward network."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.linear1 = nn.Linear(config.hidden_size, config.ffn_dim)
        self.linear2 = nn.Linear(config.ffn_dim, config.hidden_size)
        self.norm1 = nn.LayerNorm(config.hidden_size)
        self.norm2 = nn.LayerNorm(config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, position: Tensor, mask: Any, *, with_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Applies the layer to a map (B, N, D); also returns the weights (B, M, N, N), or None."""
        placed = x + position
        attended, weights = self.self_attn(placed, placed, x, mask, with_weights=with_weights)
        x = self.norm1(x + self.dropout(attended))
        x = self.norm2(x + self.dropout(self.linear2(self.dropout(self.linear1(x).relu()))))
        return x, weights


class DecoderLayer(FeedForwardLayer):
    """Self-attention among the queries, cross-attention to the encoded image, a feed-forward network."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.cross_attn = Attention(config)
        self.linear1 = nn.Linear(config.hidden_size, config.ffn_dim)
        self.linear2 = nn.Linear(config.ffn_dim, config.hidden_size)
        self.norm1 = nn.LayerNorm(config.hidden_size)
        self.norm2 = nn.LayerNorm(config.hidden_size)
        self.norm3 = nn.LayerNorm(config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, query_position: Tensor, memory: Tensor, keys: Tensor, mask: Any, *, with_weights: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Applies the layer to queries; also returns the weights (B, M, Q, Q) and (B, M, Q, N), or None each."""
        placed = x + query_position
        attended, self_weights = self.self_attn(placed, placed, x, None, with_weights=with_weights)
        x = self.norm1(x + self.dropout(attended))
        placed = x + query_position
        attended, cross_weights = self.cross_attn(placed, keys, memory, mask, with_weights=with_weights)
        x = self.norm2(x + self.dropout(attended))
        x = self.norm3(x + self.dropout(self.linear2(self.dropout(self.linear1(x).relu()))))
        return x, self_weights, cross_weights


class Encoder(nn.Module):
    """The layers over the map."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))

    def forward(
        self, x: Tensor, position: Tensor, mask: Any, *, with_weights: bool = False
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """Encodes features and their position (B, N, D): the input, each layer's output, their weights."""
        states, weights = [x], []
        for layer in self.layers:
            x, layer_weights = layer(x, position, mask, with_weights=with_weights)
            states.append(x)
            weights.append(layer_weights)
        return states, weights


class DecoderResult(NamedTuple):
    """What the decoder returns for L layers."""

    normed: Tensor  # (L, B, Q, D) after each layer and the shared norm; [-1] are the object embeddings
    states: list[Tensor]  # L+1 x (B, Q, D), the queries before each layer, then the object embeddings
    self_weights: list[Tensor | None]  # L x (B, M, Q, Q) if requested
    cross_weights: list[Tensor | None]  # L x (B, M, Q, N) if requested


class Decoder(nn.Module):
    """The layers over the queries, and the norm that they share."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(
        self, query_position: Tensor, memory: Tensor, position: Tensor, mask: Any, *, with_weights: bool = False
    ) -> DecoderResult:
        """Turns learned queries (B, Q, D) into object embeddings, given encoded image and position (B, N, D)."""
        x = torch.zeros_like(query_position)
        keys = memory + position
        states, normed, weights = [x], [], []
        for layer in self.layers:
            x, *own_weights = layer(x, query_position, memory, keys, mask, with_weights=with_weights)
            states.append(x)
            normed.append(self.norm(x))  # the next layer takes the un-normed value
            weights.append(own_weights)
        return DecoderResult(torch.stack(normed), [*states[:-1], normed[-1]], *map(list, zip(*weights, strict=True)))
