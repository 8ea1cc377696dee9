from __future__ import annotations

import json
import re
import subprocess
import sys

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import sparse

from spabit_jax.errors import InputError
from spabit_jax.readers import FORMATS, read_section, section_name
from spabit_jax.readers.tables import read_labels


def dense(adata):
    return adata.X.toarray()


def assert_visium(adata, visium):
    assert list(adata.obs_names) == list(visium.spots["barcode"])
    np.testing.assert_array_equal(dense(adata), visium.truth)
    expected = visium.spots[["pxl_col_in_fullres", "pxl_row_in_fullres"]]
    np.testing.assert_array_equal(adata.obsm["spatial"], expected)
    np.testing.assert_array_equal(adata.obs[["array_row", "array_col"]], visium.spots[["array_row", "array_col"]])
    assert (adata.obs["in_tissue"] == 1).all()
    assert adata.uns["spabit"]["array_min"].tolist() == [1, 2]  # spots off the tissue count
    assert adata.uns["spabit"]["array_max"].tolist() == [7, 23]
    assert adata.uns["spabit"]["lattice"] == "hex"
    assert adata.uns["spabit"]["um_per_px"] == pytest.approx(1, rel=1e-3)


def test_visium_gives_what_is_promised(visium):
    adata = read_section(visium.write())
    assert_visium(adata, visium)
    assert sparse.isspmatrix_csr(adata.X) or isinstance(adata.X, sparse.csr_array)
    assert adata.X.dtype == np.float32
    assert adata.obsm["spatial"].dtype == np.float64
    assert adata.var_names.is_unique
    assert list(adata.var["gene_ids"]) == [f"ENSG{i:03}" for i in range(len(visium.genes))]
    library = adata.uns["spatial"]["S1"]
    assert {key: image.shape for key, image in library["images"].items()} == {
        "hires": (350, 650, 3),
        "lowres": (70, 130, 3),
    }
    assert library["scalefactors"] == {
        "tissue_hires_scalef": 0.5,
        "tissue_lowres_scalef": 0.1,
        "spot_diameter_fullres": 55.0,
    }
    assert adata.uns["spabit"]["image_path"] == str(visium.folder.resolve() / "spatial/tissue_hires_image.png")
    assert adata.uns["spabit"]["image_scale"] == 0.5
    assert "label" not in adata.obs


@pytest.mark.parametrize("header", [False, True])
@pytest.mark.parametrize("file", ["spatial/tissue_positions_list.csv", "spatial/tissue_positions.csv"])
def test_header_of_positions_is_found_by_looking(visium, file, header):
    visium.write()
    (visium.folder / "spatial/tissue_positions_list.csv").unlink()
    visium.positions(file, header)
    assert_visium(read_section(visium.folder), visium)
    path = visium.folder / file
    words = {",1,": ",True,", ",0,": ",False,"}
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(re.sub(",[01],", lambda found: words[found[0]], line, count=1) for line in lines))
    assert_visium(read_section(visium.folder), visium)


def test_labels_of_barcodes_that_are_numbers(tmp_path):
    (tmp_path / "labels.csv").write_text("01,a\n02,b\n")
    assert list(read_labels(tmp_path / "labels.csv", pd.Index(["02", "01"]))) == ["b", "a"]


def test_prefix_outs_and_name(visium, tmp_path):
    visium.write()
    (visium.folder / "filtered_feature_bc_matrix.h5").rename(visium.folder / "V1_filtered_feature_bc_matrix.h5")
    sample = tmp_path / "sample"
    sample.mkdir()
    visium.folder.rename(sample / "outs")
    for path in (sample, sample / "outs"):
        adata = read_section(path)
        assert_visium(adata, visium)
        assert list(adata.uns["spatial"]) == ["sample"] and adata.uns["spabit"]["name"] == "sample"
    assert "other" in read_section(sample, name="other").uns["spatial"]


def test_names(tmp_path):
    assert section_name(tmp_path / "a" / "square_008um") == "a"
    (tmp_path / "C2.tsv.gz").touch()
    assert section_name(tmp_path / "C2.tsv.gz") == "C2"
    (tmp_path / "E1.h5ad").touch()
    assert section_name(tmp_path / "E1.h5ad") == "E1"


