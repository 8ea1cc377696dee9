import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spabit_jax.config import GATConfig
from spabit_jax.models.gat import GAT, GATRegressor, GraphAttention, make_graph


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


def test_order_of_nodes_does_not_matter():
    graph, _ = random_graph(13)
    order = np.random.default_rng(2).permutation(13)
    rank = np.argsort(order)
    model = GATRegressor(7, GATConfig(heads=2, head_width=3, out_width=5, mlp_width=11), rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(13, 7)), jnp.float32)
    permuted = make_graph(rank[graph.senders], rank[graph.receivers], 13)
    np.testing.assert_allclose(model(x, graph)[order], model(x[order], permuted), rtol=1e-4, atol=1e-6)


def test_dropout_only_with_a_key():
    graph, _ = random_graph(11)
    model = GATRegressor(7, GATConfig(heads=2, head_width=3, out_width=5, mlp_width=11, dropout=0.5), rngs=nnx.Rngs(0))
    x = jnp.ones((11, 7))
    np.testing.assert_array_equal(model(x, graph), model(x, graph))
    one, same, other = (model(x, graph, key=jax.random.key(i)) for i in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(np.asarray(one - other)).max() > 0
