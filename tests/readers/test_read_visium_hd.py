from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import tifffile

from spabit_jax.data.split import split_spots
from spabit_jax.errors import InputError
from spabit_jax.readers import read_section


def assert_bins(adata, visium_hd, size):
    table, counts = visium_hd.spots(size)
    assert list(adata.obs_names) == list(table["barcode"])
    np.testing.assert_array_equal(adata.X.toarray(), counts)
    np.testing.assert_array_equal(adata.obsm["spatial"], table[["pxl_col_in_fullres", "pxl_row_in_fullres"]])
    np.testing.assert_array_equal(adata.obs[["array_row", "array_col"]], table[["array_row", "array_col"]])
    info = adata.uns["spabit"]
    assert (info["format"], info["lattice"], info["um_per_px"]) == ("visium_hd", "square", visium_hd.um_per_px)
    assert info["array_min"].tolist() == [0, 0] and info["array_max"].tolist() == [96 // size - 1, 80 // size - 1]
    assert adata.uns["spatial"]["HD1"]["scalefactors"]["spot_diameter_fullres"] == size / visium_hd.um_per_px


def test_bins_of_each_size(visium_hd, tmp_path):
    visium_hd.write()
    assert_bins(read_section(visium_hd.folder), visium_hd, 8)
    assert_bins(read_section(visium_hd.folder, bin_um=16), visium_hd, 16)
    for folder in (visium_hd.bins(16), visium_hd.folder / "binned_outputs"):
        bin_um = 16 if folder.name == "binned_outputs" else None
        assert_bins(read_section(folder, bin_um=bin_um), visium_hd, 16)
    (tmp_path / "S").mkdir()
    visium_hd.folder.rename(tmp_path / "S/outs")
    assert read_section(tmp_path / "S").uns["spabit"]["name"] == "S"


def test_pixels_of_the_bins_agree_with_their_size(visium_hd):
    path = visium_hd.write()
    for factors in path.glob("binned_outputs/*/spatial/scalefactors_json.json"):
        factors.unlink()
    assert read_section(path).uns["spabit"].get("um_per_px") is None  # no pitch is guessed


def test_a_quarter_of_the_bins_is_for_training(visium_hd):
    adata = read_section(visium_hd.write(), bin_um=16)
    row, col = adata.obs["array_row"], adata.obs["array_col"]
    np.testing.assert_array_equal(split_spots(adata, "lattice"), (row % 2 == 0) & (col % 2 == 0))


def test_barcodes_as_the_index_of_the_parquet(visium_hd):
    visium_hd.write()
    visium_hd.table[8].set_index("barcode").to_parquet(visium_hd.bins(8) / "spatial/tissue_positions.parquet")
    assert_bins(read_section(visium_hd.folder), visium_hd, 8)


def test_the_microscope_s_image_is_taken_not_cytassist_s(visium_hd):
    folder = visium_hd.write()
    for file in ("HD1_image.tif", "HD1_tissue_image.btf"):
        tifffile.imwrite(folder / file, np.zeros((310, 270, 3), np.uint8), photometric="rgb")
    for path in (folder, visium_hd.bins(8)):
        info = read_section(path).uns["spabit"]
        assert (info["image_path"], info["image_scale"]) == (str(folder.resolve() / "HD1_tissue_image.btf"), 1.0)
    own = visium_hd.bins(8) / "spatial/tissue_hires_image.png"
    assert read_section(folder, image=own).uns["spabit"]["image_scale"] == 0.5


def test_positions_as_parquet_in_a_visium_folder(visium):
    visium.write()
    (visium.folder / "spatial/tissue_positions_list.csv").unlink()
    visium.table.to_parquet(visium.folder / "spatial/tissue_positions.parquet")
    assert list(read_section(visium.folder).obs_names) == list(visium.spots["barcode"])


def test_genes_of_the_same_name_stay_apart(visium_hd):
    adata = read_section(visium_hd.write())
    assert [*adata.var_names] == ["TP53", "ACTB", "ACTB-1", "MT-CO1", "KRT8"]
    assert [*adata.var["gene_ids"]] == [f"ENSG{i:03}" for i in range(5)]


def test_errors(visium_hd, visium):
    def error(*args, **kwargs) -> str:
        with pytest.raises(InputError) as caught:
            read_section(*args, **kwargs)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    folder = visium_hd.write()
    assert "no bins of 2 µm: give --bin_um=8|16" in error(folder, bin_um=2)
    assert "holds bins of 16 µm, not --bin_um=8" in error(visium_hd.bins(16), bin_um=8)
    assert "--bin_um is not for sections of the format visium" in error(visium.write(), bin_um=8)
    assert "no bins" in error(visium.folder, format="visium_hd")

    path = visium_hd.bins(8) / "spatial/tissue_positions.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert f"{path}: cannot be read as a positions file" in error(folder)
    visium_hd.table[8].drop(columns="array_row").to_parquet(path)
    assert f"{path}: 5 columns" in error(folder)
    visium_hd.table[16].to_parquet(path)
    assert "share no spot in tissue" in error(folder)
    pd.concat([visium_hd.table[8]] * 2).to_parquet(path)
    assert "occurs twice" in error(folder)
    path.unlink()
    assert "no positions" in error(folder)
    (visium_hd.bins(8) / "filtered_feature_bc_matrix.h5").unlink()
    assert f"{visium_hd.bins(8)}: no counts" in error(folder)
