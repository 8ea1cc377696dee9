import numpy as np
import pytest

from spabit_jax.neighbours import Context, impute_from_train, knn_graph, morans_i, spot_pitch


def test_graph_of_four_spots_by_hand():
    # on a line at 0, 1, 3, 10: nearest of each are 1, 0, 1, 2
    xy = np.array([[0, 0], [1, 0], [3, 0], [10, 0]], float)
    senders, receivers = knn_graph(xy, k=1)
    assert list(zip(senders, receivers, strict=True)) == [(1, 0), (0, 1), (2, 1), (1, 2), (3, 2), (2, 3)]


def test_graph_is_symmetric_without_self_loops_and_sorted():
    xy = np.random.default_rng(0).normal(size=(53, 2))
    senders, receivers = knn_graph(xy, k=6)
    dense = np.zeros((53, 53), int)
    dense[receivers, senders] += 1
    assert dense.max() == 1 and (dense == dense.T).all() and not dense.diagonal().any()
    assert (dense.sum(axis=1) >= 6).all()
    assert (np.diff(receivers) >= 0).all()
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=-1)
    nearest = np.argsort(distance, axis=1)[:, 1:7]
    wanted = np.zeros((53, 53), bool)
    np.put_along_axis(wanted, nearest, True, axis=1)
    np.testing.assert_array_equal(dense.astype(bool), wanted | wanted.T)


def test_imputed_expression_is_the_log_of_the_mean_count_of_near_train_spots():
    xy = np.array([[0, 0], [2, 0], [9, 0], [1, 0]], float)
    counts = np.array([[3.0], [7.0], [100.0], [-5.0]])
    got = impute_from_train(counts, xy, np.array([True, True, True, False]), k=2)
    np.testing.assert_allclose(got[:, 0], [2, 3, np.log2(101), np.log2(6)], rtol=1e-6)


def test_imputation_does_not_look_at_test_spots():
    rng = np.random.default_rng(1)
    xy, counts, is_train = rng.normal(size=(31, 2)), rng.poisson(3, (31, 5)).astype(float), np.arange(31) % 3 == 0
    hidden = counts.copy()
    hidden[~is_train] = np.nan
    np.testing.assert_array_equal(
        impute_from_train(counts, xy, is_train, 6), impute_from_train(hidden, xy, is_train, 6)
    )


def test_context_holds_the_nearest_train_spots_but_never_the_spot_itself():
    rng = np.random.default_rng(2)
    xy, is_train = rng.normal(size=(61, 2)), np.arange(61) % 2 == 0
    got = Context.of(xy, is_train, k=7).of_spots(xy)
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=-1)
    distance[:, ~is_train] = np.inf
    np.fill_diagonal(distance, np.inf)
    np.testing.assert_array_equal(got, np.argsort(distance, axis=1)[:, :7])


def test_context_does_not_depend_on_the_order_of_spots_even_where_distances_tie():
    xy = np.stack(np.meshgrid(np.arange(11.0), np.arange(13.0)), axis=-1).reshape(-1, 2) * 37.7
    is_train = (xy[:, 0] / 37.7).round().astype(int) % 2 == 0
    order = np.random.default_rng(0).permutation(len(xy))
    got = order[Context.of(xy[order], is_train[order], 9).of_spots(xy[order])]
    np.testing.assert_array_equal(got, Context.of(xy, is_train, 9).of_spots(xy)[order])


def test_context_where_every_spot_is_a_train_spot():
    rng = np.random.default_rng(4)
    xy = np.concatenate(
        [rng.normal(size=(47, 2)), np.stack(np.meshgrid(np.arange(9.0), np.arange(7.0)), -1).reshape(-1, 2)]
    )
    got = Context.of(xy, np.ones(len(xy), bool), 6).of_spots(xy)
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert (got != np.arange(len(xy))[:, None]).all()
    np.testing.assert_allclose(np.take_along_axis(distance, got, axis=1), np.sort(distance, axis=1)[:, :6])


def test_context_of_few_spots():
    xy = np.array([[0, 0], [1, 0], [5, 0]], float)
    np.testing.assert_array_equal(Context.of(xy, np.ones(3, bool), 9).of_spots(xy), [[1, 2], [0, 2], [1, 0]])
    assert spot_pitch(xy) == pytest.approx(1)


def test_morans_i_of_a_lattice_does_not_depend_on_order_or_turn():
    """The sixth nearest of a square lattice is one of four."""
    xy = np.stack(np.meshgrid(np.arange(6), np.arange(5)), axis=-1).reshape(-1, 2).astype(float)
    values, order = np.random.default_rng(0).normal(size=(30, 3)), np.random.default_rng(1).permutation(30)
    found = morans_i(values, xy)
    np.testing.assert_allclose(morans_i(values[order], xy[order]), found, rtol=1e-9)
    np.testing.assert_allclose(morans_i(values, xy @ [[0.6, 0.8], [-0.8, 0.6]]), found, rtol=1e-9)


def test_morans_i_is_scanpys():
    from scanpy.metrics import morans_i as reference
    from scipy import sparse

    rng = np.random.default_rng(0)
    xy, values = rng.uniform(0, 9, (60, 2)), rng.normal(size=(60, 4))
    values[:, 1] += 3 * xy[:, 0]
    values[:, 3] = 2.0
    senders, receivers = knn_graph(xy, 6)
    graph = sparse.csr_matrix((np.ones(len(senders)), (receivers, senders)), shape=(60, 60))
    found = morans_i(values, xy)
    np.testing.assert_allclose(found[:3], reference(graph, np.ascontiguousarray(values[:, :3].T)), rtol=1e-9)
    assert found[1] > 0.5 > abs(found[0]) and np.isnan(found[3])