@pytest.mark.parametrize("columns", [1, 2, 3])
@pytest.mark.parametrize("folder", ["filtered_feature_bc_matrix", "filtered_count_matrix"])
def test_mtx(visium, folder, columns):
    visium.write()
    (visium.folder / "filtered_feature_bc_matrix.h5").unlink()
    visium.mtx(folder, columns)
    adata = read_section(visium.folder)
    assert_visium(adata, visium)
    assert adata.uns["spabit"]["format"] == ("visium" if "feature" in folder else "reference")
    assert list(adata.var_names)[::4] == visium.genes[::4]


def test_genes_and_spots_that_are_called_as_what_is_missing(visium):
    """Drosophila has a gene called nan."""
    visium.write()
    (visium.folder / "filtered_feature_bc_matrix.h5").unlink()
    visium.mtx("filtered_feature_bc_matrix")
    file = next((visium.folder / "filtered_feature_bc_matrix").glob("features.tsv*"))
    file.unlink()
    names = ["nan", "NA", "None", "NULL", "KRT8"]
    rows = [f"ENSG{i}\t{name}\tGene Expression\n" for i, name in enumerate(names)]
    file.with_name("features.tsv").write_text("".join(rows))
    assert list(read_section(visium.folder).var_names) == names


@pytest.mark.parametrize("name", ["", "barcodes"])
def test_columns_of_positions_are_found_by_name_whatever_barcodes_are_called(visium, name):
    visium.write()
    table = visium.table.rename(columns={"barcode": name})
    columns = [*table.columns[:4], "pxl_col_in_fullres", "pxl_row_in_fullres"]
    table[columns].to_csv(visium.folder / "spatial/tissue_positions_list.csv", index=False)
    assert_visium(read_section(visium.folder), visium)


def test_only_scale_factors_that_are_used_must_be_numbers(visium):
    visium.write()
    path = visium.folder / "spatial/scalefactors_json.json"
    factors = json.loads(path.read_text())
    path.write_text(json.dumps(factors | {"source": "x.tif", "fiducial_diameter_fullres": 0, "nothing": None}))
    assert_visium(read_section(visium.folder), visium)
    path.write_text(json.dumps(factors | {"spot_diameter_fullres": "wide"}))
    with pytest.raises(InputError, match="spot_diameter_fullres is 'wide'"):
        read_section(visium.folder)


@pytest.mark.filterwarnings("ignore:Variable names are not unique")  # assemble() makes them so
@pytest.mark.parametrize("version", [2, 3])
def test_an_h5_file_is_read_as_scanpy_reads_it(visium, version):
    import scanpy

    from spabit_jax.readers.visium import read_10x

    visium.write()
    path = visium.folder / "filtered_feature_bc_matrix.h5"
    if version == 2:
        with h5py.File(path, "r+") as file:
            file.move("matrix", "GRCh38")
            file["GRCh38/genes"], file["GRCh38/gene_names"] = (file[f"GRCh38/features/{key}"] for key in ("id", "name"))
            del file["GRCh38/features"]
    found, expected = read_10x(path), scanpy.read_10x_h5(path)
    np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
    pd.testing.assert_frame_equal(found.obs, expected.obs)
    pd.testing.assert_frame_equal(found.var, expected.var)


def test_only_gene_expression_is_kept(visium):
    visium.write()
    types = ["Gene Expression", "Antibody Capture", *["Gene Expression"] * 3]
    visium.h5(types=types)
    np.testing.assert_array_equal(dense(read_section(visium.folder)), visium.truth[:, [0, 2, 3, 4]])
    with h5py.File(visium.folder / "filtered_feature_bc_matrix.h5", "r+") as file:
        file["matrix/indices"][3] = 10**8  # found before genes are selected: compiled code would follow it
    with pytest.raises(InputError, match="indices must be"):
        read_section(visium.folder)


def test_scale_factor_of_a_missing_image_is_left_out(visium):
    visium.write()
    (visium.folder / "spatial/tissue_hires_image.png").unlink()
    adata = read_section(visium.folder)
    assert set(adata.uns["spatial"]["S1"]["images"]) == {"lowres"}
    assert "tissue_hires_scalef" not in adata.uns["spatial"]["S1"]["scalefactors"]
    assert adata.uns["spabit"]["image_scale"] == 0.1


