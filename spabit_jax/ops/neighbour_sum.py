"""The sum that graph attention makes over the neighbours of each node."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import jraph
from jaxtyping import Array, Float


def plain(weight: Float[Array, "E H"], x: Float[Array, "N H F"], senders, receivers) -> Float[Array, "N H F"]:
    """Sum over the edges of each receiver of weight · x[sender]; edges sorted by receiver."""
    return jraph.segment_sum(weight[..., None] * x[senders], receivers, len(x), indices_are_sorted=True)


@jax.custom_vjp
@jax.jit
def neighbour_sum(weight: Float[Array, "E H"], x: Float[Array, "N H F"], senders, receivers):
    """Sum over the edges of each receiver of weight · x[sender]: (N, H, F); edges sorted by receiver.

    On a CPU, where XLA scatters row by row on one core, all nodes take their k-th edge at a time; its gradients are
    sums of the same kind, over the edges turned round, and dot products in pieces that fit into the cache.
    """
    return jax.lax.platform_dependent(weight, x, senders, receivers, cpu=_sum_by_rank, default=plain)


def _sum_by_rank(weight, x, senders, receivers, unroll: int = 4):
    if not len(senders):
        return jnp.zeros_like(x)
    first = jnp.searchsorted(receivers, jnp.arange(len(x) + 1))
    first, degree = first[:-1], jnp.diff(first)

    def add(i, total):
        for k in range(unroll):
            is_edge = unroll * i + k < degree
            # a node without a k-th edge reads its first again, which is in the cache
            edge = jnp.minimum(first + jnp.where(is_edge, unroll * i + k, 0), len(senders) - 1)
            total += jnp.where(is_edge[:, None], weight[edge], 0)[..., None] * x[senders[edge]]
        return total

    return jax.lax.fori_loop(0, -(-degree.max() // unroll), add, jnp.zeros_like(x))


@partial(jax.jit, static_argnames="piece")
def _edge_dots(a: Float[Array, "N H F"], b: Float[Array, "N H F"], senders, receivers, piece: int = 256):
    """a[receiver] · b[sender] of each edge and head: (E, H)."""
    ends = (receivers, senders)
    ones = jnp.ones(a.shape[-1], a.dtype)

    def dots(ends):
        return (a[ends[0]] * b[ends[1]]) @ ones  # a sum over the last axis is several times slower on a CPU

    def in_pieces(*ends):
        return jax.lax.map(dots, ends, batch_size=piece)

    return jax.lax.platform_dependent(*ends, cpu=in_pieces, default=lambda *ends: dots(ends))


def _neighbour_sum_forward(weight, x, senders, receivers):
    return neighbour_sum(weight, x, senders, receivers), (weight, x, senders, receivers)


def _neighbour_sum_backward(residuals, gradient):
    weight, x, senders, receivers = residuals
    order = jnp.argsort(senders, stable=True)
    to_x = neighbour_sum(weight[order], gradient, receivers[order], senders[order])
    return _edge_dots(gradient, x, senders, receivers), to_x, None, None


neighbour_sum.defvjp(_neighbour_sum_forward, _neighbour_sum_backward)
