import jax.numpy as jnp
import numpy as np
from flax import nnx

from spabit_jax.config import GATConfig
from spabit_jax.data.graphs import make_graph
from spabit_jax.models.graph_attention import GAT, GATRegressor, GraphAttention


def random_graph(n, seed=0):
    rng = np.random.default_rng(seed)
    dense = rng.random((n, n)) < 0.3
    np.fill_diagonal(dense, False)
    dense[n - 1] = False  # the last node receives nothing
    receivers, senders = np.nonzero(dense)
    return make_graph(senders, receivers, n), dense


def test_attention_equals_the_dense_formula():
    graph, dense = random_graph(11)
    layer = GraphAttention(7, heads=3, head_width=5, dropout=0.0, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(11, 7)), jnp.float32)
    out = np.asarray(layer(x, graph)).reshape(11, 3, 5)
    for head in range(3):
        wh = np.asarray(x) @ np.asarray(layer.kernel[...]).reshape(7, 3, 5)[:, head]
        sender, receiver = (np.asarray(a[...])[head] for a in (layer.sender, layer.receiver))
        score = (wh @ receiver)[:, None] + (wh @ sender)[None]
        score = np.where(score > 0, score, 0.01 * score)
        weight = np.where(dense, np.exp(score - score[dense].max()), 0)
        weight /= weight.sum(axis=1, keepdims=True) + 1e-9
        np.testing.assert_allclose(out[:, head], weight @ wh, rtol=1e-4, atol=1e-6)
    assert not out[10].any()  # no edges


def test_a_node_depends_on_what_is_two_edges_away_at_most():
    # 0 → 1 → … → 6, and each to itself: weights over a single edge are 1 whatever its score
    chain = make_graph(np.r_[0:6, 0:7], np.r_[1:7, 0:7], 7)
    gat = GAT(5, 2, 3, 4, 0.0, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(7, 5)), jnp.float32)
    moved = np.abs(np.asarray(gat(x.at[2].add(1.0), chain) - gat(x, chain))).max(axis=1)
    np.testing.assert_array_equal(moved > 0, [False, False, True, True, True, False, False])


def test_graphs_of_a_batch_do_not_see_each_other_whatever_their_scores():
    senders, receivers = np.array([0, 1, 2, 3, 4, 5]), np.array([1, 2, 0, 4, 5, 3])
    senders, receivers = np.r_[senders, receivers], np.r_[receivers, senders]  # 0, 1, 2 and 3, 4, 5: a triangle each
    graph = make_graph(senders, receivers, 6, edges=np.zeros((12, 1)))
    layer = GraphAttention(3, heads=2, head_width=4, dropout=0.0, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(6, 3)), jnp.float32)
    loud = x.at[3:].multiply(300.0)
    np.testing.assert_allclose(layer(loud, graph)[:3], layer(x, graph)[:3], rtol=1e-5)


def test_order_of_nodes_does_not_matter():
    graph, _ = random_graph(13)
    order = np.random.default_rng(2).permutation(13)
    rank = np.argsort(order)
    model = GATRegressor(7, GATConfig(heads=2, head_width=3, out_width=5, mlp_width=11, dropout=0.0), rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(13, 7)), jnp.float32)
    permuted = make_graph(rank[graph.senders], rank[graph.receivers], 13)
    np.testing.assert_allclose(model(x, graph)[order], model(x[order], permuted), rtol=1e-4, atol=1e-6)


def test_edges_are_sorted_by_receiver():
    edges = np.arange(5.0)[:, None]
    graph = make_graph(np.array([4, 3, 2, 1, 0]), np.array([2, 0, 2, 1, 0]), 5, edges)
    np.testing.assert_array_equal(graph.receivers, [0, 0, 1, 2, 2])
    np.testing.assert_array_equal(graph.senders, [3, 0, 1, 4, 2])
    np.testing.assert_array_equal(graph.edges[:, 0], [1, 4, 3, 0, 2])