@pytest.mark.parametrize(
    "file", ["image.jpg", "V1_image.tif", "spatial/S1_full_image.tif", "spatial/image.tif", "image.png"]
)
def test_full_resolution_image_wins(visium, file):
    visium.write()
    visium.image("spatial/detected_tissue_image.jpg", 0.1)
    image = visium.image(file)
    section = read_section(visium.folder).uns["spabit"]
    assert (section["image_path"], section["image_scale"]) == (str(image.resolve()), 1.0)


def test_image_flag(visium, tmp_path):
    visium.write()
    lowres = visium.folder / "spatial/tissue_lowres_image.png"
    assert read_section(visium.folder, image=lowres).uns["spabit"]["image_scale"] == 0.1
    other = tmp_path / "slide.png"
    visium.image("image.png").rename(other)
    section = read_section(visium.folder, image=str(other)).uns["spabit"]
    assert (section["image_path"], section["image_scale"]) == (str(other.resolve()), 1.0)


def test_spots_without_counts_and_counts_without_position_are_dropped(visium, caplog):
    visium.write()
    lost = visium.spots["barcode"].iloc[3]
    barcodes = ["STRAY-1" if barcode == lost else barcode for barcode in visium.barcodes]
    visium.h5(barcodes)
    with caplog.at_level("INFO"):
        adata = read_section(visium.folder)
    keep = np.arange(len(visium.spots)) != 3
    assert list(adata.obs_names) == list(visium.spots["barcode"][keep])
    np.testing.assert_array_equal(dense(adata), visium.truth[keep])
    assert caplog.text.count("without counts") == 1
    assert "1 spots in tissue without counts" in caplog.text and "counts of 1 spots" in caplog.text
    assert "of these counts?" not in caplog.text
    visium.h5([f"STRAY{i}-1" if i < 8 else barcode for i, barcode in enumerate(visium.barcodes)])
    read_section(visium.folder)
    assert any(r.levelname == "WARNING" and "of these counts?" in r.getMessage() for r in caplog.records)


def test_reference_folder(visium):
    visium.positions("tissue_positions_list.csv")
    frame = pd.DataFrame(visium.counts, index=visium.barcodes, columns=[*"ABCDE"])
    frame.to_csv(visium.folder / "counts.csv")
    image = visium.image("image.jpg")
    labels = np.arange(len(visium.spots)) % 3
    np.savetxt(visium.folder / "label.txt", labels, fmt="%d")
    adata = read_section(visium.folder)
    assert_visium(adata, visium)
    assert adata.uns["spabit"]["format"] == "reference"
    assert adata.uns["spabit"]["image_path"] == str(image.resolve())
    assert adata.obs["label"].astype(int).tolist() == labels.tolist()
    assert list(adata.var_names) == [*"ABCDE"]


def test_reference_folder_with_h5_is_read_as_visium_reads_it(visium):
    visium.write()
    truth = pd.Series([f"Layer_{i % 4}" for i in range(len(visium.barcodes))], index=visium.barcodes)
    truth.iloc[0] = np.nan
    truth.to_csv(visium.folder / "S1_truth.txt", sep="\t", header=False)
    one, other = read_section(visium.folder), read_section(visium.folder, format="visium")
    assert (one.uns["spabit"]["format"], other.uns["spabit"]["format"]) == ("reference", "visium")
    for adata in (one, other):
        assert_visium(adata, visium)
        assert adata.obs["label"].isna().sum() == 1
        known = adata.obs["label"].dropna()
        assert known.astype(str).to_dict() == truth.dropna().to_dict()


@pytest.mark.parametrize("separator", [",", "\t"])
@pytest.mark.parametrize("header", [["", "layer_guess_reordered"], False])
def test_labels_flag(visium, tmp_path, separator, header):
    visium.write()
    labels = pd.Series("WM", index=visium.barcodes[:-2])
    labels.iloc[5] = "Layer1"
    labels.to_frame().to_csv(tmp_path / "labels.txt", sep=separator, header=header[1:] if header else False)
    label = read_section(visium.folder, labels=tmp_path / "labels.txt").obs["label"]
    assert label.isna().sum() == 2 and label[visium.barcodes[5]] == "Layer1"
    assert set(label.cat.categories) == {"WM", "Layer1"}


