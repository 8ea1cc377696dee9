"""The training loop that the separate GAT and SpaBiT share: chunks of epochs in one jitted scan, checkpoints between.

Everything that decides on the numbers is in ``FitState`` or derived from the seed and the epoch, so a run that is
killed and started again gives the same numbers as one that is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from absl import logging
from tqdm import tqdm

from spabit_jax.errors import InputError

SECONDS_BETWEEN_CHECKPOINTS = 15


class FitState(NamedTuple):
    """All of a training run: a pytree of arrays."""

    params: Any
    optimizer: Any
    best_params: Any  # at the lowest validation loss; None where there is no validation
    losses: Any  # (epochs, 2): training and validation loss, NaN where there is none
    epoch: Any  # epochs done
    stopped: Any  # whether training has ended before the last epoch
    seconds: Any  # spent in training, over all runs of the command

    @property
    def chosen(self):
        """The parameters to predict with."""
        return self.params if self.best_params is None else self.best_params


# (data, params, optimizer state, key of the epoch) -> (params, optimizer state, training loss, validation loss)
Epoch = Callable[[Any, Any, Any, jax.Array], tuple[Any, Any, jax.Array, jax.Array]]


def initial_state(params, optimizer: optax.GradientTransformation, n_epochs: int, validated: bool) -> FitState:
    """State before the first epoch."""
    return FitState(
        params=params,
        optimizer=optimizer.init(params),
        best_params=jax.tree.map(jnp.copy, params) if validated else None,
        losses=jnp.full((n_epochs, 2), jnp.nan, jnp.float32),
        epoch=jnp.zeros((), jnp.int32),
        stopped=jnp.zeros((), bool),
        seconds=jnp.zeros(()),
    )


def seed_keys(seed: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Keys of a seed: for the initial parameters, for the epochs, and for what is drawn once before them."""
    return tuple(jax.random.split(jax.random.key(seed), 3))


def make_chunk(epoch_fn: Epoch):
    """Jits ``n`` epochs as one call: ``chunk(state, data, key, n)``; one compilation for each ``n``."""

    @partial(jax.jit, static_argnames="n", donate_argnames="state")
    def chunk(state: FitState, data, key: jax.Array, n: int) -> FitState:
        def body(state: FitState, _):
            params, optimizer, train_loss, valid_loss = epoch_fn(
                data, state.params, state.optimizer, jax.random.fold_in(key, state.epoch)
            )
            best = state.best_params
            if best is not None:
                so_far = jnp.nanmin(state.losses[:, 1], initial=jnp.inf)
                best = jax.tree.map(partial(jnp.where, valid_loss < so_far), params, best)
            losses = state.losses.at[state.epoch].set(jnp.stack([train_loss, valid_loss]))
            state = state._replace(params=params, optimizer=optimizer, best_params=best, losses=losses)
            return state._replace(epoch=state.epoch + 1), None

        return jax.lax.scan(body, state, length=n)[0]

    return chunk


def fit(
    state: FitState,
    chunk,
    data,
    key: jax.Array,
    *,
    chunk_epochs: int,
    patience: int,
    folder: Path | None = None,
    title: str = "training",
) -> FitState:
    """Trains to the last epoch, or until the validation loss has not improved for ``patience`` epochs.

    Args:
      state: from ``initial_state``; not usable afterwards.
      chunk: from ``make_chunk``; shared between runs so that it compiles once.
      data: passed to the epoch function.
      key: of this run; each epoch's is derived from it and the epoch's number.
      chunk_epochs: epochs in one jitted call, between looks at the losses.
      folder: of Orbax checkpoints, from which an interrupted run continues; None keeps none.

    Raises:
      FloatingPointError: the loss is not finite; says in which epoch.
    """
    n_epochs = len(state.losses)
    manager = None
    if folder is not None:
        options = ocp.CheckpointManagerOptions(max_to_keep=1)
        manager = ocp.CheckpointManager(Path(folder).absolute(), options=options)
        if manager.latest_step() is not None:
            template = jax.eval_shape(lambda: state)
            state = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(template))
    last_saved = time.monotonic()
    with tqdm(total=n_epochs, initial=int(state.epoch), desc=title, unit="epoch", leave=False, disable=None) as bar:
        while not _ended(state):
            start = time.monotonic()
            state = chunk(state, data, key, min(chunk_epochs, n_epochs - int(state.epoch)))
            jax.block_until_ready(state)
            state = _after_chunk(state, patience, time.monotonic() - start, title)
            done = int(state.epoch)
            bar.update(done - bar.n)
            if manager is not None and (_ended(state) or time.monotonic() - last_saved > SECONDS_BETWEEN_CHECKPOINTS):
                manager.save(done, args=ocp.args.StandardSave(state), force=True)
                manager.wait_until_finished()  # the next chunk reuses the state's memory
                last_saved = time.monotonic()
    if manager is not None:
        manager.close()
    return state


def restore(template: FitState, folder: Path) -> FitState:
    """The last state in a folder of checkpoints; InputError where training has not ended there."""
    folder = Path(folder).absolute()
    with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(create=False)) as manager:
        step = manager.latest_step() if folder.exists() else None
        state = None if step is None else manager.restore(step, args=ocp.args.StandardRestore(template))
    if state is None or not _ended(state):
        raise InputError(f"{folder} holds no finished training: run the stage train first (--stages=train)")
    return state


def _ended(state: FitState) -> bool:
    return bool(state.stopped) or int(state.epoch) == len(state.losses)


def _after_chunk(state: FitState, patience: int, seconds: float, title: str) -> FitState:
    losses = np.asarray(state.losses)[: int(state.epoch)]
    bad = np.flatnonzero(~np.isfinite(losses[:, 0]))
    if len(bad):
        raise FloatingPointError(f"{title}: the loss of epoch {bad[0]} is {losses[bad[0], 0]}")
    stopped = False
    if state.best_params is not None:
        stopped = len(losses) - 1 - int(np.nanargmin(losses[:, 1])) >= patience
        if stopped:
            logging.info("%s: stopped after epoch %d, best was %d", title, len(losses) - 1, np.nanargmin(losses[:, 1]))
    return state._replace(stopped=jnp.asarray(stopped), seconds=state.seconds + seconds)
