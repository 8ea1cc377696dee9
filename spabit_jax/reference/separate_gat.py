"""The reference's first stage: a GAT trained to reconstruct expression, whose output becomes the gene tokens."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from spabit_jax.config import Config
from spabit_jax.data.section import Section
from spabit_jax.models.graph_attention import GATRegressor
from spabit_jax.models.layers import merged, untrained
from spabit_jax.neighbours import impute_from_train
from spabit_jax.scale import UNLOG
from spabit_jax.training.fit import FitState, fit, initial_state, make_chunk, seed_keys

# The reference trains its GAT once, with this seed, whatever the seed of the rest.
GAT_SEED = 42


def gat_optimizer(config: Config) -> optax.GradientTransformation:
    """Adam with L2 added to the gradient, as ``torch.optim.Adam(weight_decay=...)``."""
    return optax.chain(optax.add_decayed_weights(config.gat.weight_decay), optax.adam(config.gat.learning_rate))


def gat_loss(graphdef, params, data, key):
    """Mean squared error against the network's own input, over all nodes; ``data``: (N, G) input and graph."""
    x, graph = data
    return jnp.mean((merged(graphdef, params, training=key is not None)(x, graph, key=key) - x) ** 2)


def make_gat_epoch(graphdef, config: Config):
    """One full-graph step."""
    optimizer = gat_optimizer(config)

    def epoch(data, params, state, key):
        loss, gradient = jax.value_and_grad(partial(gat_loss, graphdef))(params, data, key)
        update, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, update), state, loss, jnp.nan

    return epoch


def gene_tokens(section: Section, near: np.ndarray, config: Config, folder: Path | None = None, seed=GAT_SEED):
    """Trains the GAT and gives its reconstruction of each spot's expression.

    With ``faults.self_in_gene_token`` it is trained once, and a train spot's token reconstructs its own target.
    Otherwise the train spots are divided into ``gat.folds`` parts; the tokens that the spots of one part are trained
    with come from a GAT that was trained without the expression of any of them, where they are imputed as test spots
    are; the test spots' tokens come from a GAT that sees all train spots.

    Args:
      section: N spots, G genes.
      near: (N, 2) coordinates by which expression is imputed.
      folder: of checkpoints, or None.
      seed: of initialisation, dropout and folds.

    Returns:
      tokens (P, N, G) float32: one pass for each part and, last, one for test spots; part (N,) int32: the pass in which
      each spot is a target; states: the P ``FitState``s.
    """
    n, n_genes = section.expression.shape
    passes = [(section.is_train, section.imputed)]
    part = np.zeros(n, np.int32)
    if not config.faults.self_in_gene_token:
        train = np.random.default_rng(seed).permutation(np.flatnonzero(section.is_train))
        counts = UNLOG[config.data.scale](np.nan_to_num(section.expression))
        held_out = np.array_split(train, min(config.gat.folds, len(train)))
        part[:] = len(held_out)
        for i, fold in enumerate(held_out):
            part[fold] = i
        seen = [section.is_train & (part != i) for i in range(len(held_out))]
        k, scale = config.gat.n_neighbours, config.data.scale
        passes = [(s, impute_from_train(counts, near, s, k, scale)) for s in seen] + passes

    graphdef, new_state = new_gat(n_genes, config)
    chunk = make_chunk(make_gat_epoch(graphdef, config))
    reconstruct = jax.jit(lambda params, x, graph: merged(graphdef, params, training=False)(x, graph))
    _, key, _ = seed_keys(seed)
    tokens, states = [], []
    for i, (_, x) in enumerate(passes):
        name = "GAT" if len(passes) == 1 else f"GAT {i + 1}/{len(passes)}"
        state = fit(
            new_state(seed),
            chunk,
            (x, section.graph),
            key,
            chunk_epochs=config.train.chunk_epochs,
            patience=0,
            folder=None if folder is None else folder / f"pass_{i}",
            title=name,
        )
        tokens.append(np.asarray(reconstruct(state.params, x, section.graph)))
        states.append(state)
    return np.stack(tokens), part, states


def new_gat(n_genes: int, config: Config):
    """Static part of the GAT regressor, and its state before the first epoch as a function of a seed."""
    graphdef, new_params = untrained(lambda rngs: GATRegressor(n_genes, config.gat, rngs=rngs))

    def new_state(seed: int) -> FitState:
        params = new_params(seed_keys(seed)[0])
        return initial_state(params, gat_optimizer(config), config.gat.epochs, validated=False)

    return graphdef, new_state
