import jax
import jax.numpy as jnp
import numpy as np

from spabit_jax.ops.neighbour_sum import _edge_dots, _sum_by_rank, neighbour_sum, plain


def random_edges(n: int):
    """Degrees differ, and the last node has none; sorted by receiver."""
    is_edge = np.random.default_rng(0).random((n, n)) < 0.3
    np.fill_diagonal(is_edge, False)
    is_edge[n - 1] = False
    receivers, senders = np.nonzero(is_edge)
    return senders, receivers


def test_sum_over_neighbours_and_its_gradient():
    """Both ways of summing, and the gradient written by hand, against sums over edges one by one and JAX's gradient."""
    edges = random_edges(23)
    senders, receivers = map(jnp.asarray, edges)
    rng = np.random.default_rng(3)
    weight = jnp.asarray(rng.normal(size=(len(senders), 2)), jnp.float32)
    x, g = (jnp.asarray(rng.normal(size=(23, 2, 7)), jnp.float32) for _ in range(2))
    expected = np.zeros((23, 2, 7))
    for w, s, r in zip(np.asarray(weight), *edges, strict=True):
        expected[r] += w[:, None] * np.asarray(x)[s]
    for way in (_sum_by_rank, plain, neighbour_sum):
        np.testing.assert_allclose(way(weight, x, senders, receivers), expected, rtol=1e-4, atol=1e-5)

    def gradients(way):
        return jax.grad(lambda weight, x: jnp.sum(g * way(weight, x, senders, receivers)), argnums=(0, 1))(weight, x)

    for mine, automatic in zip(gradients(neighbour_sum), gradients(plain), strict=True):
        np.testing.assert_allclose(mine, automatic, rtol=1e-4, atol=1e-5)
    dots = _edge_dots(g, x, senders, receivers, piece=8)  # several pieces and a short one
    np.testing.assert_allclose(dots, np.sum(g[receivers] * x[senders], axis=-1), rtol=1e-4, atol=1e-5)


def test_no_edges():
    x = jnp.ones((3, 2, 5))
    none = jnp.zeros(0, jnp.int32)
    assert not np.asarray(neighbour_sum(jnp.zeros((0, 2)), x, none, none)).any()