@pytest.mark.parametrize("positions", ["C2_selection.tsv", "alignment_table_C2.tsv"])
def test_legacy_st(legacy_st, positions):
    adata = read_section(legacy_st.write(positions))
    assert list(adata.obs_names) == legacy_st.spots
    np.testing.assert_array_equal(dense(adata), legacy_st.counts.loc[legacy_st.spots])
    names = np.array([name.split("x") for name in adata.obs_names], int)
    np.testing.assert_array_equal(adata.obs[["array_col", "array_row"]], names)
    np.testing.assert_allclose(adata.obsm["spatial"], 40.5 * names)
    section = adata.uns["spabit"]
    assert (section["name"], section["format"], section["lattice"]) == ("C2", "st", "square")
    assert section["um_per_px"] == pytest.approx(200 / 40.5)
    assert section["array_min"].tolist() == [11, 3]
    assert "image_path" not in section and "spatial" not in adata.uns


def test_only_selected_spots_reach_array_min(legacy_st):
    legacy_st.table["selected"] = (legacy_st.table["x"] > 3).astype(int)
    section = read_section(legacy_st.write()).uns["spabit"]
    assert section["array_min"].tolist() == [11, 4]


def test_legacy_st_labels_and_image(legacy_st, tmp_path):
    path = legacy_st.write()
    labels = pd.DataFrame({"x": legacy_st.table["x"] + 0.2, "y": legacy_st.table["y"] - 0.3, "label": "tumour"})
    labels.loc[4, "label"] = "fat"
    labels.loc[len(labels)] = [np.nan, np.nan, "lost"]
    labels.iloc[3:].to_csv(tmp_path / "C2_labeled_coordinates.tsv", sep="\t", index=False)
    row = legacy_st.table.loc[4]
    slide = np.full((600, 3000, 3), 255, np.uint8)
    slide[round(row.pixel_y) - 15 :, round(row.pixel_x) - 15 :][:30, :30] = 0
    Image.fromarray(slide).save(tmp_path / "C2.jpg")
    adata = read_section(path)
    assert adata.obs["label"][f"{row.x:.0f}x{row.y:.0f}"] == "fat"
    assert adata.obs["label"].isna().sum() == 1 and set(adata.obs["label"].cat.categories) == {"fat", "tumour"}
    library = adata.uns["spatial"]["C2"]
    assert library["images"]["hires"].shape == (400, 2000, 3)
    assert library["scalefactors"]["tissue_hires_scalef"] == pytest.approx(2 / 3)
    x, y = np.rint(adata.obsm["spatial"] * 2 / 3).astype(int).T
    dark = library["images"]["hires"][y, x].mean(axis=1) < 128
    assert list(adata.obs_names[dark]) == [f"{row.x:.0f}x{row.y:.0f}"]
    assert adata.uns["spabit"]["image_scale"] == 1.0


@pytest.mark.filterwarnings("ignore:Use `squidpy:FutureWarning", "ignore:The set_bad:PendingDeprecationWarning")
def test_scanpy_draws_it_the_right_way_up(visium):
    import matplotlib

    matplotlib.use("Agg")
    import scanpy

    adata = read_section(visium.write())
    axes = scanpy.pl.spatial(adata, color="KRT8", sort_order=False, show=False)[0]
    spots = next(c for c in axes.collections if isinstance(c, matplotlib.collections.PatchCollection))
    centres = np.array([path.get_extents().corners().mean(0) for path in spots.get_paths()])
    np.testing.assert_allclose(centres, 0.5 * adata.obsm["spatial"], atol=0.1)
    assert axes.get_images()[0].get_array().shape == (350, 650, 3) and axes.yaxis_inverted()
    matplotlib.pyplot.close("all")


def test_every_format_can_be_asked_for():
    known = {"visium", "visium_hd", "segmented", "xenium", "spatialdata", "st", "pairs", "reference", "h5ad", "picture"}
    assert set(FORMATS) == known
    for reader in FORMATS.values():
        assert reader.LOOKS_FOR


def test_neither_jax_nor_torch_is_imported():
    code = "import json, sys, spabit_jax.readers; print(json.dumps([m for m in ('jax', 'torch') if m in sys.modules]))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(output) == []
