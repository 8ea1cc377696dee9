"""The training loop that the separate GAT and SpaBiT share: chunks of epochs in one jitted scan, checkpoints between.

Everything that decides on the numbers is in ``FitState`` or derived from the seed and the epoch, so a run that is
killed and started again gives the same numbers as one that is not.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from absl import logging
from tqdm.auto import tqdm

from spabit_jax.errors import Diverged, InputError
from spabit_jax.files import is_whole, seal

SECONDS_BETWEEN_CHECKPOINTS = 15

# (title of a training, its losses in the last chunk); told, and nothing asked: no number depends on them
Callback = Callable[[str, pd.DataFrame], None]
CALLBACKS: dict[str, Callback] = {}


def register_callback(name: str, tell: Callback) -> None:
    """Has a function called after each chunk of epochs (``config.train.chunk_epochs``) of each network.

    Args:
      name: another function of that name is replaced.
      tell: is given which training it is, as "trained, seed 0", and a table of the epochs of the chunk: epoch,
        train_loss, valid_loss (NaN where there is none).
    """
    CALLBACKS[name] = tell


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


def after_epoch(epoch_fn: Epoch, state: FitState, data, key: jax.Array) -> FitState:
    """The state after one more epoch; ``key`` is that of the run."""
    params, optimizer, train_loss, valid_loss = epoch_fn(
        data, state.params, state.optimizer, jax.random.fold_in(key, state.epoch)
    )
    best = state.best_params
    if best is not None:
        so_far = jnp.nanmin(state.losses[:, 1], initial=jnp.inf)
        best = jax.tree.map(partial(jnp.where, valid_loss < so_far), params, best)
    losses = state.losses.at[state.epoch].set(jnp.stack([train_loss, valid_loss]))
    state = state._replace(params=params, optimizer=optimizer, best_params=best, losses=losses)
    return state._replace(epoch=state.epoch + 1)


def make_chunk(epoch_fn: Epoch):
    """Jits ``n`` epochs as one call: ``chunk(state, data, key, n)``; one compilation for each ``n``."""

    @partial(jax.jit, static_argnames="n", donate_argnames="state")
    def chunk(state: FitState, data, key: jax.Array, n: int) -> FitState:
        return jax.lax.scan(lambda state, _: (after_epoch(epoch_fn, state, data, key), None), state, length=n)[0]

    return chunk


def fit(state: FitState, chunk, data, key: jax.Array, *, folder=None, title="training", **options) -> FitState:
    """``fit_seeds`` of one seed, with a chunk from ``make_chunk``."""

    def one(states, data, keys, n):
        return [chunk(*states, data, *keys, n)]

    return fit_seeds([state], one, data, [key], folders=[folder], titles=[title], **options)[0]


def fit_seeds(
    states: list[FitState],
    chunk,
    data,
    keys: list[jax.Array],
    *,
    chunk_epochs: int,
    patience: int,
    folders: list[Path | None],
    titles: list[str],
) -> list[FitState]:
    """Trains each to its last epoch, or until its validation loss has not improved for ``patience`` epochs.

    Args:
      states: from ``initial_state``; not usable afterwards.
      chunk: trains all states for some epochs, but for those that have ended; shared between runs so that it compiles
        once.
      data: passed to the epoch function.
      keys: one for each state; each epoch's is derived from it and the epoch's number.
      chunk_epochs: epochs in one jitted call, between looks at the losses.
      folders: of Orbax checkpoints, from which an interrupted run continues; None keeps none. Process 0 writes.
      titles: one for each state.

    Raises:
      Diverged: a loss is not finite; says in which epoch.
    """
    states = [going_on(state, folder) for state, folder in zip(states, folders, strict=True)]
    n_epochs = len(states[0].losses)
    title = titles[0] if len(titles) == 1 else f"{titles[0]} to {titles[-1]}"
    hidden = None if jax.process_index() == 0 else True  # None: shown on a terminal
    done = sum(int(state.epoch) for state in states)
    last_saved = time.monotonic()
    with tqdm(total=len(states) * n_epochs, initial=done, desc=title, unit="epoch", leave=False, disable=hidden) as bar:
        while running := [i for i, state in enumerate(states) if not _ended(state)]:
            start = time.monotonic()
            n = min(chunk_epochs, n_epochs - min(int(states[i].epoch) for i in running))
            before = [int(state.epoch) for state in states]
            states = jax.block_until_ready(chunk(states, data, keys, n))
            seconds = (time.monotonic() - start) / len(running)
            for i in running:
                states[i] = _after_chunk(states[i], patience, seconds, titles[i])
                if jax.process_index() == 0:
                    _tell(titles[i], np.asarray(states[i].losses)[: int(states[i].epoch)], before[i])
            bar.update(sum(int(state.epoch) for state in states) - bar.n)
            due = time.monotonic() - last_saved > SECONDS_BETWEEN_CHECKPOINTS
            for i in running:
                if folders[i] is not None and jax.process_index() == 0 and (due or _ended(states[i])):
                    save_state(states[i], folders[i])
            last_saved = time.monotonic() if due else last_saved
    return states


def restore(template: FitState, folder: Path) -> FitState:
    """The last state in a folder of checkpoints; InputError where training has not ended there, or it is damaged."""
    try:
        state = latest(template, folder)
    except Damaged as error:
        raise InputError(f"{error}: run the stage train again (--stages=train)") from error
    if state is None or not _ended(state):
        raise InputError(f"{folder} holds no finished training: run the stage train first (--stages=train)")
    return state


def on_this_device(tree):
    """Arrays that are whole on every device, as arrays of the first one of this process."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def save_state(state: FitState, folder: Path) -> None:
    """A checkpoint of a state, in place of the last one."""
    import orbax.checkpoint as ocp  # a third of a second, and the default trains nothing

    Path(folder).mkdir(parents=True, exist_ok=True)
    with _checkpoints(folder, max_to_keep=1) as manager:
        manager.save(int(state.epoch), args=ocp.args.StandardSave(jax.tree.map(np.asarray, state)), force=True)
        manager.wait_until_finished()  # the next chunk reuses the state's memory
    seal(Path(folder) / str(int(state.epoch)))


