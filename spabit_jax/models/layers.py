"""Building blocks with PyTorch's default initialisers."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from spabit_jax.errors import InputError
from spabit_jax.ops.layer_norm import layer_norm


def uniform(bound: float):
    """Initialiser U(-bound, bound)."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def linear(n_in: int, n_out: int, *, rngs: nnx.Rngs, bias: bool = True) -> nnx.Linear:
    """A linear layer, kernel (n_in, n_out), initialised as ``torch.nn.Linear``: U(±1/√n_in), weight and bias."""
    init = uniform(n_in**-0.5)
    return nnx.Linear(n_in, n_out, use_bias=bias, kernel_init=init, bias_init=init, rngs=rngs)


class LayerNorm(nnx.Module):
    """Over the last axis of n values, as ``torch.nn.LayerNorm``."""

    def __init__(self, n: int):
        self.scale, self.bias = nnx.Param(jnp.ones(n)), nnx.Param(jnp.zeros(n))

    def __call__(self, x: Float[Array, "*B W"]) -> Float[Array, "*B W"]:
        return layer_norm(x.reshape(-1, x.shape[-1]), self.scale[...], self.bias[...]).reshape(x.shape)


def untrained(new_model: Callable[[nnx.Rngs], nnx.Module]):
    """Static part of a model, and a compiled function of a key that makes its parameters: traced once for both.

    InputError for a model with any state but parameters: it would not be kept.
    """

    def make(key):
        graphdef, params, others = nnx.split(new_model(nnx.Rngs(key)), nnx.Param, ...)
        if others := [".".join(map(str, path)) for path, _ in nnx.to_flat_state(others)]:
            raise InputError(f"the model keeps {others[0]}, which is no nnx.Param: only these are trained and kept")
        return graphdef, params

    make = jax.jit(make)
    graphdef, _ = jax.eval_shape(make, jax.random.key(0))
    return graphdef, lambda key: make(key)[1]


def merged(graphdef, params, *, training: bool) -> nnx.Module:
    """The model of ``nnx.split``. In training every ``nnx.Dropout`` drops, and raises where it is given no key."""
    model = nnx.merge(graphdef, params)
    if training:
        model.train()
    else:
        model.eval()
    return model


class MLP(nnx.Module):
    """Linear, ReLU, LayerNorm, Linear: the reference's gene embedding and its heads."""

    def __init__(self, n_in: int, n_hidden: int, n_out: int, *, rngs: nnx.Rngs):
        self.hidden = linear(n_in, n_hidden, rngs=rngs)
        self.norm = LayerNorm(n_hidden)
        self.out = linear(n_hidden, n_out, rngs=rngs)

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        return self.out(self.norm(nnx.relu(self.hidden(x))))
