"""The whole GAT and the whole SpaBiT, port against oracle, with the same weights."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from pairs import (
    GAT_SIZES,
    SPABIT_SIZES,
    Pair,
    assert_close,
    assert_gradients_close,
    make_pair,
    oracle_gradients,
    random_graph,
    to_jax,
)

from experiments.studies import reference_torch
from spabit_jax.data.graphs import make_graph
from spabit_jax.models.spabit import Tokens

AS_USERS = {"xla_backend_optimization_level": 3}  # long sums in float32 need vectors, which add up in parts


def compare_gat(pair: Pair, x: np.ndarray, senders, receivers, tolerance: float, gradient_tolerance: float) -> None:
    """Reconstruction, loss and the loss's gradient."""
    tensor = torch.tensor(x)
    expected = pair.oracle(tensor, torch.tensor(senders), torch.tensor(receivers))
    expected_loss = torch.nn.functional.mse_loss(expected, tensor)
    expected_loss.backward()
    graph = make_graph(senders, receivers, len(x))

    @partial(jax.jit, compiler_options=AS_USERS)
    def run(params, x):
        def loss(params):
            out = nnx.merge(pair.graphdef, params)(x, graph)
            return jnp.mean((out - x) ** 2), out

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, out), gradient = run(pair.params, x)
    assert_close(out, expected.detach(), tolerance)
    assert_close(loss, expected_loss.detach(), tolerance)
    assert_gradients_close(gradient, oracle_gradients(pair.oracle), gradient_tolerance)


def compare_spabit(pair: Pair, image, genes, target, n_padding: int, tolerance: float, gradient_tolerance: float):
    """Predictions and gradient of the loss; the port sees the batch with ``n_padding`` spots of garbage at its end."""
    expected = pair.oracle(torch.tensor(image), torch.tensor(genes))
    torch.nn.functional.mse_loss(expected, torch.tensor(target)).backward()

    def pad(x):
        return np.concatenate([x, np.full((n_padding, x.shape[1]), 7, x.dtype)])

    offset = np.zeros((len(image) + n_padding, 1, 2), image.dtype)
    tokens = Tokens(image=pad(image)[:, None], genes=pad(genes)[:, None], offset=offset)
    valid = np.arange(len(offset)) < len(image)

    @partial(jax.jit, compiler_options=AS_USERS)
    def run(params, tokens, target, valid):
        def loss(params):
            out = nnx.merge(pair.graphdef, params)(tokens, valid)
            return jnp.sum(jnp.mean((out - target) ** 2, axis=1) * valid) / jnp.sum(valid), out

        return jax.value_and_grad(loss, has_aux=True)(params)

    (_, out), gradient = run(pair.params, tokens, pad(target), valid)
    assert_close(out[: len(image)], expected.detach(), tolerance)
    assert_gradients_close(gradient, oracle_gradients(pair.oracle), gradient_tolerance)
    return out[: len(image)]


def spabit_inputs(n: int, width: int, n_genes: int, dtype):
    rng = np.random.default_rng(7)
    image, genes, target = (rng.standard_normal((n, k)).astype(dtype) for k in (width, n_genes, n_genes))
    return image, np.abs(genes), np.abs(target)


@pytest.mark.parametrize("sizes", GAT_SIZES)
def test_gat(sizes):
    with jax.enable_x64(True):
        pair = make_pair(reference_torch.GAT, sizes, seed=11)
        x = np.abs(np.random.default_rng(3).standard_normal((17, sizes["n_genes"])))
        compare_gat(pair, x, *random_graph(17, 53, seed=4), tolerance=1e-10, gradient_tolerance=1e-9)


@pytest.mark.parametrize("sizes", SPABIT_SIZES)
@pytest.mark.parametrize("n_padding", [0, 5])
def test_spabit(sizes, n_padding):
    """A padded and masked batch is the oracle's short one."""
    with jax.enable_x64(True):
        pair = make_pair(reference_torch.SpaBiT, sizes, seed=12)
        inputs = spabit_inputs(11, sizes["width"], sizes["n_genes"], np.float64)
        out = compare_spabit(pair, *inputs, n_padding, tolerance=1e-10, gradient_tolerance=1e-9)
    assert (np.asarray(out) == 0).any() and (np.asarray(out) > 0).any()  # the ReLU is at work


def test_prediction_depends_on_the_batch():
    """In both, and alike: the fault batch_attention is there."""
    with jax.enable_x64(True):
        pair = make_pair(reference_torch.SpaBiT, SPABIT_SIZES[0], seed=12)
        image, genes, _ = spabit_inputs(11, SPABIT_SIZES[0]["width"], SPABIT_SIZES[0]["n_genes"], np.float64)
        spots = np.array([2, 3, 5, 7])
        apply = jax.jit(lambda *tokens: pair.merge()(Tokens(*tokens)))
        for batch in ([0, 1, 2, 3], [0, 1, 2]):
            tokens = to_jax(image[spots[batch], None], genes[spots[batch], None], np.zeros((len(batch), 1, 2)))
            expected = reference_torch.predict(pair.oracle, image, genes, spots[batch], seed=None)
            assert_close(apply(*tokens), expected, 1e-10)
        whole = reference_torch.predict(pair.oracle, image, genes, spots, seed=None)
        assert np.abs(whole[:3] - expected).max() > 1e-3
        # the order within a batch is nothing, the batches are everything
        assert_close(reference_torch.predict(pair.oracle, image, genes, spots, seed=1), whole, 1e-10)
        batched = reference_torch.predict(pair.oracle, image, genes, spots, seed=None, batch_size=3)
        assert_close(batched[:3], expected, 1e-10)


@pytest.mark.slow
def test_full_size():
    """The published sizes, in float32 at the highest matmul precision."""
    n, n_genes = 101, 307
    rng = np.random.default_rng(8)
    with jax.default_matmul_precision("highest"):
        pair = make_pair(reference_torch.GAT, {"n_genes": n_genes}, seed=13, dtype=torch.float32)
        assert pair.params["gat"]["hidden"]["kernel"].shape == (n_genes, 6 * 650)
        x = np.log2(rng.poisson(2, (n, n_genes)) + 1).astype(np.float32)
        compare_gat(pair, x, *random_graph(n, 601, seed=9), tolerance=1e-5, gradient_tolerance=1e-4)

        pair = make_pair(reference_torch.SpaBiT, {"n_genes": n_genes}, seed=14, dtype=torch.float32)
        assert len(pair.params["layers"]) == 4 and pair.params["fusion"]["kernel"].shape == (2048, 1024)
        inputs = spabit_inputs(n, 1024, n_genes, np.float32)
        compare_spabit(pair, *inputs, n_padding=27, tolerance=1e-5, gradient_tolerance=1e-4)
