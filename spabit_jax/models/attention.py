"""Cross-attention between image and gene tokens, and the Transformer's layer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from spabit_jax.models.layers import LayerNorm, linear


def attend(query, key, value, mask=None, dropout=None, dropout_key=None):
    """Scaled dot-product attention: (B, H, Q, d), (B, H, K, d), (B, H, K, d), mask (K,) or None → (B, H, Q, d)."""
    if key.shape[2] == 1 and mask is None:  # whatever the score: XLA then leaves out what leads to it
        weight = jnp.ones((*query.shape[:3], 1), query.dtype)
    else:
        score = jnp.einsum("bhqd,bhkd->bhqk", query, key) * query.shape[-1] ** -0.5
        if mask is not None:
            score = jnp.where(mask, score, -jnp.inf)
        weight = jax.nn.softmax(score, axis=-1)
    if dropout is not None:
        weight = dropout(weight, rngs=dropout_key)
    return jnp.einsum("bhqk,bhkd->bhqd", weight, value)


def split_heads(x, heads: int):
    """(B, L, heads · d) → (B, heads, L, d)."""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def merge_heads(x):
    """(B, H, L, d) → (B, L, H · d)."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


class CrossAttention(nnx.Module):
    """Queries of one kind of token over keys and values of the other; LayerNorm on the output, no residual."""

    def __init__(self, width: int, heads: int, dropout: float, *, rngs: nnx.Rngs):
        self.heads = heads
        self.query = linear(width, width, rngs=rngs)
        self.key = linear(width, width, rngs=rngs)
        self.value = linear(width, width, rngs=rngs)
        self.out = linear(width, width, rngs=rngs)
        self.norm = LayerNorm(width)
        self.dropout = nnx.Dropout(dropout)

    def __call__(
        self, x: Float[Array, "B Q W"], context: Float[Array, "B K W"], *, key: jax.Array | None = None
    ) -> Float[Array, "B Q W"]:
        """In training the key is for dropout on the attention weights."""
        query, keys, values = (
            split_heads(layer(tokens), self.heads)
            for layer, tokens in ((self.query, x), (self.key, context), (self.value, context))
        )
        mixed = attend(query, keys, values, dropout=self.dropout, dropout_key=key)
        return self.norm(self.out(merge_heads(mixed)))


class TransformerLayer(nnx.Module):
    """Pre-norm self-attention and feed-forward part (exact GELU), each with a residual."""

    def __init__(self, width: int, heads: int, head_width: int, feedforward_width: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.attention_norm = LayerNorm(width)
        self.qkv = linear(width, 3 * heads * head_width, bias=False, rngs=rngs)
        self.attention_out = linear(heads * head_width, width, rngs=rngs)
        self.feedforward_norm = LayerNorm(width)
        self.feedforward_hidden = linear(width, feedforward_width, rngs=rngs)
        self.feedforward_out = linear(feedforward_width, width, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B L W"], mask: Bool[Array, " L"] | None = None, wanted: int | None = None
    ) -> Float[Array, "B K W"]:
        """All tokens, or the first K that are wanted; tokens where the mask is False are not attended to."""
        qkv = self.qkv(self.attention_norm(x))
        query, key, value = (split_heads(part, self.heads) for part in jnp.split(qkv, 3, axis=-1))
        x = x[:, :wanted] + self.attention_out(merge_heads(attend(query[:, :, :wanted], key, value, mask)))
        hidden = nnx.gelu(self.feedforward_hidden(self.feedforward_norm(x)), approximate=False)
        return x + self.feedforward_out(hidden)
