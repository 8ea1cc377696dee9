"""The simulated section: its layout, its statistics, and what the image knows that the neighbours do not."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
from PIL import Image
from scipy.spatial import KDTree
from skimage.color import rgb2hed
from sklearn.linear_model import Ridge

from spabit_jax.datasets.simulate import HISTOLOGY, simulate_section, write_section


@pytest.fixture(scope="module")
def section():
    return simulate_section(3, n_rows=20, n_cols=18, n_genes=90)


def test_layout_of_a_visium_like_section(section):
    adata, image = section
    assert adata.n_vars == 90
    assert 0.7 * 20 * 18 < adata.n_obs < 20 * 18
    row, col = adata.obs["array_row"].to_numpy(), adata.obs["array_col"].to_numpy()
    assert ((row + col) % 2 == 0).all()
    spabit = adata.uns["spabit"]
    assert list(spabit["array_min"]) == [0, 0]
    assert list(spabit["array_max"]) == [19, 35]
    distance, neighbour = KDTree(adata.obsm["spatial"]).query(adata.obsm["spatial"], k=2)
    np.testing.assert_allclose(distance[:, 1], 45)
    assert spabit["um_per_px"] * 45 == pytest.approx(100)
    # (x, y): x goes with the column, y with the row
    np.testing.assert_allclose(
        adata.obsm["spatial"] - adata.obsm["spatial"][0],
        np.stack([(col - col[0]) * 22.5, (row - row[0]) * 45 * 3**0.5 / 2], axis=1),
    )
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    assert (adata.obsm["spatial"] > 0).all()
    assert (adata.obsm["spatial"] < image.shape[1::-1]).all()


def test_square_lattice():
    adata, _ = simulate_section(0, n_rows=7, n_cols=11, n_genes=5, lattice="square", pitch=20)
    assert list(adata.uns["spabit"]["array_max"]) == [6, 10]
    array = adata.obs[["array_col", "array_row"]].to_numpy()
    np.testing.assert_allclose(adata.obsm["spatial"] - adata.obsm["spatial"][0], 20 * (array - array[0]))
    with pytest.raises(ValueError, match="hex, square"):
        simulate_section(0, lattice="triangle")
    with pytest.raises(ValueError, match="1 rows"):
        simulate_section(0, n_rows=1)


def test_spots_lie_on_the_tissue_and_the_corners_are_white(section):
    adata, image = section
    x, y = np.rint(adata.obsm["spatial"]).astype(int).T
    brightness = image.mean(axis=2)
    assert np.median(brightness[y, x]) < 215
    for corner in (brightness[:20, :20], brightness[:20, -20:], brightness[-20:, :20], brightness[-20:, -20:]):
        assert corner.mean() > 240


def test_counts_are_negative_binomial_around_mu(section):
    adata, _ = section
    counts, mu = adata.X.toarray(), adata.layers["mu"]
    assert (counts == np.rint(counts)).all()
    assert (counts >= 0).all()
    z = (counts - mu) / np.sqrt(mu + mu**2 / 5)
    assert abs(z.mean()) < 0.02
    assert z.std() == pytest.approx(1, abs=0.05)
    library = mu.sum(axis=1)
    assert library.max() > 1.5 * library.min()


def test_names_give_the_panel_filter_work(section):
    names = section[0].var_names
    assert names.is_unique
    assert sum(names.str.startswith("MT-")) == 3
    assert sum(names.str.startswith("RP")) == 9
    full = simulate_section(0, n_rows=4, n_cols=4)[0].var_names
    assert full.is_unique
    assert sum(~full.str.startswith(("MT-", "RP"))) > 300


def test_markers_follow_their_programme(section):
    adata, _ = section
    share = np.log(adata.layers["mu"] / adata.layers["mu"].sum(axis=1, keepdims=True))
    tumour = (adata.obs["label"] == "tumour").to_numpy()
    assert 10 < tumour.sum() < 0.5 * adata.n_obs
    assert adata.obs["label"].nunique() == 5
    of_tumour = share[:, adata.var["programme"] == "tumour"]
    assert of_tumour[tumour].mean() > of_tumour[~tumour].mean() + 0.5
    for i, kind in enumerate(HISTOLOGY):
        markers = share[:, adata.var["programme"] == kind].mean(axis=1)
        assert np.corrcoef(markers, adata.obsm["histology"][:, i])[0, 1] > 0.5


def test_image_shows_the_histology_that_neighbours_do_not(section):
    adata, image = section
    xy, truth = adata.obsm["spatial"], adata.obsm["histology"]
    train = ((adata.obs["array_row"] % 2 == 0) & (adata.obs["array_col"] % 4 == 0)).to_numpy()
    near = KDTree(xy[train]).query(xy[~train], k=6)[1]  # as the lattice split has it
    hed = rgb2hed(image)
    patches = [hed[y - 24 : y + 24, x - 24 : x + 24].reshape(-1, 3) for x, y in np.rint(xy).astype(int)]
    quantiles = [0.05, 0.25, 0.5, 0.75, 0.95]
    seen = np.stack([np.r_[patch.mean(axis=0), np.quantile(patch, quantiles, axis=0).ravel()] for patch in patches])
    seen = (seen - seen.mean(axis=0)) / seen.std(axis=0)
    for i in range(len(HISTOLOGY)):
        from_image = Ridge(10).fit(seen[::2], truth[::2, i]).score(seen[1::2], truth[1::2, i])
        from_neighbours = np.corrcoef(truth[train][near, i].mean(axis=1), truth[~train, i])[0, 1] ** 2
        assert from_image > from_neighbours + 0.1, (i, from_image, from_neighbours)
    np.testing.assert_allclose(truth.mean(axis=0), 0, atol=0.3)


def test_the_seed_decides(section):
    again, image = simulate_section(3, n_rows=20, n_cols=18, n_genes=90)
    assert (again.X != section[0].X).nnz == 0
    np.testing.assert_array_equal(image, section[1])
    other, _ = simulate_section(4, n_rows=20, n_cols=18, n_genes=90)
    assert other.n_obs != again.n_obs or (other.X != again.X).nnz > 0


def test_written_section_comes_back_whole(section, tmp_path):
    adata, image = section
    path = write_section(adata, image, tmp_path / "new")
    assert path == tmp_path / "new" / "simulated.h5ad"
    assert sorted(p.name for p in path.parent.iterdir()) == ["simulated.h5ad", "simulated.png"]
    back = anndata.read_h5ad(path)
    assert (back.X != adata.X).nnz == 0
    np.testing.assert_array_equal(back.obsm["spatial"], adata.obsm["spatial"])
    assert back.uns["spabit"]["lattice"] == "hex"
    hires = back.uns["spatial"]["simulated"]["images"]["hires"]
    scale = back.uns["spatial"]["simulated"]["scalefactors"]["tissue_hires_scalef"]
    np.testing.assert_allclose(np.array(image.shape[:2]) * scale, hires.shape[:2], atol=1)
    with Image.open(path.with_suffix(".png")) as png:
        np.testing.assert_array_equal(np.asarray(png), image)
