"""What the order of the rows in a section's files changes."""

import h5py
import numpy as np
import pandas as pd
import pytest

import spabit_jax as sj
from spabit_jax.config import Config
from spabit_jax.datasets.simulate import simulate_section
from spabit_jax.datasets.simulate_formats import write_visium

# Train spots are predicted without their fold, and folds are drawn among them as they are ordered: root mean square of
# the difference, in sd.
OTHER_FOLDS = 0.3


def shuffle_positions(folder, order):
    path = folder / "spatial" / "tissue_positions.csv"
    pd.read_csv(path).iloc[order].to_csv(path, index=False)


def shuffle_counts(folder, order):
    with h5py.File(folder / "filtered_feature_bc_matrix.h5", "r+") as file:
        matrix, start = file["matrix"], file["matrix/indptr"][:]
        rows = np.concatenate([np.arange(start[i], start[i + 1]) for i in order])
        for name in ("data", "indices"):
            matrix[name][:] = matrix[name][:][rows]
        matrix["indptr"][:] = np.concatenate([[0], np.cumsum(np.diff(start)[order])])
        matrix["barcodes"][:] = matrix["barcodes"][:][order]


@pytest.fixture(scope="module")
def predicted(tmp_path_factory):
    """Makes the predictions of a section with shuffled files: ``predicted(*shuffles)``."""

    def predict(*shuffles):
        folder = tmp_path_factory.mktemp("order")
        adata, image = simulate_section(seed=2, n_rows=12, n_cols=10, n_genes=30, pitch=40.0, name="S")
        path = write_visium(adata, image, folder / "S")
        for shuffle in shuffles:
            shuffle(path, np.random.default_rng(0).permutation(len(adata)))
        config = Config()
        config.data.n_genes = 12
        found = sj.fit(sj.prepare(path, config, cache_dir=folder / "cache"), seeds=1).predict()
        return found[adata.obs_names, sorted(found.var_names)]

    return predict


def test_the_order_of_rows(predicted):
    as_written, counts, positions = predicted(), predicted(shuffle_counts), predicted(shuffle_positions)
    np.testing.assert_array_equal(counts.X, as_written.X)
    np.testing.assert_array_equal(counts.layers["sd"], as_written.layers["sd"])
    test = (as_written.obs["split"] == "test").to_numpy()
    np.testing.assert_allclose(positions.X[test], as_written.X[test], rtol=1e-4, atol=1e-5)
    difference = (positions.X - as_written.X)[~test] / as_written.layers["sd"][~test]
    assert np.sqrt(np.square(difference).mean()) < OTHER_FOLDS
