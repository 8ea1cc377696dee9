"""Building blocks with PyTorch's default initialisers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

LAYER_NORM_EPS = 1e-5


def uniform(bound: float):
    """Initialiser U(-bound, bound)."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class Linear(nnx.Linear):
    """Over the last axis, as one matrix product: with more axes XLA's gradient on a CPU copies transposes."""

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], self.out_features)


def linear(n_in: int, n_out: int, *, rngs: nnx.Rngs, bias: bool = True) -> Linear:
    """A linear layer, kernel (n_in, n_out), initialised as ``torch.nn.Linear``: U(±1/√n_in), weight and bias."""
    init = uniform(n_in**-0.5)
    return Linear(n_in, n_out, use_bias=bias, kernel_init=init, bias_init=init, rngs=rngs)


def layer_norm(n: int, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm over the last axis, as ``torch.nn.LayerNorm``; plain two-pass variance, which agrees in float32."""
    return nnx.LayerNorm(n, epsilon=LAYER_NORM_EPS, use_fast_variance=False, rngs=rngs)


def dropout(x: Float[Array, "*B"], rate: float, key: jax.Array | None) -> Float[Array, "*B"]:
    """Zeros with probability ``rate``, the rest scaled to keep the mean; x itself where there is no key.

    Random numbers are most of its cost on a CPU: it draws 16 bits a value, of both words that threefry gives.
    """
    if key is None or not rate:
        return x
    n_kept = round((1 - rate) * 2**16)
    with jax.threefry_partitionable(False):
        bits = jax.random.bits(key, x.shape, jnp.uint16)
    return jnp.where(bits < n_kept, x * (2**16 / n_kept), 0)


class MLP(nnx.Module):
    """Linear, ReLU, LayerNorm, Linear: the reference's gene embedding and its heads."""

    def __init__(self, n_in: int, n_hidden: int, n_out: int, *, rngs: nnx.Rngs):
        self.hidden = linear(n_in, n_hidden, rngs=rngs)
        self.norm = layer_norm(n_hidden, rngs=rngs)
        self.out = linear(n_hidden, n_out, rngs=rngs)

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        return self.out(self.norm(nnx.relu(self.hidden(x))))
