"""Several seeds at once, on one device or many: seeds and the spots of a batch divided over a mesh of all devices.

The mesh is that of every process that ``jax.distributed`` has joined. Between the calls of a chunk each seed's state is
whole on every device: it is saved, looked at and restored as that of a seed trained alone, on any number of devices.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from spabit_jax.training.fit import Epoch, FitState, after_epoch

SEED, BATCH = "seed", "batch"
SHARE_OF_FREE_MEMORY = 0.8  # that an estimate may take


def seeds_at_once() -> bool:
    """Whether seeds are trained together; on one CPU device that is no faster than one after the other."""
    return jax.device_count() > 1 or jax.default_backend() != "cpu"


def make_mesh(n_seeds: int) -> Mesh:
    """All devices: along ``seed`` as many as the seeds can fill, along ``batch`` the rest."""
    n = jax.device_count()
    along = max(k for k in range(1, min(n, n_seeds) + 1) if n % k == 0)
    return jax.make_mesh((along, n // along), (SEED, BATCH), axis_types=(AxisType.Auto, AxisType.Auto))


def spread(mesh: Mesh, spots: jax.Array) -> jax.Array:
    """(B,) spots of a batch, inside of ``jax.jit``, divided over the mesh."""
    return jax.lax.with_sharding_constraint(spots, NamedSharding(mesh, PartitionSpec(BATCH)))


def group(seeds: list[int], mesh: Mesh, state: FitState, residuals) -> tuple[list[list[int]], int]:
    """Divides seeds into groups as large as the memory of a device allows.

    A device holds, of all the group's seeds, the state between two chunks; of those that it trains, the state again, a
    gradient, an update and the values that the backward pass of a batch keeps (all of them, as if the batch were not
    divided). Where the device does not tell its memory, as a CPU does not, all seeds are one group.

    Args:
      state: of a seed; arrays or their shapes.
      residuals: pytree of the values that a backward pass keeps; arrays or their shapes.

    Returns:
      The groups; the size to which each is filled up, a multiple of the mesh's axis ``seed``: one compilation for all.
    """
    along = mesh.shape[SEED]
    size = len(seeds)
    if memory := jax.local_devices()[0].memory_stats():
        trained = n_bytes(state) + 2 * n_bytes(state.params) + n_bytes(residuals)
        free = SHARE_OF_FREE_MEMORY * (memory["bytes_limit"] - memory["bytes_in_use"])
        size = max(1, along * int(free // (along * n_bytes(state) + trained)))
    n_groups = -(-len(seeds) // size)
    size = -(-len(seeds) // n_groups)
    return [part.tolist() for part in np.array_split(seeds, n_groups)], -(-size // along) * along


def n_bytes(tree) -> int:
    """Of all arrays, or shapes of arrays, in a pytree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def make_chunk_of_seeds(epoch_fn: Epoch, mesh: Mesh, data_axes):
    """As ``fit.make_chunk`` for S seeds: ``chunk(states, data, keys, n)`` of S states and keys gives S states.

    A state that is stopped, or at its last epoch, stays as it is.

    Args:
      epoch_fn: of one seed; its batches divided by ``spread``.
      data_axes: of the seeds in ``data``, as ``in_axes`` of ``jax.vmap``.
    """
    everywhere, divided = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(SEED))

    def epoch(state: FitState, data, key) -> FitState:
        ended = state.stopped | (state.epoch >= len(state.losses))
        return jax.tree.map(partial(jnp.where, ended), state, after_epoch(epoch_fn, state, data, key))

    @partial(jax.jit, static_argnames="n", donate_argnames="states", out_shardings=everywhere)
    def jitted(states, data, keys, n):
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        stacked = jax.lax.with_sharding_constraint(stacked, divided)
        epochs = jax.vmap(epoch, in_axes=(0, data_axes, 0), spmd_axis_name=SEED)
        keys = jax.random.wrap_key_data(keys)
        stacked, _ = jax.lax.scan(lambda states, _: (epochs(states, data, keys), None), stacked, length=n)
        return [jax.tree.map(lambda leaf: leaf[i], stacked) for i in range(len(states))]

    def chunk(states: list[FitState], data, keys: list[jax.Array], n: int) -> list[FitState]:
        seconds = [state.seconds for state in states]  # each process has its own
        states = [state._replace(seconds=None) for state in states]
        key_data = np.stack([jax.random.key_data(key) for key in keys])
        states = jitted(*jax.device_put((states, data, key_data), everywhere), n)
        return [state._replace(seconds=mine) for state, mine in zip(states, seconds, strict=True)]

    return chunk
