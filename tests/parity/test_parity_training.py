"""Both trainings, port against oracle: the same weights, the same batches, no dropout; the port's own epochs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from pairs import GAT_SIZES, SPABIT_SIZES, assert_close, make_pair, random_graph, state_dict

from experiments.studies import reference_torch
from spabit_jax.data.components import expression_space
from spabit_jax.data.graphs import make_graph
from spabit_jax.data.section import Section
from spabit_jax.reference.separate_gat import gat_optimizer, make_gat_epoch
from spabit_jax.reference.weights import to_torch
from spabit_jax.training.fit import initial_state, make_chunk
from spabit_jax.training.network import TrainingData, make_spabit_epoch, spabit_optimizer

N = 29  # spots
DTYPES = {np.float64: torch.float64, np.float32: torch.float32}


def expression(n_genes: int, dtype) -> np.ndarray:
    return np.log2(np.random.default_rng(2).poisson(3, (N, n_genes)) + 1).astype(dtype)


def start(pair, optimizer, epochs: int, dtype):
    """State before the first epoch; the losses are kept in the precision that they are computed in."""
    state = initial_state(pair.params, optimizer, epochs, validated=False)
    state = state._replace(losses=np.full((epochs, 2), np.nan, dtype))
    return jax.tree.map(jnp.asarray, state)


def assert_losses_follow(port, oracle, tolerance: float) -> None:
    assert oracle[-1] < 0.999 * oracle[0]  # there is something to follow
    np.testing.assert_allclose(port, oracle, rtol=tolerance)


def run_gat(sizes, dtype, epochs: int):
    """Losses and parameters of the port, the same of the oracle."""
    pair = make_pair(reference_torch.GAT, sizes, seed=21, dtype=DTYPES[dtype])
    x, edges = expression(sizes["n_genes"], dtype), random_graph(N, 97, seed=3)
    state = start(pair, gat_optimizer(pair.config), epochs, dtype)
    chunk = make_chunk(make_gat_epoch(pair.graphdef, pair.config))
    state = chunk(state, (jnp.asarray(x), make_graph(*edges, N)), jax.random.key(0), epochs)
    trained = reference_torch.train_gat(x, edges, epochs, model=pair.oracle, dropout=False, dtype=DTYPES[dtype])
    return np.asarray(state.losses[:, 0]), to_torch(state.params), trained


@pytest.mark.parametrize("sizes", GAT_SIZES)
def test_gat_training_in_float64(sizes):
    with jax.enable_x64(True):
        losses, weights, trained = run_gat(sizes, np.float64, epochs=50)
    assert_losses_follow(losses, trained.losses, 1e-6)
    for name, expected in state_dict(trained.model).items():
        assert_close(weights[name], expected, 1e-6)


def test_gat_training_in_float32():
    losses, _, trained = run_gat(GAT_SIZES[0], np.float32, epochs=5)
    assert losses.dtype == trained.losses.dtype == np.float32
    assert_losses_follow(losses, trained.losses, 1e-4)


def run_spabit(sizes, dtype, epochs: int, batch_size: int):
    """As ``run_gat``; the oracle is given the batches that the port's epochs shuffle."""
    pair = make_pair(reference_torch.SpaBiT, sizes, seed=22, dtype=DTYPES[dtype])
    config, n_genes, n_train = pair.config, sizes["n_genes"], 23
    config.train.batch_size = batch_size
    rng = np.random.default_rng(4)
    y, tokens = expression(n_genes, dtype), expression(n_genes, dtype)[::-1] / 2
    features = rng.standard_normal((N, sizes["width"])).astype(dtype)
    train_spots = np.sort(rng.permutation(N)[:n_train])
    section = Section(
        expression=y,
        imputed=y,
        image=features,
        xy=np.zeros((N, 2), dtype),
        noise=np.ones(N, dtype),
        is_train=np.isin(np.arange(N), train_spots),
        context=np.zeros((N, 0), int),
        graph=make_graph(np.zeros(0, int), np.zeros(0, int), N),
    )
    genes = expression_space(y, 0)
    data = TrainingData(section, genes, tokens[None].copy(), np.zeros(N, int), train_spots, train_spots[:0])
    state, data = start(pair, spabit_optimizer(config), epochs, dtype), jax.tree.map(jnp.asarray, data)
    key = jax.random.key(5)
    state = make_chunk(make_spabit_epoch(pair.graphdef, config))(state, data, key, epochs)

    orders = [np.asarray(jax.random.permutation(jax.random.fold_in(key, i), n_train)) for i in range(epochs)]
    batches = [np.split(order, range(batch_size, n_train, batch_size)) for order in orders]
    assert any((orders[0] != order).any() for order in orders[1:])
    trained = reference_torch.train_spabit(
        features, tokens, y[train_spots], train_spots, epochs,
        model=pair.oracle, batches=batches, dropout=False, dtype=DTYPES[dtype],
    )  # fmt: skip
    return np.asarray(state.losses[:, 0]), to_torch(state.params), trained


@pytest.mark.parametrize("sizes", SPABIT_SIZES)
def test_spabit_training_in_float64(sizes):
    """13 epochs of 4 batches, the last of 2 spots: padded in the port, short in the oracle."""
    with jax.enable_x64(True):
        losses, weights, trained = run_spabit(sizes, np.float64, epochs=13, batch_size=7)
    assert len(trained.step_losses) == 52
    assert_losses_follow(losses, trained.losses, 1e-6)
    expected = state_dict(trained.model)
    for name in weights:
        assert_close(weights[name], expected[name], 1e-6)


def test_spabit_training_in_float32():
    """5 epochs of one batch each, padded in the port: the losses of 5 steps."""
    losses, _, trained = run_spabit(SPABIT_SIZES[0], np.float32, epochs=5, batch_size=23)
    assert losses.dtype == trained.losses.dtype == np.float32
    np.testing.assert_allclose(trained.losses, trained.step_losses, rtol=1e-6)
    assert_losses_follow(losses, trained.losses, 1e-4)


def test_shuffled_batches_of_the_oracle():
    """Every train spot once an epoch, the last batch short, the same seed the same losses."""
    sizes = SPABIT_SIZES[0]
    rng = np.random.default_rng(6)
    image, y = rng.standard_normal((N, sizes["width"])), expression(sizes["n_genes"], np.float64)
    train = np.arange(0, N, 2)
    options = {name: size for name, size in sizes.items() if name not in ("n_genes", "width")} | {"batch_size": 7}
    runs = [reference_torch.train_spabit(image, y, y[train], train, 2, seed, **options) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(runs[0].step_losses, runs[1].step_losses)
    assert (runs[0].step_losses != runs[2].step_losses).all()
    assert len(runs[0].step_losses) == 2 * 3  # 15 spots: 7, 7, 1
    np.testing.assert_allclose(runs[0].losses[0], runs[0].step_losses[:3] @ [7, 7, 1] / 15, rtol=1e-6)
