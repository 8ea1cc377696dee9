"""Several seeds at once, on one device or many: seeds, and the spots of a batch, divided over a mesh of all devices.

The devices are those of every process that ``jax.distributed`` has joined. Between the calls of a chunk each seed's
state is whole on every device: it is looked at, saved and restored like that of a seed trained alone, whatever the
number of devices.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from spabit_jax.errors import InputError
from spabit_jax.training.fit import Epoch, FitState, after_epoch

SEED, BATCH = "seed", "batch"
SHARE_OF_FREE_MEMORY = 0.8  # that the estimate of ``seeds_that_fit`` may take


def check_backend() -> None:
    """InputError where JAX has no device, because JAX_PLATFORMS asks for one that is not here."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where no package for the GPU is there
        asked, reason = os.environ.get("JAX_PLATFORMS", ""), " ".join(str(error).split())[:200] or "no such device"
        raise InputError(f"JAX_PLATFORMS={asked} cannot be had here ({reason}): unset it") from error


@contextmanager
def plain_jax() -> Iterator[None]:
    """JAX as it is by itself, whatever the user has set in this process for work of another kind."""
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.transfer_guard("allow"),
        jax.default_prng_impl("threefry2x32"),
        jax.debug_nans(False),  # losses that are not there are NaN
    ):
        yield


def seeds_at_once() -> bool:
    """Whether seeds are trained together; on one CPU device that is no faster than one after the other."""
    return jax.device_count() > 1 or jax.default_backend() != "cpu"


def make_mesh(n_seeds: int) -> Mesh:
    """All devices: along ``seed`` as many as the seeds can fill, along ``batch`` the rest."""
    n = jax.device_count()
    along = max(k for k in range(1, min(n, n_seeds) + 1) if n % k == 0)
    return jax.make_mesh((along, n // along), (SEED, BATCH), axis_types=(AxisType.Auto, AxisType.Auto))


def everywhere(tree, mesh: Mesh):
    """Arrays whole on every device of the mesh; where it spans processes, each brings the same."""
    whole = NamedSharding(mesh, PartitionSpec())
    if whole.is_fully_addressable:
        return jax.device_put(tree, whole)

    def put(leaf):  # device_put compares what the processes bring, and finds NaN unequal
        there = isinstance(leaf, jax.Array) and leaf.sharding == whole
        return leaf if there else jax.make_array_from_process_local_data(whole, np.asarray(leaf))

    return jax.tree.map(put, tree)


def spread(spots: jax.Array) -> jax.Array:
    """(B,) spots, in a chunk of ``make_chunk_of_seeds``, divided over the mesh; so is then what is computed of them."""
    return jax.lax.with_sharding_constraint(spots, PartitionSpec(BATCH))


def seeds_that_fit(n_seeds: int, mesh: Mesh, state: FitState, residuals, memory: dict | None) -> int:
    """How many of the seeds the memory of a device allows to be trained at once.

    A device holds, of all seeds, the state between two chunks; of those that it trains, the state again, a gradient, an
    update, and the values that the backward pass of a batch keeps (all of them, as if the batch were not divided).

    Args:
      state: of a seed, arrays or their shapes.
      residuals: pytree of the values that a backward pass keeps, arrays or their shapes.
      memory: of ``jax.Device.memory_stats``; None, as on a CPU, allows all.
    """
    if memory is None:
        return n_seeds
    along, whole = mesh.shape[SEED], _n_bytes(state)
    trained = whole + 2 * _n_bytes(state.params) + _n_bytes(residuals)
    free = SHARE_OF_FREE_MEMORY * (memory["bytes_limit"] - memory["bytes_in_use"])
    fit = max(1, along * int(free // (along * whole + trained)))
    return min(n_seeds, int(multihost_utils.broadcast_one_to_all(np.int32(fit))))


def _n_bytes(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def make_chunk_of_seeds(epoch_fn: Epoch, mesh: Mesh):
    """As ``fit.make_chunk``, for S seeds: ``chunk(states, (data, own), keys, n)`` gives their S states.

    ``own`` are, for each seed, the fields of the data, a NamedTuple, in which it differs from other seeds. A state that
    has stopped, or is at its last epoch, stays as it is. Seeds that do not fill the mesh are filled up with the last.
    """
    whole = NamedSharding(mesh, PartitionSpec())

    def epoch(data, state: FitState, own, key) -> FitState:
        ended = state.stopped | (state.epoch >= len(state.losses))
        after = after_epoch(epoch_fn, state, data._replace(**own), jax.random.wrap_key_data(key))
        return jax.tree.map(partial(jnp.where, ended), state, after)

    def epochs(n, data, seeds):  # of the seeds of a device, which waits for no other seeds
        states, *own_and_keys = seeds
        step = jax.vmap(partial(epoch, data))
        return jax.lax.scan(lambda states, _: (step(states, *own_and_keys), None), states, length=n)[0]

    @partial(jax.jit, static_argnames="n", donate_argnames="states", out_shardings=whole)
    def jitted(states, data, own, keys, n):
        seeds = list(zip(states, own, keys, strict=True))
        seeds += seeds[-1:] * (-len(seeds) % mesh.shape[SEED])
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds)
        stacked = jax.lax.with_sharding_constraint(stacked, whole)  # else XLA divides it otherwise, and exchanges all
        stacked = _divided(partial(epochs, n), mesh, SEED)(data, stacked)
        stacked = jax.lax.with_sharding_constraint(stacked, whole)
        return [jax.tree.map(itemgetter(i), stacked) for i in range(len(states))]

    def chunk(states: list[FitState], data, keys: list[jax.Array], n: int) -> list[FitState]:
        seconds = [state.seconds for state in states]  # each process has its own
        states = everywhere([state._replace(seconds=None) for state in states], mesh)
        states = jitted(states, *data, [np.asarray(jax.random.key_data(key)) for key in keys], n)
        return [state._replace(seconds=mine) for state, mine in zip(states, seconds, strict=True)]

    return chunk


def over_devices(apply):
    """Jits ``apply((params, data), (spots, valid))``: each of this process's devices gets its part of the spots.

    ``params`` and ``data`` are to lie ``on_each``, and the number of spots is a multiple of that of devices.
    """
    return jax.jit(apply if jax.local_device_count() == 1 else _divided(apply, _local_mesh(), BATCH))


def on_each(tree):
    """Arrays whole on each of this process's devices."""
    return tree if jax.local_device_count() == 1 else everywhere(tree, _local_mesh())


def _local_mesh() -> Mesh:
    return jax.make_mesh((jax.local_device_count(),), (BATCH,), (AxisType.Auto,), devices=jax.local_devices())


def _divided(function, mesh: Mesh, axis: str):
    """``function(whole, parts)`` with the first axis of the parts, and of what it returns, divided over the mesh's."""
    part = PartitionSpec(axis)
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(PartitionSpec(), part),
        out_specs=part,
        axis_names={axis},
        check_vma=False,  # jnp.searchsorted fails under the check
    )
