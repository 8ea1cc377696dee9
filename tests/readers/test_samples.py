"""Several sections in one folder or file: the one that is asked for, and nothing of another."""

from __future__ import annotations

import gzip
import json
import shutil

import anndata
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_read_section import assert_visium

from spabit_jax.errors import InputError
from spabit_jax.readers import read_section
from spabit_jax.readers.samples import by_prefix, one_sample


def error(*args, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        read_section(*args, **kwargs)
    return str(caught.value)


def flat(visium, folder, prefix, zipped=("csv", "json", "png")):
    """GEO's way: the files of a section side by side, each with the sample's prefix, most of them gzipped."""
    folder.mkdir(exist_ok=True)
    files = [visium.folder / "filtered_feature_bc_matrix.h5", *(visium.folder / "spatial").iterdir()]
    for file in files:
        copy = folder / f"{prefix}_{file.name}"
        if file.suffix[1:] in zipped:
            (folder / f"{copy.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        else:
            shutil.copy(file, copy)


@pytest.fixture
def two(visium, tmp_path):
    """Two samples with the same barcodes; of the second all counts are one more, and its picture is another."""
    visium.write()
    flat(visium, tmp_path / "geo", "GSM1_S1")
    visium.counts = visium.counts + 1
    visium.h5()
    Image.new("RGB", (650, 350), (90, 20, 60)).save(visium.folder / "spatial/tissue_hires_image.png")
    flat(visium, tmp_path / "geo", "GSM2_S2")
    visium.truth = visium.truth + 1
    return tmp_path / "geo"


def test_a_sample_is_named_by_its_prefix(two, visium):
    message = error(two)
    assert "2 samples (GSM1_S1, GSM2_S2)" in message and "--name=" in message
    assert "2 samples" in error(two, name="S3") and "2 samples" in error(two, name="S")
    for name in ("GSM2_S2", "S2", "GSM2"):
        adata = read_section(two, name=name)
        assert_visium(adata, visium)
        assert (adata.uns["spatial"][name]["images"]["hires"] == [90, 20, 60]).all()
        assert adata.uns["spabit"]["image_scale"] == 0.5
    section = read_section(two / "GSM2_S2_filtered_feature_bc_matrix.h5")
    assert_visium(section, visium)
    assert section.uns["spabit"]["name"] == "GSM2_S2"


def test_nothing_is_taken_from_another_sample(two, visium):
    (two / "GSM2_S2_tissue_positions_list.csv.gz").unlink()
    assert "no positions of GSM2_S2" in error(two, name="S2")
    visium.positions()
    (two / "spatial").mkdir()
    shutil.copy(visium.folder / "spatial/tissue_positions_list.csv", two / "spatial")
    assert "no positions of GSM2_S2" in error(two, name="S2")  # whose are those without a prefix?
    Image.new("RGB", (1300, 700)).save(two / "GSM1_S1_image.png")
    assert read_section(two, name="GSM1_S1").uns["spabit"]["image_path"].endswith("GSM1_S1_image.png")
    assert "hires" in read_section(two, name="S2", positions=visium.positions()).uns["spabit"]["image_path"]


def test_files_whose_prefix_is_a_part_of_the_samples(two, visium):
    """GEO puts its own number before the counts alone; of which sample the others are shows all the same."""
    for file in [*two.glob("GSM2_S2_tissue_positions*"), *two.glob("GSM2_S2_scalefactors*")]:
        file.rename(two / file.name.removeprefix("GSM2_"))
    assert_visium(read_section(two, name="S2"), visium)
    for file in two.glob("S2_*"):
        file.rename(two / file.name.replace("S2_", "S_"))
    assert "no positions of GSM2_S2" in error(two, name="S2")


def test_an_archive_beside_the_counts_is_named(two):
    (two / "GSM2_S2_tissue_positions_list.csv.gz").unlink()
    (two / "GSM1_S1_spatial.tar.gz").touch()
    assert error(two, name="S2").endswith("give --positions")  # that of another sample does not count
    (two / "GSM2_S2_spatial.tar.gz").touch()
    assert error(two, name="S2").endswith("unpack GSM2_S2_spatial.tar.gz there")


@pytest.mark.parametrize("of", ["counts", "positions"])
def test_barcodes_that_have_lost_their_end(visium, of):
    visium.write()
    bare = visium.table["barcode"].str.removesuffix("-1")
    if of == "positions":
        visium.table["barcode"] = bare
    else:
        visium.h5([barcode.removesuffix("-1") for barcode in visium.barcodes])
    visium.positions()
    labels = visium.folder / "labels.csv"
    labels.write_text("".join(f"{name},{i % 3}\n" for i, name in enumerate(bare)))
    adata = read_section(visium.folder, labels=labels)
    np.testing.assert_array_equal(adata.X.toarray(), visium.truth)
    assert adata.obs["label"].notna().all()
    if of == "positions":  # what is known of the counts is kept
        adata.obs["block"], adata.obsm["other"] = np.arange(adata.n_obs), np.arange(adata.n_obs)[:, None]
        file = next(path for path in visium.folder.rglob("tissue_positions*"))
        again = read_section(adata, positions=file)
        assert list(again.obs_names) == list(adata.obs_names) and again.obs["label"].notna().all()
        np.testing.assert_array_equal(again.obs["block"], adata.obs["block"])
        np.testing.assert_array_equal(again.obsm["other"], adata.obsm["other"])
    visium.table["barcode"] = bare + "-2"  # of another sample
    visium.positions()
    assert "share no spot" in error(visium.folder)


@pytest.mark.parametrize("separator", [";", "\t"])
def test_positions_of_other_separators(visium, separator):
    visium.write()
    (visium.folder / "spatial/tissue_positions_list.csv").unlink()
    for name, header in (("tissue_positions.csv", True), ("tissue_positions_list.txt", False)):
        visium.table.to_csv(visium.folder / "spatial" / name, sep=separator, index=False, header=header)
        assert_visium(read_section(visium.folder), visium)
        assert_visium(read_section(visium.folder / "spatial" / name), visium)  # the section around it
        (visium.folder / "spatial" / name).unlink()


def test_one_sample_needs_no_name(visium, tmp_path):
    visium.write()
    flat(visium, tmp_path / "one", "GSM1_S1", zipped=())
    assert_visium(read_section(tmp_path / "one"), visium)


def test_one_sample_takes_what_lies_in_spatial(visium):
    visium.write()
    (visium.folder / "filtered_feature_bc_matrix.h5").rename(visium.folder / "GSM1_S1_filtered_feature_bc_matrix.h5")
    for file in [*(visium.folder / "spatial").iterdir()]:
        file.rename(file.with_name(f"S1_{file.name}"))
    assert_visium(read_section(visium.folder), visium)


def test_matrix_files_beside_spatial(visium):
    visium.write()
    (visium.folder / "filtered_feature_bc_matrix.h5").unlink()
    visium.mtx("m")
    for file in [*(visium.folder / "m").iterdir()]:
        file.rename(visium.folder / file.name)
    for path in (visium.folder, visium.folder / "matrix.mtx.gz", visium.folder / "spatial"):
        adata = read_section(path)
        assert_visium(adata, visium)
        assert adata.uns["spabit"]["name"] == "S1"
    (visium.folder / "features.tsv.gz").unlink()
    assert "features.tsv and barcodes.tsv" in error(visium.folder)


def test_raw_matrix_at_the_spots_in_tissue(visium):
    visium.write()
    rest = visium.table.loc[visium.table["in_tissue"] == 0, "barcode"]
    visium.counts = np.vstack([visium.counts, np.ones((len(rest), len(visium.genes)), int)])
    visium.h5([*visium.barcodes, *rest])
    raw = visium.folder / "raw_feature_bc_matrix.h5"
    (visium.folder / "filtered_feature_bc_matrix.h5").rename(raw)
    assert_visium(read_section(visium.folder), visium)
    assert_visium(read_section(raw), visium)


def test_a_copy_of_the_preview_is_not_the_image_and_has_its_scale(visium, tmp_path):
    visium.write()
    copy = visium.folder / "S1_tissue_hires_image.png"
    shutil.copy(visium.folder / "spatial/tissue_hires_image.png", copy)
    assert read_section(visium.folder).uns["spabit"]["image_path"].endswith("spatial/tissue_hires_image.png")
    assert read_section(visium.folder, image=copy).uns["spabit"]["image_scale"] == 0.5


def test_an_image_that_is_not_the_previews_is_left_out(visium, caplog):
    visium.write()
    Image.new("RGB", (3000, 3200)).save(visium.folder / "S1_image.png")  # CytAssist's
    assert "tissue_hires_image" in read_section(visium.folder).uns["spabit"]["image_path"]
    assert "3000 x 3200" in caplog.text and "1300 x 700" in caplog.text


def test_prefixes(tmp_path):
    endings = {"counts": (r"a\.h5",), "positions": (r"p\.csv",)}
    (tmp_path / "X_spatial").mkdir()
    for name in ("X_a.h5", "Y-a.h5.gz", "X_spatial/p.csv", "Y_spatial_p.csv", "other.h5"):
        (tmp_path / name).touch()
    found = by_prefix([tmp_path / "X_spatial", tmp_path, tmp_path / "none"], endings)
    assert {prefix: set(files) for prefix, files in found.items()} == {
        "X": {"counts", "positions"},
        "Y": {"counts", "positions"},
    }
    assert one_sample(found, "Y", tmp_path, ("counts",))[1]["counts"].name == "Y-a.h5.gz"
    (tmp_path / "a.h5").touch()
    (tmp_path / "p.csv").touch()
    whole = by_prefix([tmp_path], endings)
    (tmp_path / "X_spatial/p.csv").unlink()
    (tmp_path / "Y_spatial_p.csv").unlink()
    assert one_sample(by_prefix([tmp_path], endings), "S", tmp_path, endings)[0] == ""  # the others lack positions
    with pytest.raises(InputError, match="3 samples"):
        one_sample(whole, "S", tmp_path, ("counts",))


@pytest.fixture
def joined(tmp_path):
    """A concatenated .h5ad, and its parts."""
    parts = {}
    for i, name in enumerate("AB"):
        rng = np.random.default_rng(i)
        row, col = (a.ravel() for a in np.mgrid[3:9, 1:6])
        obs = pd.DataFrame({"array_row": row, "array_col": col}, index=[f"{name}{j}" for j in range(30)])
        parts[name] = anndata.AnnData(rng.poisson(3, (30, 4)).astype(np.float32), obs=obs)
        parts[name].obsm["spatial"] = 10.0 * np.column_stack([col, row])
        pixels = np.full((60, 45, 3), 50 + 100 * i, np.uint8)
        library = {"images": {"hires": pixels}, "scalefactors": {"tissue_hires_scalef": 0.5}}
        parts[name].uns["spatial"] = {name: library}
    return anndata.concat(parts, label="sample", uns_merge="unique"), parts


def test_one_section_of_a_concatenated_h5ad(joined, tmp_path):
    adata, parts = joined
    path = tmp_path / "ab.h5ad"
    adata.write_h5ad(path)
    message = error(path)
    assert 'obs["sample"] (A, B)' in message and "--name=" in message
    assert "(A, B)" in error(path, name="C")
    for name in "AB":
        section = read_section(path, name=name)
        assert list(section.obs_names) == list(parts[name].obs_names)
        np.testing.assert_array_equal(section.X.toarray(), parts[name].X)
        value = parts[name].uns["spatial"][name]["images"]["hires"][0, 0, 0]
        assert (section.uns["spatial"][name]["images"]["hires"] == value).all()
        assert (np.asarray(Image.open(section.uns["spabit"]["image_path"])) == value).all()
        assert section.uns["spabit"]["image_scale"] == 0.5
    Image.new("RGB", (200, 200), (9, 9, 9)).save(tmp_path / "ab.png")  # of which of them?
    assert read_section(path, name="B").uns["spabit"]["image_path"] != str(tmp_path / "ab.png")
    assert "(A, B)" in error(adata)
    assert read_section(adata, name="A").n_obs == 30


def test_a_section_that_was_cut_out_of_several(joined):
    adata, parts = joined
    cut = adata[(adata.obs["sample"] == "A").to_numpy()].copy()
    for section in (read_section(cut), read_section(cut, name="A")):
        assert section.n_obs == parts["A"].n_obs
        value = parts["A"].uns["spatial"]["A"]["images"]["hires"][0, 0, 0]
        assert (np.asarray(Image.open(section.uns["spabit"]["image_path"])) == value).all()


def test_images_are_found_by_another_column_than_the_one_that_names_the_section(joined):
    adata, _ = joined
    adata.obs["library_id"] = adata.obs["sample"]
    adata.obs["sample"] = adata.obs["sample"].map({"A": 0.0, "B": 1.0}).astype(float)  # as R writes them
    assert 'obs["library_id"] (A, B)' in error(adata)
    assert "image_path" in read_section(adata, name="1").uns["spabit"]


def test_what_is_beside_the_libraries_is_none(joined):
    """As the schema of CELLxGENE has it."""
    adata, _ = joined
    one = adata[(adata.obs["sample"] == "A").to_numpy()].copy()
    one.uns["spatial"] = {"is_single": np.bool_(True), "A": one.uns["spatial"]["A"]}
    assert "image_path" in read_section(one).uns["spabit"]


@pytest.mark.parametrize("column", ["orig.ident", "Sample.ID", "sampleName", "slide", "patient_id", "whatever"])
def test_columns_that_tell_sections_apart(joined, column):
    adata, parts = joined
    adata.obs = adata.obs.rename(columns={"sample": column})
    assert f'obs["{column}"] (A, B)' in error(adata)
    np.testing.assert_array_equal(read_section(adata, name="B").X.toarray(), parts["B"].X)
    del adata.uns["spatial"]
    if column == "whatever":  # only the names of the libraries said what it is
        assert "share array places" in error(adata, name="B")
    else:
        assert read_section(adata, name="B").n_obs == 30


def test_a_library_that_is_several_sections_itself(joined):
    adata, _ = joined
    adata.obs["batch"] = "one"
    adata.obs = adata.obs.rename(columns={"sample": "cut"})
    more = anndata.concat([adata, adata[:5].copy()], index_unique="-")
    more.obs["batch"] = [*["one"] * 60, *["two"] * 5]
    assert "share array places" in error(more, name="one")


def test_sections_that_no_column_tells_apart(joined):
    adata, _ = joined
    del adata.obs["sample"]
    assert "2 sections (A, B)" in error(adata, name="A") and "library_id" in error(adata)
    del adata.uns["spatial"]
    assert "60 spots share array places" not in error(adata) and "share array places" in error(adata)
    adata.obs.loc[adata.obs_names[30:], "array_row"] += 20
    adata.obsm["spatial"][30:] += 300
    assert read_section(adata).n_obs == 60


def test_no_image_of_another_library(joined):
    adata, parts = joined
    adata.uns["spatial"] = dict(parts["A"].uns["spatial"])
    assert "image_path" in read_section(adata, name="A").uns["spabit"]
    assert "image_path" not in read_section(adata, name="B").uns["spabit"]


def test_one_extent_whatever_the_container(visium, tmp_path):
    """Of a .h5ad that holds spots in tissue alone, the array is Visium's, as of Space Ranger's folder."""
    whole = [(r, c) for r in range(78) for c in range(128) if (r + c) % 2 == 0]
    table = pd.DataFrame(whole, columns=["array_row", "array_col"])
    table.insert(0, "in_tissue", (table["array_row"].between(3, 6) & (table["array_col"] < 30)).astype(int))
    table.insert(0, "barcode", [f"SPOT{i}" for i in range(len(table))])
    table["pxl_row_in_fullres"], table["pxl_col_in_fullres"] = 17.32 * table["array_row"], 10 * table["array_col"]
    visium.table, spots = table, table[table["in_tissue"] == 1]
    visium.counts = np.ones((len(spots), len(visium.genes)), int)
    visium.h5([*spots["barcode"]])
    visium.positions()
    folder = read_section(visium.folder)
    bare = folder.copy()
    del bare.uns["spabit"]
    info, again = folder.uns["spabit"], read_section(bare).uns["spabit"]
    for key in ("array_min", "array_max", "lattice"):
        assert np.array_equal(info[key], again[key])


def test_unknown_folders_are_answered_with_the_nearest_layout(visium, tmp_path):
    def answer(folder) -> str:
        message = error(folder).removeprefix(f"{folder}: ")
        assert len(message) < 200
        return message

    visium.write()
    assert "S1" in answer(tmp_path)
    (visium.folder / "filtered_feature_bc_matrix.h5").unlink()
    assert "nearest is Visium" in answer(visium.folder) and "filtered_feature_bc_matrix.h5" in answer(visium.folder)
    for file, words in [
        ("cells.parquet", "Xenium"),
        ("cell_segmentations.geojson", "filtered_feature_cell_matrix.h5"),
        ("C2_selection.tsv", "legacy ST"),
        ("all.tar.gz", "unpack all.tar.gz"),
        ("S.h5ad", "S.h5ad"),
        ("C2.tsv.gz", "C2.tsv.gz"),
        ("slice_coor.csv", "pair of tables"),
    ]:
        folder = tmp_path / f"with {file}"
        folder.mkdir()
        (folder / file).touch()
        assert words in answer(folder)
    assert "unpack it" in answer(tmp_path / "with all.tar.gz/all.tar.gz")


def test_two_genomes_are_named(visium, caplog):
    import h5py

    visium.write()
    with h5py.File(visium.folder / "filtered_feature_bc_matrix.h5") as file:
        old = {key: file["matrix"][key][()] for key in ("barcodes", "data", "indices", "indptr", "shape")}
        ids, names = file["matrix/features/id"][()], file["matrix/features/name"][()]
    with h5py.File(visium.folder / "filtered_feature_bc_matrix.h5", "w") as file:
        for genome in ("GRCh38", "mm10"):
            for key, values in (old | {"genes": ids, "gene_names": names}).items():
                file[f"{genome}/{key}"] = values
    adata = read_section(visium.folder)
    np.testing.assert_array_equal(adata.X.toarray(), np.hstack([visium.truth, visium.truth]))
    assert adata.var_names[0] == "GRCh38_TP53" and adata.var_names[5] == "mm10_TP53"
    assert "GRCh38, mm10" in caplog.text


def test_words_for_in_tissue(visium, tmp_path):
    adata = read_section(visium.write()).copy()
    del adata.uns["spabit"]
    adata.obs["in_tissue"] = ["False", *["True"] * (adata.n_obs - 1)]
    assert read_section(adata).n_obs == adata.n_obs - 1
    adata.obs["in_tissue"] = ["perhaps", *["True"] * (adata.n_obs - 1)]
    assert "in_tissue is perhaps" in error(adata)


def test_counts_that_are_all_0(visium):
    visium.counts = 0 * visium.counts
    assert "all counts" in error(visium.write())


def test_scale_factors_may_be_missing(visium, caplog):
    visium.write()
    (visium.folder / "spatial/scalefactors_json.json").write_text(json.dumps({"tissue_lowres_scalef": 0.1}))
    assert read_section(visium.folder).uns["spabit"]["image_scale"] == 0.1
    (visium.folder / "spatial/scalefactors_json.json").unlink()
    assert "image_path" not in read_section(visium.folder).uns["spabit"]
    assert "no scalefactors_json.json" in caplog.text
