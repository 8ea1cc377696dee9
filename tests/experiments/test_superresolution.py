"""Thinned sections, interpolation, and the command on a small section."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.interpolate import CloughTocher2DInterpolator, LinearNDInterpolator, griddata
from scipy.spatial import KDTree

from experiments.studies import superresolution
from spabit_jax.data.prepared import Prepared
from spabit_jax.datasets.simulate import simulate_section
from spabit_jax.errors import InputError
from spabit_jax.readers import read_section
from spabit_jax.readers.lattice import is_staggered
from tests import commands


def section(array, xy):
    return anndata.AnnData(
        np.arange(len(xy), dtype=np.float32)[:, None],
        obs=pd.DataFrame(array, columns=["array_row", "array_col"], index=[f"s{i}" for i in range(len(xy))]),
        obsm={"spatial": np.asarray(xy, float)},
        uns={"spabit": {"name": "S"}},
    )


@pytest.mark.parametrize("lattice", ["hex", "square"])
@pytest.mark.parametrize("every", [2, 3])
def test_a_thinned_section_is_the_same_lattice_larger(lattice, every):
    row, col = (a.ravel() for a in np.mgrid[:12, :12])
    array, xy = np.stack([row, col], 1), 10.0 * np.stack([col, row], 1)
    if lattice == "hex":
        array[:, 1] = 2 * col + row % 2
        xy = 10.0 * np.stack([array[:, 1] / 2, row * 3**0.5 / 2], 1)
    adata = section(array + [3, 5], xy)
    truth = pd.DataFrame({"a": np.arange(144.0)})
    task = superresolution.thinned(adata, truth, every, None)
    kept, places = task.adata, task.locations
    assert kept.n_obs * every**2 == 144 and kept.n_obs + len(places.xy) == 144
    assert set(kept.obs_names) | set(places.names) == set(adata.obs_names)
    nearest = KDTree(kept.obsm["spatial"]).query(kept.obsm["spatial"], k=2)[0][:, 1]
    np.testing.assert_allclose(nearest, 10 * every)
    assert is_staggered(kept.obs[["array_row", "array_col"]].to_numpy()) == (lattice == "hex")
    np.testing.assert_array_equal(task.counts["a"], [int(name[1:]) for name in places.names])
    # one affine map takes array coordinates of spots and of locations to pixels
    coarse = np.concatenate([kept.obs[["array_row", "array_col"]], places.array])
    pixels = np.concatenate([kept.obsm["spatial"], places.xy])
    full = np.c_[coarse, np.ones(144)]
    np.testing.assert_allclose(full @ np.linalg.lstsq(full, pixels, rcond=None)[0], pixels, atol=1e-6)
    with pytest.raises(InputError, match="leave it out of --every"):
        superresolution.thinned(adata, truth, 12, None)


def test_interpolation_is_that_of_scipy_and_takes_the_nearest_outside():
    rng = np.random.default_rng(0)
    xy, inside = rng.uniform(0, 10, (60, 2)), rng.uniform(4, 6, (20, 2))
    expression = rng.normal(size=(60, 3))
    for kind, interpolator in (("linear", LinearNDInterpolator), ("cubic", CloughTocher2DInterpolator)):
        found = superresolution.interpolated(xy, expression, inside, interpolator)
        np.testing.assert_allclose(found, griddata(xy, expression, inside, kind), atol=1e-6)
        far = superresolution.interpolated(xy, expression, np.array([[-50.0, 5.0]]), interpolator)
        nearest = np.argmin(np.linalg.norm(xy - [-50, 5], axis=1))
        np.testing.assert_array_equal(far[0], expression[nearest])


def test_a_denser_simulation_is_the_same_section():
    settings = {"n_rows": 8, "n_cols": 7, "n_genes": 40, "pitch": 30.0}
    dense, _ = simulate_section(0, density=4, **settings)
    assert KDTree(dense.obsm["spatial"]).query(dense.obsm["spatial"], k=2)[0][:, 1] == pytest.approx(7.5)
    task = superresolution.thinned(dense, pd.DataFrame(dense.layers["mu"]), 4, None)
    xy = task.adata.obsm["spatial"]
    assert np.median(KDTree(xy).query(xy, k=2)[0][:, 1]) == pytest.approx(30)
    # what a spot sees varies over the pitch of the measured ones: neighbours of the dense lattice are alike
    distance, index = KDTree(dense.obsm["spatial"]).query(dense.obsm["spatial"], k=2)
    histology = dense.obsm["histology"]
    near = np.corrcoef(histology[:, 0], histology[index[:, 1], 0])[0, 1]
    of_spots = KDTree(xy).query(xy, k=2)[1][:, 1]
    measured = task.adata.obsm["histology"][:, 0]
    assert near > 0.8 > np.corrcoef(measured, measured[of_spots])[0, 1]


def test_results_and_tables(simulated, tiny_config, tmp_path, monkeypatch):
    """The network and the slow kriging stand in for themselves elsewhere: here they are not trained."""
    fitted = []

    class FarOff:
        def __init__(self, prepared, seeds):
            fitted.append(list(seeds))
            self.mean = prepared.section().expression.mean(axis=0) + 9

        def predict_at(self, locations):
            return anndata.AnnData(np.tile(self.mean, (len(locations.xy), 1)))

    monkeypatch.setattr(superresolution, "fit", FarOff)
    monkeypatch.setattr(superresolution, "KRIGINGS", ("kriging",))
    adata = read_section(simulated)
    counts = pd.DataFrame(adata.X.toarray(), columns=adata.var_names)
    task = superresolution.thinned(adata, counts, 2, None)
    tiny_config.data.split = "none"
    prepared = Prepared(task.adata, tiny_config, "stain", tmp_path / "cache")
    rows = superresolution.results(task, prepared, 2, tmp_path)
    table = pd.DataFrame(rows).set_index("method")
    assert list(table.index) == ["linear", "cubic", "kriging", "default"] and fitted == [[0, 1]]
    assert (table["n_train"] + table["n_test"] == adata.n_obs).all() and (table["section"] == "tiny").all()
    # scores are those of the locations' own truth
    at = adata.obs_names.get_indexer(task.locations.names)
    linear = griddata(task.adata.obsm["spatial"], prepared.section().expression, task.locations.xy, "linear")
    inside = np.isfinite(linear[:, 0])
    saved = np.load(tmp_path / "predictions" / "tiny_every2.stain.linear.npz")["mean"]
    np.testing.assert_allclose(saved[inside], linear[inside], atol=1e-3)
    totals = counts.sum(axis=1).to_numpy()
    kept = adata.obs_names.get_indexer(task.adata.obs_names)
    normalised = np.log1p(counts[prepared.genes].to_numpy() / totals[:, None] * np.median(totals[kept]))
    expected = ((saved - normalised[at]) ** 2).mean()
    assert table.loc["linear", "mse"] == pytest.approx(expected, rel=1e-5)
    assert table.loc["kriging", "mse"] < table.loc["cubic", "mse"] < table.loc["default", "mse"]
    # again: nothing is computed
    monkeypatch.setattr(superresolution, "predict", None)
    assert superresolution.results(task, prepared, 2, tmp_path) == rows
    superresolution.write(tmp_path, pd.DataFrame(rows))
    assert len(pd.read_csv(tmp_path / "results.csv")) == 4
    n = table["n_train"].iloc[0]
    assert (
        f"| tiny | every 2 | {n} / {adata.n_obs - n} | {table['pcc'].iloc[0]:.3f}"
        in (tmp_path / "results.md").read_text()
    )


@pytest.mark.parametrize(
    ("flags", "message"), [(["--every=two"], "--every needs"), (["--simulated=0"], "nothing to do")]
)
def test_bad_flags_give_one_line_and_status_2(tmp_path, flags, message):
    done = commands.run("experiments.superresolution", f"--out={tmp_path / 'out'}", *flags)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and message in done.stderr
    assert not list(tmp_path.iterdir())