class Damaged(Exception):
    """A checkpoint is not what was written."""


def going_on(state: FitState, folder: Path | None) -> FitState:
    """The last state that was saved in the folder, or ``state`` where there is none, or a damaged one."""
    try:
        return latest(state, folder) or state
    except Damaged as error:
        logging.warning("%s: training begins again", error)
        shutil.rmtree(folder)
        return state


def latest(template: FitState, folder: Path | None) -> FitState | None:
    """The last state that was saved, on whatever devices, on the first of this process; None if there is none.

    Raises:
      Damaged: it is not what was written.
      InputError: it is of another network, or a newer version wrote it.
    """
    if folder is None or not Path(folder).exists():
        return None
    import orbax.checkpoint as ocp

    with _checkpoints(folder) as manager:
        if (step := manager.latest_step()) is None:
            return None
        if not is_whole(Path(folder) / str(step)):
            raise Damaged(f"{Path(folder) / str(step)} is damaged, its bytes are not those that were written")
        template = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), template)
        other = f"{Path(folder) / str(step)} is of another network, or of another version of it"
        try:
            found = manager.restore(step, args=ocp.args.StandardRestore(template))
        except (ValueError, KeyError, FileNotFoundError) as error:  # of Orbax and TensorStore
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{other} ({reason}): give another --out, or delete the folder") from error
        for leaf, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(template), strict=True):
            if leaf.shape != wanted.shape:  # Orbax does not compare them
                raise InputError(
                    f"{other}, as it has parameters of shape {leaf.shape} in place of {wanted.shape}: give another "
                    "--out, or delete the folder"
                )
        return jax.tree.map(jnp.asarray, found)


def _checkpoints(folder: Path, **options):
    """Of this process alone: Orbax does not wait for others."""
    import orbax.checkpoint as ocp

    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process_{me}"
    )
    options = ocp.CheckpointManagerOptions(create=False, multiprocessing_options=alone, **options)
    return ocp.CheckpointManager(Path(folder).absolute(), options=options)


def _ended(state: FitState) -> bool:
    return bool(state.stopped) or int(state.epoch) == len(state.losses)


def _after_chunk(state: FitState, patience: int, seconds: float, title: str) -> FitState:
    losses = np.asarray(state.losses)[: int(state.epoch)]
    decisive = losses[:, : 1 if state.best_params is None else 2]
    bad = np.flatnonzero(~np.isfinite(decisive).all(axis=1))
    if len(bad):
        raise Diverged(
            f"{title}: the loss of epoch {bad[0]} is {decisive[bad[0]].sum()}: lower config.train.learning_rate (of "
            "the separate GAT config.gat.learning_rate), or look for values in the image features that are not finite; "
            "a loss of your own must be a number for a single spot, too, which the last batch may be"
        )
    stopped = False
    if state.best_params is not None:
        stopped = len(losses) - 1 - int(np.nanargmin(losses[:, 1])) >= patience
        if stopped:
            logging.info("%s: stopped after epoch %d, best was %d", title, len(losses) - 1, np.nanargmin(losses[:, 1]))
    seconds = jnp.float32(float(state.seconds) + seconds)
    return state._replace(stopped=jnp.asarray(stopped), seconds=seconds)


def _tell(title: str, losses: np.ndarray, since: int) -> None:
    table = losses_table("", 0, losses)[["epoch", "train_loss", "valid_loss"]].iloc[since:]
    for tell in CALLBACKS.values():
        tell(title, table)


def losses_table(stage: str, seed: int, losses) -> pd.DataFrame:
    """(epochs, 2) losses as rows of history.csv."""
    losses = np.asarray(losses)
    columns = {"stage": stage, "seed": seed, "epoch": np.arange(len(losses))}
    return pd.DataFrame(columns | {"train_loss": losses[:, 0], "valid_loss": losses[:, 1]})
