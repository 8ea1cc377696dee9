"""Each layer of the port against the oracle's: outputs, and gradients of parameters and inputs, in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx
from pairs import GAT_SIZES, SPABIT_SIZES, assert_close, assert_gradients_close, make_pair, random_graph, to_jax

from experiments.studies import reference_torch
from spabit_jax.data.graphs import make_graph

TOLERANCE = 1e-10


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def compare(layer, path, call, oracle, prefix, oracle_call, *inputs) -> None:
    """Both layers on the same inputs.

    Args:
      layer: of the port, at ``path`` in its model; ``call(layer, *inputs)``.
      oracle: the module whose state dict has ``layer``'s names, starting with ``prefix``; ``oracle_call(*inputs)``.
    """
    tensors = [torch.tensor(array, requires_grad=True) for array in inputs]
    expected = oracle_call(*tensors)
    weight = np.random.default_rng(5).standard_normal(expected.shape)  # so that no gradient is zero by symmetry
    (expected * torch.tensor(weight)).sum().backward()

    graphdef, params = nnx.split(layer)

    def loss(params, inputs):
        out = call(nnx.merge(graphdef, params), *inputs)
        return jnp.sum(out * weight), out

    value_and_gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, out), (gradient, gradients_x) = value_and_gradient(params, to_jax(*inputs))
    assert_close(out, expected.detach(), TOLERANCE)
    for mine, tensor in zip(gradients_x, tensors, strict=True):
        assert_close(mine, tensor.grad, TOLERANCE)
    for key in reversed(path):
        gradient = nnx.State({key: gradient})
    names = dict(oracle.named_parameters())
    expected_gradients = {n: p.grad.numpy() for n, p in names.items() if n.startswith(prefix) and p.grad is not None}
    assert_gradients_close(gradient, expected_gradients, TOLERANCE)


def normal(*shape) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape)


@pytest.mark.parametrize("sizes", GAT_SIZES)
def test_graph_attention(sizes):
    pair = make_pair(reference_torch.GAT, sizes, seed=1)
    n = 13
    senders, receivers = random_graph(n, 37, seed=2)
    graph = make_graph(senders, receivers, n)
    edges = torch.tensor(senders), torch.tensor(receivers)
    layers = pair.merge().gat
    for layer, path, heads, prefix, n_in in (
        (layers.hidden, ("gat", "hidden"), pair.oracle.attentions, "attentions.", sizes["n_genes"]),
        (layers.out, ("gat", "out"), [pair.oracle.out_att], "out_att.", sizes["heads"] * sizes["head_width"]),
    ):

        def oracle_call(x, heads=heads):
            return torch.cat([head(x, *edges) for head in heads], dim=1)

        compare(layer, path, lambda m, x: m(x, graph), pair.oracle, prefix, oracle_call, normal(n, n_in))
        assert not np.asarray(layer(jnp.asarray(normal(n, n_in)), graph))[0].any()  # no edge: zeros


def test_graph_attention_far_below_the_largest_score():
    """There the 1e-9 in the denominator counts, and the maximum has a gradient: a softmax per node has neither."""
    pair = make_pair(reference_torch.GAT, GAT_SIZES[0], seed=1)
    x = normal(5, 7)
    senders, receivers = np.array([1, 2, 4, 3]), np.array([0, 0, 3, 4])
    edges = torch.tensor(senders), torch.tensor(receivers)
    graph = make_graph(senders, receivers, 5)
    with torch.no_grad():
        head = pair.oracle.attentions[0]
        loud = head.W.weight.T @ (head.a_src + head.a_dst)  # the direction of x in which the score rises
        x[[3, 4]] += 20 * (loud / loud.square().sum()).T.numpy()
        weights = head.W(torch.tensor(x))
        score = F.leaky_relu((weights @ head.a_src)[senders, 0] + (weights @ head.a_dst)[receivers, 0], 0.01)
        assert 1e-10 < torch.exp(score - score.max())[:2].sum() < 1e-8
    compare(
        pair.merge().gat.hidden,
        ("gat", "hidden"),
        lambda layer, x: layer(x, graph),
        pair.oracle,
        "attentions.",
        lambda x: torch.cat([head(x, *edges) for head in pair.oracle.attentions], dim=1),
        x,
    )


@pytest.mark.parametrize("sizes", SPABIT_SIZES)
@pytest.mark.parametrize("n_queries, n_keys", [(1, 1), (3, 5)])
def test_cross_attention(sizes, n_queries, n_keys):
    pair = make_pair(reference_torch.SpaBiT, sizes, seed=3)
    width = sizes["width"]
    compare(
        pair.merge().gene_to_image,
        ("gene_to_image",),
        lambda layer, x, context: layer(x, context),
        pair.oracle,
        "cross_attention2.",
        pair.oracle.cross_attention2,
        normal(7, n_queries, width),
        np.random.default_rng(1).standard_normal((7, n_keys, width)),
    )


@pytest.mark.parametrize("sizes", SPABIT_SIZES)
def test_transformer_layer(sizes):
    pair = make_pair(reference_torch.SpaBiT, sizes, seed=4)
    attention, feedforward = pair.oracle.trans.layers[0]

    def oracle_call(x):
        x = x + attention(x)
        return x + feedforward(x)

    compare(
        pair.merge().layers[0],
        ("layers", 0),
        lambda layer, x: layer(x),
        pair.oracle,
        "trans.layers.0.",
        oracle_call,
        normal(3, 5, sizes["width"]),
    )


@pytest.mark.parametrize("sizes", SPABIT_SIZES)
@pytest.mark.parametrize("port, oracle", [("gene_in", "neighbor_emb"), ("head", "gene_head")])
def test_mlp(sizes, port, oracle):
    pair = make_pair(reference_torch.SpaBiT, sizes, seed=5)
    module = getattr(pair.oracle, oracle)
    compare(
        getattr(pair.merge(), port), (port,), lambda layer, x: layer(x), pair.oracle, oracle + ".", module,
        normal(11, sizes["n_genes"] if port == "gene_in" else sizes["width"]),
    )  # fmt: skip
