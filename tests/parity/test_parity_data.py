"""Metrics, panel, split, imputed expression and graph against plain versions of the reference's rules."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.neighbors import KDTree

from experiments.studies import reference_torch
from spabit_jax.data.genes import select_genes
from spabit_jax.data.split import split_spots
from spabit_jax.evaluation import metrics
from spabit_jax.neighbours import impute_from_train, knn_graph


def test_metrics():
    rng = np.random.default_rng(0)
    truth, prediction = rng.gamma(1, size=(31, 13)), rng.gamma(1, size=(31, 13))
    truth[:, 2] = 0  # not expressed
    prediction[:, [5, 7]] = 0  # killed by the ReLU
    oracle = reference_torch.metrics(truth, prediction)
    ours = metrics.gene_metrics(truth, prediction)
    summary = metrics.summarize(ours)
    np.testing.assert_allclose(summary["pcc_defined"], oracle["pcc"], rtol=1e-12)
    np.testing.assert_allclose([summary["mse"], summary["mae"]], [oracle["mse"], oracle["mae"]], rtol=1e-12)
    np.testing.assert_allclose(ours["pcc"].where(~ours["constant"]), oracle["gene_pcc"], rtol=1e-10)
    by_hand = [np.corrcoef(truth[:, g], prediction[:, g])[0, 1] for g in range(13) if g not in (2, 5, 7)]
    np.testing.assert_allclose(oracle["pcc"], np.mean(by_hand), rtol=1e-12)
    assert np.flatnonzero(np.isnan(oracle["gene_pcc"])).tolist() == [2, 5, 7]


@pytest.mark.parametrize("n_genes", [300, 11])
def test_panel(n_genes):
    rng = np.random.default_rng(1)
    n, n_all = 53, 1511
    prefixes = ["MT-", "mt-", "RP", "rp", *"ABCDEFGHIJKLM"]
    names = [f"{prefixes[i % len(prefixes)]}{i}" for i in range(n_all)]
    counts = rng.negative_binomial(0.5, 0.5 / (0.5 + rng.gamma(0.3, 3, n_all)), (n, n_all)).astype(np.float32)
    counts[:, rng.permutation(n_all)[:97]] = 0
    adata = anndata.AnnData(sp.csr_matrix(counts), var=pd.DataFrame(index=names))

    table = pd.DataFrame(counts.astype(float), columns=names)
    table = table.loc[:, table.sum() > 0]
    logged = np.log(1 + table.div(table.sum(axis=1), axis=0) * 1e4)
    top = set(logged.mean().nlargest(1000).index) & set(logged.std(ddof=1).nlargest(1000).index)
    expected = [gene for gene in sorted(top) if gene[:3] not in ("MT-", "mt-") and gene[:2] not in ("RP", "rp")]

    assert 300 < len(expected) < 1000 < table.shape[1] < n_all
    assert select_genes(adata, "reference", n_genes, np.ones(n, bool)) == expected[:n_genes]


def lattice(kind: str) -> np.ndarray:
    """(row, col) of all positions, from (3, 5) on, so that the lattice of train spots starts at (4, 6)."""
    rows, cols = range(3, 18), range(5, 25)
    return np.array([(r, c) for r in rows for c in cols if kind == "square" or (r + c) % 2 == 0])


@pytest.mark.parametrize("kind, col_step", [("hex", 4), ("square", 2)])
def test_split(kind, col_step):
    array = lattice(kind)
    inside = np.hypot(array[:, 0] - 10, array[:, 1] - 15) < 9.5
    last_col = 24 if kind == "hex" else 25  # the column range stops before the maximum on the hexagon
    chosen = {(row, col) for row in range(4, 18, 2) for col in range(6, last_col, col_step)}
    expected = [tuple(spot) in chosen for spot in array[inside].tolist()]
    names = pd.Index([f"{row}x{col}" for row, col in array[inside]])
    adata = anndata.AnnData(obs=pd.DataFrame(array[inside], names, ["array_row", "array_col"]))
    adata.uns["spabit"] = {"name": "s", "lattice": kind, "array_min": array.min(0), "array_max": array.max(0)}
    is_train = split_spots(adata, "lattice")
    np.testing.assert_array_equal(is_train, expected)
    assert 0.15 < is_train.mean() < 0.35


@pytest.mark.parametrize("ties", [False, True])
def test_imputed_expression(ties):
    """Without ties any search finds the neighbours; with ties they are the KDTree's."""
    rng = np.random.default_rng(2)
    counts = rng.poisson(3, (83, 7)).astype(float)
    is_train = rng.random(83) < 0.4
    coordinates = lattice("hex")[:83].astype(float) if ties else rng.random((83, 2))
    expected = np.log2(counts + 1)
    for i in np.flatnonzero(~is_train):
        if ties:
            near = KDTree(coordinates[is_train]).query(coordinates[[i]], k=6)[1][0]
        else:
            near = np.argsort(np.linalg.norm(coordinates[is_train] - coordinates[i], axis=1))[:6]
        expected[i] = np.log2(counts[is_train][near].mean(axis=0) + 1)
    hidden = np.where(is_train[:, None], counts, np.nan)  # nothing of a test spot may be looked at
    np.testing.assert_allclose(impute_from_train(hidden, coordinates, is_train, 6), expected, rtol=1e-6)


@pytest.mark.parametrize("ties", [False, True])
def test_graph(ties):
    """The 6 nearest others, symmetrised by union, unweighted, no self loops."""
    xy = lattice("hex").astype(float) if ties else np.random.default_rng(3).random((83, 2))
    n = len(xy)
    adjacency = np.zeros((n, n), int)
    if ties:
        near = KDTree(xy).query(xy, k=7)[1]
    else:
        near = np.linalg.norm(xy[:, None] - xy[None], axis=-1).argsort(axis=1)[:, :7]
    for i in range(n):
        for j in near[i]:
            if j != i:
                adjacency[i, j] = adjacency[j, i] = 1
    senders, receivers = knn_graph(xy, 6)
    mine = np.zeros((n, n), int)
    np.add.at(mine, (receivers, senders), 1)  # an edge given twice would show
    np.testing.assert_array_equal(mine, adjacency)
    assert (mine.sum(axis=0) >= 6).all() and (mine.sum(axis=0) > 6).any()
