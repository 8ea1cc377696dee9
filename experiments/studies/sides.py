"""The two sides of a comparison, the oracle (PyTorch) and the port (JAX), behind the same functions."""

from __future__ import annotations

import copy
import time
from pathlib import Path

import numpy as np

from spabit_jax.config import Config
from spabit_jax.data.section import Section
from spabit_jax.files import replacing
from spabit_jax.reference import separate_gat as gat
from spabit_jax.training.network import Trainer


def gene_tokens(side: str, section: Section, config: Config, seed: int) -> np.ndarray:
    """Trains the GAT once and gives its reconstruction of every spot: (N, G)."""
    if side == "port":
        (tokens,), _, _ = gat.gene_tokens(section, None, config, seed=seed)
        return tokens
    from experiments.studies import reference_torch

    names = ("heads", "head_width", "out_width", "mlp_width")
    sizes = {name: getattr(config.gat, name) for name in names}
    edges = (section.graph.senders, section.graph.receivers)
    trained = reference_torch.train_gat(section.imputed, edges, config.gat.epochs, seed, **sizes)
    return reference_torch.reconstruct(trained.model, section.imputed, edges)


def predict(side: str, section: Section, tokens: np.ndarray, spots: np.ndarray, config: Config, seed: int):
    """Trains SpaBiT with one seed and predicts (n,) spots: (n, G)."""
    if side == "port":
        trainer = Trainer(section, config, tokens[None], np.zeros(len(tokens), np.int32))
        return trainer.predict(trainer.fit(seed).chosen, spots, seed)
    from experiments.studies import reference_torch

    train = np.flatnonzero(section.is_train)
    names = ("mlp_width", "cross_heads", "cross_dropout", "depth", "heads", "head_width", "feedforward_width")
    trained = reference_torch.train_spabit(
        section.image,
        tokens,
        section.expression[train],
        train,
        config.train.epochs,
        seed,
        batch_size=config.train.batch_size,
        **{name: getattr(config.model, name) for name in names},
    )
    return reference_torch.predict(trained.model, section.image, tokens, spots, seed, config.train.batch_size)


def best_epochs(section: Section, tokens: np.ndarray, config: Config, seed: int) -> int:
    """Epochs after which the port's loss is lowest on train spots that are held out of its training.

    Args:
      tokens: (N, G) of ``gene_tokens``.
    """
    config = copy.deepcopy(config)
    config.faults.no_validation = False
    config.train.patience = config.train.epochs
    trainer = Trainer(section, config, tokens[None], np.zeros(len(tokens), np.int32))
    return 1 + int(np.nanargmin(np.asarray(trainer.fit(seed).losses)[:, 1]))


def kept(path: Path, compute, *arguments) -> tuple[np.ndarray, float]:
    """``compute(*arguments)``, an array, and the seconds that it took: from the .npz file, if they are there."""
    if not path.exists():
        start = time.monotonic()
        array = compute(*arguments)
        with replacing(path) as temporary:
            np.savez(temporary, array=array, seconds=time.monotonic() - start)
    content = np.load(path)
    return content["array"], float(content["seconds"])
