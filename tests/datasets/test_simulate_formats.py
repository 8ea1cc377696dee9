"""Simulated sections in other layouts, through the readers of those layouts."""

import numpy as np
import pytest
from skimage.io import imread

from spabit_jax.datasets.simulate import simulate_section
from spabit_jax.datasets.simulate_formats import write_visium, write_visium_hd, write_xenium
from spabit_jax.readers import read_section
from tests import commands


@pytest.fixture(scope="module")
def simulated():
    return simulate_section(3, n_rows=9, n_cols=11, n_genes=30, lattice="square", pitch=16.0, name="S")


@pytest.mark.parametrize("write, lattice, um_per_px", [(write_visium, "hex", 6.25), (write_visium_hd, "square", 0.5)])
def test_visium_comes_back(simulated, write, lattice, um_per_px, tmp_path):
    adata, image = simulated
    if lattice == "hex":
        adata, image = simulate_section(3, n_rows=9, n_cols=11, n_genes=30, pitch=16.0, name="S")
    found = read_section(write(adata, image, tmp_path / "S"))
    info = found.uns["spabit"]
    assert (f"write_{info['format']}", info["lattice"]) == (write.__name__, lattice)
    assert info["um_per_px"] == pytest.approx(um_per_px) and "hires" not in str(info["image_path"])
    np.testing.assert_array_equal(found.X.toarray(), adata.X.toarray())
    np.testing.assert_allclose(found.obsm["spatial"], adata.obsm["spatial"])
    for name in ("array_row", "array_col"):
        np.testing.assert_array_equal(found.obs[name], adata.obs[name])
    np.testing.assert_array_equal(imread(found.uns["spabit"]["image_path"]), image)


def test_xenium_comes_back_near_the_spots(simulated, tmp_path):
    adata, image = simulated
    found = read_section(write_xenium(adata, image, tmp_path / "S", np.random.default_rng(0)))
    assert found.uns["spabit"]["format"] == "xenium"
    np.testing.assert_array_equal(found.X.toarray(), adata.X.toarray())
    away = np.abs(found.obsm["spatial"] - adata.obsm["spatial"])
    assert 0.5 < away.max() <= 16 / 3 + 1e-6
    np.testing.assert_array_equal(imread(found.uns["spabit"]["image_path"]), image)


def test_command(tmp_path):
    command = ["experiments.simulate", "--format=xenium", "--spots=60"]
    result = commands.run(*command, f"--out={tmp_path / 'X'}")
    assert result.returncode == 0, result.stderr
    found = read_section(result.stdout.split("--section=")[1].strip())
    assert 40 < found.n_obs < 80
    for out, message in (("", "--out"), (str(tmp_path / "X"), "not empty")):
        result = commands.run(*command, f"--out={out}")
        assert result.returncode == 2 and message in result.stderr
