import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist

from spabit_jax.downstream.spatial import rank_agreement, spatial_genes
from spabit_jax.neighbours import morans_i


def test_morans_i_is_that_of_the_formula(predictions):
    xy = predictions.obsm["spatial"]
    values = np.random.default_rng(0).standard_normal((len(xy), 3)) + xy[:, :1] / 500
    values[:, 2] = 7
    distance = cdist(xy, xy)
    weight = distance <= np.sort(distance, axis=1)[:, [6]] * (1 + 1e-6)
    weight = (weight | weight.T) & ~np.eye(len(xy), dtype=bool)
    found = morans_i(values, xy)
    for gene in range(2):
        z = values[:, gene] - values[:, gene].mean()
        assert found[gene] == pytest.approx(len(z) / weight.sum() * (z @ weight @ z) / (z @ z), rel=1e-9)
    assert np.isnan(found[2])


def test_with_noise_a_good_prediction_has_the_i_of_the_truth():
    """Signals of many strengths, noise of one: I of the prediction says 1 for all of them."""
    from anndata import AnnData

    rng = np.random.default_rng(0)
    row, col = (index.ravel() for index in np.indices((40, 40)))
    signal = np.sin(col / 6)[:, None] * np.linspace(0.1, 2, 20)
    split = np.where((row % 2 == 0) & (col % 2 == 0), "train", "test")
    adata = AnnData(signal, obs=pd.DataFrame({"split": split}, index=[f"s{i}" for i in range(1600)]))
    adata.obsm["spatial"] = np.stack([col, row], axis=1).astype(float)
    adata.layers["truth"] = signal + rng.normal(0, 1, signal.shape)
    adata.layers["sd"] = np.ones(signal.shape)
    table = spatial_genes(adata)
    assert (table["predicted"] > 0.9).all()
    np.testing.assert_allclose(table["with_noise"], table["truth"], atol=0.08)
    assert rank_agreement(table["truth"], table["with_noise"])["spearman"] > 0.95


def test_rank_agreement_by_hand():
    truth = pd.Series(np.arange(9.0), list("abcdefghi"))
    assert rank_agreement(truth, truth) == {"spearman": 1.0, "top": 3, "shared": 3}
    assert rank_agreement(truth, -truth) == {"spearman": -1.0, "top": 3, "shared": 0}
    other = truth.copy()
    other["i"] = np.nan
    assert rank_agreement(truth, other) == {"spearman": 1.0, "top": 2, "shared": 2}
