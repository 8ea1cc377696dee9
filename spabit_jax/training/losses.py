"""Losses of training by name. A new one is a function and ``register_loss``."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from spabit_jax.data.components import Space
from spabit_jax.errors import InputError

# (predicted scores (B, P), measured expression (B, G), the space that they are scores in) -> a number
Loss = Callable[[jax.Array, jax.Array, Space], jax.Array]


def mean_squared_error(predicted: jax.Array, expression: jax.Array, space: Space) -> jax.Array:
    """Of the scores."""
    return jnp.mean((predicted - space.encode(expression)) ** 2)


LOSSES: dict[str, Loss] = {"mse": mean_squared_error}
BUILT_IN = tuple(LOSSES)


def register_loss(name: str, loss: Loss) -> None:
    """Makes a loss known as ``config.train.loss=NAME``.

    Args:
      loss: of predicted scores (B, P) of B spots, their measured expression (B, G) on the scale of
        ``config.data.scale``, and the ``Space`` whose ``decode`` makes expression of scores; the mean over the spots.

    Raises:
      InputError: the name is one of the library's.
    """
    if name in BUILT_IN:
        raise InputError(f"register_loss({name!r}): the name is taken: give another one")
    LOSSES[name] = loss


def find_loss(name: str) -> Loss:
    """The loss of that name; InputError that lists the known ones if there is none."""
    if name not in LOSSES:
        raise InputError(f"config.train.loss is {name!r}: known losses are {', '.join(LOSSES)}")
    return LOSSES[name]
