import numpy as np
import pytest
import scanpy as sc
from anndata import AnnData
from scipy import sparse

from spabit_jax.scale import LOG, SCALES, TOTAL, UNLOG, find_scale, total_counts


@pytest.fixture
def adata():
    counts = np.random.default_rng(0).poisson(3, (40, 9)).astype(np.float32) * np.arange(40)[:, None]
    return AnnData(sparse.csr_matrix(counts))  # the first spot has no count


def test_normalised_is_what_scanpy_makes_with_the_train_spots_target(adata):
    is_train = np.arange(40) % 3 == 0
    scale = find_scale("log1p_normalised", adata, is_train)
    assert scale.target == np.median(adata.X.toarray().sum(axis=1)[is_train])
    expected = adata.copy()
    with pytest.warns(UserWarning, match="zero counts"):
        sc.pp.normalize_total(expected, target_sum=scale.target)
    sc.pp.log1p(expected)
    found = scale.expression(adata.X.toarray(), total_counts(adata))
    np.testing.assert_allclose(found, expected.X.toarray(), rtol=1e-5)
    part = scale.expression(adata.X[:, :4].toarray(), total_counts(adata))  # the total is that of all genes
    np.testing.assert_array_equal(part, found[:, :4])


def test_nothing_of_test_spots_decides_on_the_scale(adata):
    is_train = np.arange(40) % 3 == 0
    changed = adata.copy()
    changed.X = sparse.csr_matrix(np.where(is_train[:, None], adata.X.toarray(), 777))
    assert find_scale("log1p_normalised", changed, is_train) == find_scale("log1p_normalised", adata, is_train)


def test_log2_count_is_the_references(adata):
    scale = find_scale("log2_count", adata, np.ones(40, bool))
    counts = adata.X.toarray()
    np.testing.assert_allclose(scale.expression(counts, total_counts(adata)), np.log2(counts + 1), rtol=1e-6)


@pytest.mark.parametrize("name", SCALES)
def test_the_logarithm_can_be_undone(name):
    amounts = np.linspace(0, 50, 11)
    np.testing.assert_allclose(UNLOG[name](LOG[name](amounts)), amounts, atol=1e-9)


def test_totals_are_kept_where_the_other_genes_are_gone(adata):
    totals = total_counts(adata)
    some = adata[:, :2].copy()
    some.obs[TOTAL] = totals
    np.testing.assert_array_equal(total_counts(some), totals)
