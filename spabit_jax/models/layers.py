"""Building blocks with PyTorch's default initialisers."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

LAYER_NORM_EPS = 1e-5
_matmul = partial(jnp.matmul, precision="highest")  # some devices would round to 10 bits


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


class LayerNorm(nnx.Module):
    """Over the last axis of n values, as ``torch.nn.LayerNorm``."""

    def __init__(self, n: int):
        self.scale, self.bias = nnx.Param(jnp.ones(n)), nnx.Param(jnp.zeros(n))

    def __call__(self, x: Float[Array, "*B W"]) -> Float[Array, "*B W"]:
        return normalised(x.reshape(-1, x.shape[-1]), self.scale[...], self.bias[...]).reshape(x.shape)


@jax.custom_vjp
def normalised(x: Float[Array, "N W"], scale: Float[Array, "W"], bias: Float[Array, "W"]):
    """Rows at mean 0 and variance 1, times scale, plus bias.

    All sums are products with a vector, in the gradient too: XLA's own sums are several times slower on a CPU.
    """
    return _normalised_forward(x, scale, bias)[0]


def _normalised_forward(x, scale, bias):
    centred = x - _row_means(x)
    inverse_sd = jax.lax.rsqrt(_row_means(centred**2) + LAYER_NORM_EPS)
    unit = centred * inverse_sd
    return unit * scale + bias, (unit, inverse_sd, scale)


def _normalised_backward(residuals, gradient):
    unit, inverse_sd, scale = residuals
    to_unit = gradient * scale
    to_x = inverse_sd * (to_unit - _row_means(to_unit) - unit * _row_means(to_unit * unit))
    ones = jnp.ones(len(unit), unit.dtype)
    return to_x, _matmul(ones, gradient * unit), _matmul(ones, gradient)


def _row_means(x):
    return _matmul(x, jnp.full((x.shape[1], 1), 1 / x.shape[1], x.dtype))


normalised.defvjp(_normalised_forward, _normalised_backward)


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
        self.norm = LayerNorm(n_hidden)
        self.out = linear(n_hidden, n_out, rngs=rngs)

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        return self.out(self.norm(nnx.relu(self.hidden(x))))
