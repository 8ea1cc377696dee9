"""Thinned sections, interpolation, and the command on a small section."""

import subprocess
import sys

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.interpolate import CloughTocher2DInterpolator, LinearNDInterpolator, griddata
from scipy.spatial import KDTree

from experiments import superresolution
from spabit_jax.errors import InputError
from spabit_jax.locations import is_staggered
from spabit_jax.simulate import simulate_section


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
    task = superresolution.thinned(adata, truth, every, 48.0)
    kept, places = task.adata, task.locations
    assert kept.n_obs * every**2 == 144 and kept.n_obs + len(places.xy) == 144
    assert set(kept.obs_names) | set(places.names) == set(adata.obs_names)
    nearest = KDTree(kept.obsm["spatial"]).query(kept.obsm["spatial"], k=2)[0][:, 1]
    np.testing.assert_allclose(nearest, 10 * every)
    assert is_staggered(kept.obs[["array_row", "array_col"]].to_numpy()) == (lattice == "hex")
    np.testing.assert_array_equal(task.truth["a"], [int(name[1:]) for name in places.names])
    # one affine map takes array coordinates of spots and of locations to pixels
    coarse = np.concatenate([kept.obs[["array_row", "array_col"]], places.array])
    pixels = np.concatenate([kept.obsm["spatial"], places.xy])
    full = np.c_[coarse, np.ones(144)]
    np.testing.assert_allclose(full @ np.linalg.lstsq(full, pixels, rcond=None)[0], pixels, atol=1e-6)
    with pytest.raises(InputError, match="leave it out of --every"):
        superresolution.thinned(adata, truth, 12, 48.0)


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
    task = superresolution.thinned(dense, pd.DataFrame(dense.layers["mu"]), 4, 30.0)
    xy = task.adata.obsm["spatial"]
    assert np.median(KDTree(xy).query(xy, k=2)[0][:, 1]) == pytest.approx(30)
    # what a spot sees varies over the pitch of the measured ones: neighbours of the dense lattice are alike
    distance, index = KDTree(dense.obsm["spatial"]).query(dense.obsm["spatial"], k=2)
    histology = dense.obsm["histology"]
    near = np.corrcoef(histology[:, 0], histology[index[:, 1], 0])[0, 1]
    of_spots = KDTree(xy).query(xy, k=2)[1][:, 1]
    measured = task.adata.obsm["histology"][:, 0]
    assert near > 0.8 > np.corrcoef(measured, measured[of_spots])[0, 1]


def test_the_command_and_its_tables(simulated, tmp_path):
    small = ["--config=experiments/configs/demo.py", "--config.model.width=16", "--config.train.epochs=4"]
    small += [
        "--config.model.companions=false",
        "--config.data.n_genes=23",
        "--num_seeds=1",
        "--patch_px=48",
        f"--cache_dir={tmp_path / 'cache'}",
    ]
    flags = [f"--section={simulated}", "--every=2", f"--out={tmp_path / 'out'}", *small]

    def run():
        command = [sys.executable, "-m", "experiments.superresolution", *flags]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    done = run()
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(tmp_path / "out" / "results.csv").set_index("method")
    assert list(rows.index) == ["linear", "cubic", "kriging", "kriging_learned", "demo"]
    n_spots = anndata.read_h5ad(simulated, backed="r").n_obs
    assert (rows["n_train"] + rows["n_test"] == n_spots).all() and (rows["every"] == 2).all()
    assert rows["pcc"].between(-1, 1).all() and (rows["mse"] > 0).all() and rows.loc["demo", "pcc"] > 0.1
    assert "| tiny | every 2 |" in (tmp_path / "out" / "results.md").read_text()
    predictions = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "predictions").iterdir()}
    again = run()
    assert again.stdout == done.stdout
    assert predictions == {path: path.stat().st_mtime_ns for path in predictions}
