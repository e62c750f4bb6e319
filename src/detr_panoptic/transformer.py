"""The transformer: encoder over the image, decoder over the queries.

Follows models/transformer.py of facebookresearch/detr (29901c5), with these differences:
  * sequences are (B, N, D), and padding masks say True on the image;
  * queries, keys and values have a projection each, not one packed matrix;
  * attention goes through `scaled_dot_product_attention` unless "eager" is asked for;
  * only the published form is here: norm after each block, ReLU, no norm at the end of the encoder.

Legend: B images, Q queries, N cells of the map, L decoder layers, D hidden size, M heads.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the field's name for it
from transformers.modeling_layers import GradientCheckpointingLayer

AttentionFunction = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]


def eager_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Attention written out: (B, M, Q, d), (B, M, N, d), (B, M, N, d) to (B, M, Q, d); `mask` True where seen."""
    return F.dropout(attention_weights(q, k, mask), dropout) @ v


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """`eager_attention` by PyTorch's fused kernels."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


ATTENTION_FUNCTIONS: dict[str, AttentionFunction] = {"eager": eager_attention, "sdpa": sdpa_attention}


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax of the scaled scores: (B, M, Q, d) and (B, M, N, d) to (B, M, Q, N)."""
    scores = torch.einsum("bmqd,bmnd->bmqn", q * q.shape[-1] ** -0.5, k)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1)


