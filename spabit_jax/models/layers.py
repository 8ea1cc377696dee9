"""Building blocks with PyTorch's default initialisers."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt

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
def normalised(x: Float[Array, "N W"], scale: Float[Array, " W"], bias: Float[Array, " W"]):
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
    product = gradient * unit
    mean, mean_product = (_matmul(a, scale[:, None]) / len(scale) for a in (gradient, product))
    to_x = inverse_sd * (gradient * scale - mean - unit * mean_product)
    ones = jnp.ones(len(unit), unit.dtype)
    return to_x, _matmul(ones, product), _matmul(ones, gradient)


def _row_means(x):
    return _matmul(x, jnp.full((x.shape[1], 1), 1 / x.shape[1], x.dtype))


normalised.defvjp(_normalised_forward, _normalised_backward)


def dropout(x: Float[Array, "*B"], rate: float, key: jax.Array | None) -> Float[Array, "*B"]:
    """Zeros with probability ``rate``, the rest scaled to keep the mean; x itself where there is no key."""
    if key is None or not rate:
        return x
    n_kept = round((1 - rate) * 2**16)
    return jnp.where(random_bits(key, x.shape) < n_kept, x * (2**16 / n_kept), 0)


@partial(jax.jit, static_argnames="shape", inline=True)
def random_bits(key: jax.Array, shape: tuple[int, ...]) -> UInt[Array, "*B"]:
    """16 random bits a value: those of ``jax.random.bits`` in uint16, for threefry where it is not partitionable.

    On a CPU JAX runs threefry in a loop over arrays; written out for one value XLA fuses it with what uses the bits,
    ten times faster. Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011: threefry2x32, 20 rounds.
    """
    if jax.random.key_impl(key) != "threefry2x32":
        return jax.random.bits(key, shape, jnp.uint16)
    key0, key1 = jax.random.key_data(key)
    schedule = (key0, key1, key0 ^ key1 ^ 0x1BD11BDA)
    n_words = -(-math.prod(shape) // 2)  # two values from each
    n_blocks = -(-n_words // 2)  # two words from each: i and i + n_blocks
    value = jax.lax.iota(jnp.uint32, math.prod(shape))
    word = value >> 1
    block = jnp.where(word < n_blocks, word, word - n_blocks)
    x0 = schedule[0] + block
    x1 = schedule[1] + jnp.where(block + n_blocks < n_words, block + n_blocks, 0)
    for i in range(5):
        for distance in ((13, 15, 26, 6), (17, 29, 16, 24))[i % 2]:
            x0 += x1
            x1 = x0 ^ (x1 << distance | x1 >> 32 - distance)
        x0 += schedule[(i + 1) % 3]
        x1 += schedule[(i + 2) % 3] + (i + 1)
    bits = jnp.where(word < n_blocks, x0, x1) >> 16 * (value & 1)
    return (bits & 0xFFFF).reshape(shape)


class MLP(nnx.Module):
    """Linear, ReLU, LayerNorm, Linear: the reference's gene embedding and its heads."""

    def __init__(self, n_in: int, n_hidden: int, n_out: int, *, rngs: nnx.Rngs):
        self.hidden = linear(n_in, n_hidden, rngs=rngs)
        self.norm = LayerNorm(n_hidden)
        self.out = linear(n_hidden, n_out, rngs=rngs)

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        return self.out(self.norm(nnx.relu(self.hidden(x))))
