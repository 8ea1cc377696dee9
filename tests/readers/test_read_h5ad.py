from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from spabit_jax.errors import InputError
from spabit_jax.readers import read_section


@pytest.mark.parametrize("images", [True, False])
def test_h5ad_round_trip(visium, tmp_path, images):
    visium.write()
    if not images:
        for key in ("hires", "lowres"):
            (visium.folder / f"spatial/tissue_{key}_image.png").unlink()
    adata = read_section(visium.folder)
    adata.obs["label"] = pd.Categorical(np.arange(adata.n_obs) % 2)
    adata.write_h5ad(tmp_path / "S1.h5ad")
    stored = anndata.read_h5ad(tmp_path / "S1.h5ad")
    assert stored.uns["spabit"]["lattice"] == "hex" and ("image_path" in stored.uns["spabit"]) == images
    again = read_section(tmp_path / "S1.h5ad")
    assert (again.X != adata.X).nnz == 0 and list(again.obs_names) == list(adata.obs_names)
    pd.testing.assert_frame_equal(again.obs, adata.obs)
    assert again.uns["spabit"]["array_min"].tolist() == [1, 2]
    np.testing.assert_array_equal(again.obsm["spatial"], adata.obsm["spatial"])
    if images:
        np.testing.assert_array_equal(
            again.uns["spatial"]["S1"]["images"]["hires"], adata.uns["spatial"]["S1"]["images"]["hires"]
        )


@pytest.mark.parametrize("place", ["layers", "X", "raw"])
def test_h5ad_finds_raw_counts(tmp_path, place):
    counts = np.arange(12, dtype=np.float32).reshape(4, 3)
    adata = anndata.AnnData(counts.copy(), obs=pd.DataFrame(index=list("abcd")), var=pd.DataFrame(index=list("ABC")))
    if place == "raw":
        adata.raw = adata.copy()
    elif place == "layers":
        adata.layers["counts"] = counts
    if place != "X":
        adata.X = np.log1p(counts)
    adata.obsm["spatial"] = np.array([[10, 10], [20, 10], [10, 20], [20, 20]])
    adata.write_h5ad(tmp_path / "a.h5ad")
    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    result = read_section(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(result.X.toarray(), counts)
    assert result.obs[["array_row", "array_col"]].to_numpy().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert result.uns["spabit"]["image_path"] == str(tmp_path.resolve() / "a.png")
    assert "um_per_px" not in result.uns["spabit"]


def test_h5ad_images_of_scanpy_become_uint8(tmp_path):
    adata = anndata.AnnData(np.ones((2, 1), np.float32), obsm={"spatial": np.array([[1.0, 2], [3, 4]])})
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3))
    scalefactors = {"tissue_hires_scalef": 0.5, "tissue_lowres_scalef": 0.1, "spot_diameter_fullres": 3.0}
    adata.uns["spatial"] = {"x": {"images": {"hires": np.float32(pixels / 255)}, "scalefactors": scalefactors}}
    adata.write_h5ad(tmp_path / "a.h5ad")
    library = read_section(tmp_path / "a.h5ad").uns["spatial"]["a"]
    np.testing.assert_array_equal(library["images"]["hires"], pixels)
    assert library["images"]["hires"].dtype == np.uint8
    assert library["scalefactors"] == {"tissue_hires_scalef": 0.5, "spot_diameter_fullres": 3.0}


@pytest.mark.parametrize("full", [False, True])
def test_h5ad_of_a_section_says_all_that_its_files_said(visium, tmp_path, full):
    visium.write()
    if full:
        visium.image("image.png")
    adata = read_section(visium.folder)
    assert adata.uns["spabit"]["image_scale"] == (1 if full else 0.5)
    adata.write_h5ad(tmp_path / "kept.h5ad")
    again = read_section(tmp_path / "kept.h5ad", image=adata.uns["spabit"]["image_path"], name="S1")
    for key in set(adata.uns["spabit"]) - {"positions_path"}:
        assert np.array_equal(again.uns["spabit"][key], adata.uns["spabit"][key]), key
    other = visium.image("other.png")
    assert read_section(tmp_path / "kept.h5ad", image=other).uns["spabit"]["image_scale"] == 1


@pytest.mark.parametrize("place", ["X_spatial", "obs", "obs, of R", "frame, of R"])
def test_h5ad_finds_places(visium, place):
    wanted = read_section(visium.write())
    adata = wanted.copy()
    del adata.uns["spabit"]
    xy = pd.DataFrame(adata.obsm.pop("spatial"), adata.obs_names, ["pxl_col_in_fullres", "pxl_row_in_fullres"])
    if "R" in place:
        xy.columns = ["imagecol", "imagerow"]
    xy = xy.iloc[:, ::-1]  # y first
    if place == "X_spatial":
        adata.obsm["X_spatial"] = xy.to_numpy()[:, ::-1]
    elif place == "frame, of R":
        adata.obsm["spatial"] = xy
    else:
        adata.obs[xy.columns] = xy
    np.testing.assert_array_equal(read_section(adata, name="S1").obsm["spatial"], wanted.obsm["spatial"])
    del adata.obsm, adata.obs
    with pytest.raises(InputError, match="nor columns pxl_col_in_fullres, pxl_row_in_fullres in obs"):
        read_section(adata)


def test_h5ad_has_genes_alone():
    obs, types = pd.DataFrame(index=list("abcd")), ["Gene Expression", "Gene Expression", "Antibody Capture"]
    adata = anndata.AnnData(np.ones((4, 3), np.float32), obs, pd.DataFrame({"feature_types": types}, list("ABC")))
    adata.obsm["spatial"] = np.array([[10.0, 10], [20, 10], [10, 20], [20, 20]])
    assert list(read_section(adata, name="a").var_names) == ["A", "B"]


def test_h5ad_says_what_it_does_not_use(visium, caplog):
    adata = read_section(visium.write()).copy()
    del adata.uns["spabit"], adata.uns["spatial"]["S1"]["scalefactors"]
    assert "image_path" not in read_section(adata, name="S1").uns["spabit"]
    assert "no tissue_…_scalef for its image hires, lowres: it is not used" in caplog.text
    adata.layers["umi"] = adata.X.copy()
    adata.X = adata.X.log1p()
    with pytest.raises(InputError, match=r"layers\['umi'\] may be, then call it counts"):
        read_section(adata)