class Attention(nn.Module):
    """Multi-head attention with dropout on its weights."""

    def __init__(self, hidden_size: int, num_heads: int, *, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.q_proj = nn.Linear(hidden_size, hidden_size)
        self.k_proj = nn.Linear(hidden_size, hidden_size)
        self.v_proj = nn.Linear(hidden_size, hidden_size)
        self.out_proj = nn.Linear(hidden_size, hidden_size)

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None,
        *,
        attention: AttentionFunction,
        with_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attends from queries (B, Q, D) to keys and values (B, N, D).

        Args:
            queries: (B, Q, D), position included.
            keys: (B, N, D), position included.
            values: (B, N, D).
            mask: (B, 1, 1, N) bool, True where attention may look; None for everywhere.
            attention: computes the attention of projected heads.
            with_weights: also return the weights. They are computed beside the result and never change it.

        Returns:
            (B, Q, D), and the weights (B, M, Q, N) without dropout, or None.
        """
        q = self._split_heads(self.q_proj(queries))
        k = self._split_heads(self.k_proj(keys))
        v = self._split_heads(self.v_proj(values))
        mixed = attention(q, k, v, mask, self.dropout if self.training else 0.0)
        weights = attention_weights(q, k, mask) if with_weights else None
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), weights

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, N, D) -> (B, M, N, d)


class EncoderLayer(GradientCheckpointingLayer):
    """Self-attention over the map, then a feed-forward network."""

    def __init__(self, hidden_size: int, num_heads: int, ffn_dim: int, *, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(hidden_size, num_heads, dropout=dropout)
        self.linear1 = nn.Linear(hidden_size, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, hidden_size)
        self.norm1 = nn.LayerNorm(hidden_size)
        self.norm2 = nn.LayerNorm(hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        mask: Tensor | None,
        *,
        attention: AttentionFunction,
        with_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """One layer over the map (B, N, D); also its attention weights (B, M, N, N), or None."""
        placed = x + position
        attended, weights = self.self_attn(placed, placed, x, mask, attention=attention, with_weights=with_weights)
        x = self.norm1(x + self.dropout(attended))
        x = self.norm2(x + self.dropout(self.linear2(self.dropout(self.linear1(x).relu()))))
        return x, weights


class DecoderLayer(GradientCheckpointingLayer):
    """Self-attention among the queries, cross-attention to the encoded image, a feed-forward network."""

    def __init__(self, hidden_size: int, num_heads: int, ffn_dim: int, *, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(hidden_size, num_heads, dropout=dropout)
        self.cross_attn = Attention(hidden_size, num_heads, dropout=dropout)
        self.linear1 = nn.Linear(hidden_size, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, hidden_size)
        self.norm1 = nn.LayerNorm(hidden_size)
        self.norm2 = nn.LayerNorm(hidden_size)
        self.norm3 = nn.LayerNorm(hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        query_position: Tensor,
        memory: Tensor,
        placed_memory: Tensor,
        mask: Tensor | None,
        *,
        attention: AttentionFunction,
        with_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """One layer over the queries (B, Q, D).

        Returns:
            The queries (B, Q, D), then the weights of self-attention (B, M, Q, Q) and of cross-attention (B, M, Q, N),
            or None each.
        """
        placed = x + query_position
        attended, self_weights = self.self_attn(
            placed, placed, x, None, attention=attention, with_weights=with_weights
        )
        x = self.norm1(x + self.dropout(attended))
        attended, cross_weights = self.cross_attn(
            x + query_position, placed_memory, memory, mask, attention=attention, with_weights=with_weights
        )
        x = self.norm2(x + self.dropout(attended))
        x = self.norm3(x + self.dropout(self.linear2(self.dropout(self.linear1(x).relu()))))
        return x, self_weights, cross_weights


class Encoder(nn.Module):
    """The layers over the map."""

    def __init__(self, num_layers: int, hidden_size: int, num_heads: int, ffn_dim: int, *, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(hidden_size, num_heads, ffn_dim, dropout=dropout) for _ in range(num_layers)
        )

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        mask: Tensor | None,
        *,
        attention: AttentionFunction,
        with_weights: bool = False,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Encodes the map.

        Args:
            x: (B, N, D) projected features.
            position: (B, N, D) position encoding, added to queries and keys of every layer.
            mask: (B, 1, 1, N) bool, True on the image; None without padding.
            attention: computes the attention of projected heads.
            with_weights: also return the attention weights.

        Returns:
            1 + layers maps (B, N, D), the input first, and each layer's weights (B, M, N, N), none if not asked for.
        """
        states, weights = [x], []
        for layer in self.layers:
            x, layer_weights = layer(x, position, mask, attention=attention, with_weights=with_weights)
            states.append(x)
            if layer_weights is not None:
                weights.append(layer_weights)
        return states, weights


class Decoder(nn.Module):
    """The layers over the queries, and the norm that they share."""

    def __init__(self, num_layers: int, hidden_size: int, num_heads: int, ffn_dim: int, *, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(hidden_size, num_heads, ffn_dim, dropout=dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_size)

    def forward(
        self,
        query_position: Tensor,
        memory: Tensor,
        position: Tensor,
        mask: Tensor | None,
        *,
        attention: AttentionFunction,
        with_weights: bool = False,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Turns the learned queries into object embeddings.

        Args:
            query_position: (B, Q, D) learned queries, added to queries and keys of every layer.
            memory: (B, N, D) encoded image.
            position: (B, N, D) position encoding of the image.
            mask: (B, 1, 1, N) bool, True on the image; None without padding.
            attention: computes the attention of projected heads.
            with_weights: also return the attention weights.

        Returns:
            (L, B, Q, D), each layer's queries after the shared norm, [-1] the object embeddings; the weights of
            self-attention (B, M, Q, Q) and of cross-attention (B, M, Q, N) of each layer (empty if not asked).
        """
        x = torch.zeros_like(query_position)
        placed_memory = memory + position
        outputs, self_weights, cross_weights = [], [], []
        for layer in self.layers:
            x, layer_self, layer_cross = layer(
                x, query_position, memory, placed_memory, mask, attention=attention, with_weights=with_weights
            )
            outputs.append(self.norm(x))  # the next layer takes the un-normed value
            if layer_self is not None:
                self_weights.append(layer_self)
                cross_weights.append(layer_cross)
        return torch.stack(outputs), self_weights, cross_weights
