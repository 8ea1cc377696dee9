"""The reference's trained weights as a checkpoint of the port."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
from absl import logging

from spabit_jax.config import Config
from spabit_jax.errors import InputError
from spabit_jax.files import check_new
from spabit_jax.reference.separate_gat import gat_optimizer
from spabit_jax.reference.torch_files import read_torch
from spabit_jax.reference.weights import config_from_state_dict, from_torch, kind_of
from spabit_jax.training.fit import initial_state, save_state
from spabit_jax.training.network import spabit_optimizer


def import_weights(path: Path, out: Path, config: Config) -> Config:
    """Writes a state dict as the checkpoint of a finished training.

    Args:
      path: state dict of SpaBiT or the GAT.
      out: run folder.
      config: the preset ``reference``.

    Returns:
      The configuration with the sizes of the state dict.

    Raises:
      InputError: the file is no state dict of the reference, or the folder has such a checkpoint already.
    """
    weights = read_torch(path)
    try:
        kind = kind_of(weights)
        config = config_from_state_dict(weights, config)
        params, _ = from_torch(weights, config)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if kind == "gat":
        folder, optimizer, epochs = out / "checkpoints" / "gat" / "pass_0", gat_optimizer(config), config.gat.epochs
    else:
        folder, optimizer, epochs = out / "checkpoints" / "seed_0", spabit_optimizer(config), config.train.epochs
    check_new(folder)
    state = initial_state(jax.tree.map(jnp.asarray, params), optimizer, epochs, validated=False)
    # trained elsewhere: over, without an epoch of our own
    state = state._replace(stopped=jnp.asarray(True))
    save_state(state, folder)
    logging.info("%s: weights of the reference's %s", folder, "GAT" if kind == "gat" else "SpaBiT")
    return config
