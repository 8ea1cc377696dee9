"""Layouts as their authors publish them: legacy ST, pairs of tables, segmented Visium HD, Xenium without its parts."""

from __future__ import annotations

import gzip
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tenx_files import GENES, write_h5

from spabit_jax.errors import InputError
from spabit_jax.neighbours import spot_pitch
from spabit_jax.readers import read_section


def assert_legacy(adata, legacy_st, image=None):
    assert list(adata.obs_names) == legacy_st.spots
    np.testing.assert_array_equal(adata.X.toarray(), legacy_st.counts.loc[legacy_st.spots])
    names = np.array([name.split("x") for name in adata.obs_names], int)
    np.testing.assert_allclose(adata.obsm["spatial"], 40.5 * names)
    if image is not None:
        assert (np.asarray(Image.open(adata.uns["spabit"]["image_path"])) == image).all()


def test_gse144240(legacy_st, tmp_path):
    legacy_st.path = tmp_path / "GSM4284316_P2_ST_rep1_stdata.tsv.gz"
    legacy_st.write("GSM4284316_spot_data-selection-P2_ST_rep1.tsv.gz")
    pixels = np.full((700, 400, 3), 77, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "he.png")
    image = tmp_path / "GSM4284316_P2_ST_rep1.png.gz"
    image.write_bytes(gzip.compress((tmp_path / "he.png").read_bytes()))
    for name in ("GSM4284317_P2_ST_rep2_stdata.tsv.gz", "GSM4284317_spot_data-selection-P2_ST_rep2.tsv.gz"):
        (tmp_path / name).touch()  # another sample beside it
    adata = read_section(legacy_st.path)
    assert_legacy(adata, legacy_st, pixels)
    assert adata.uns["spabit"]["name"] == "GSM4284316_P2_ST_rep1"


def test_her2st_folders(legacy_st, tmp_path):
    for folder in ("ST-cnts", "ST-spotfiles", "ST-imgs/C/C2", "ST-imgs/C/C3", "ST-pat/lbl"):
        (tmp_path / folder).mkdir(parents=True)
    legacy_st.path = tmp_path / "ST-cnts/C2.tsv.gz"
    legacy_st.write("../ST-spotfiles/C2_selection.tsv")
    pixels = np.full((700, 400, 3), 77, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "ST-imgs/C/C2/5714_HE_BT_C2.png")
    Image.fromarray(pixels + 1).save(tmp_path / "ST-imgs/C/C3/5714_HE_BT_D1.png")
    labels = legacy_st.table[["x", "y"]].assign(label="tumour")
    labels.to_csv(tmp_path / "ST-pat/lbl/C2_labeled_coordinates.tsv", sep="\t", index=False)
    adata = read_section(legacy_st.path)
    assert_legacy(adata, legacy_st, pixels)
    assert (adata.obs["label"] == "tumour").all()


def test_turned_table_and_adjusted_names(legacy_st):
    path = legacy_st.write()
    legacy_st.counts.T.to_csv(path, sep="\t")
    assert_legacy(read_section(path), legacy_st)
    adjusted = legacy_st.counts.copy()
    adjusted.index = [f"{int(x) + 0.02:.3f}x{int(y) - 0.02:.3f}" for x, y in (n.split("x") for n in adjusted.index)]
    adjusted.to_csv(path, sep="\t")
    adata = read_section(path)
    np.testing.assert_array_equal(adata.X.toarray(), legacy_st.counts.loc[legacy_st.spots])


def test_adjusted_names_of_which_one_agrees_with_a_place(legacy_st):
    table = legacy_st.table
    table.loc[3, ["new_x", "new_y"]] = table.loc[3, ["x", "y"]].to_numpy() + 0.001
    places = table["x"].astype(str) + "x" + table["y"].astype(str)
    adjusted = [f"{x:.3f}x{y:.3f}" for x, y in table[["new_x", "new_y"]].to_numpy()]
    counts = legacy_st.counts
    legacy_st.counts = counts.rename(index=dict(zip(places, adjusted, strict=True)))
    adata = read_section(legacy_st.write())
    np.testing.assert_array_equal(adata.X.toarray(), counts.loc[legacy_st.spots])


def test_counts_and_positions_that_share_a_few_spots_are_refused(legacy_st):
    kept = legacy_st.spots[0]
    legacy_st.counts.index = [name if name == kept else f"{90 + i}x7" for i, name in enumerate(legacy_st.counts.index)]
    with pytest.raises(InputError, match="share only 1 of 19 spots in tissue"):
        read_section(legacy_st.write())


@pytest.mark.parametrize("form", ["X{}x{}", "{}_{}", "{}.0x{}.0", "X{}_{}"])
def test_places_however_names_write_them(legacy_st, form):
    legacy_st.counts.index = [form.format(*name.split("x")) for name in legacy_st.counts.index]
    legacy_st.spots = [form.format(*name.split("x")) for name in legacy_st.spots]
    adata = read_section(legacy_st.write())
    assert list(adata.obs_names) == legacy_st.spots
    np.testing.assert_array_equal(adata.X.toarray(), legacy_st.counts.loc[legacy_st.spots])
    names = adata.obs[["array_col", "array_row"]].to_numpy()
    np.testing.assert_allclose(adata.obsm["spatial"], 40.5 * names)


@pytest.mark.parametrize(
    ("counts", "positions"),
    [("C2.csv", "C2_selection.csv"), ("C2.txt", "spot_data-all-C2.tsv"), ("C2.csv.gz", "alignment_table_C2.csv")],
)
def test_legacy_tables_of_other_endings(legacy_st, tmp_path, counts, positions):
    legacy_st.path = tmp_path / counts
    legacy_st.counts.to_csv(legacy_st.path, sep=";" if counts == "C2.txt" else ",")
    legacy_st.table.to_csv(tmp_path / positions, index=False)
    assert_legacy(read_section(legacy_st.path), legacy_st)


def test_spots_whose_names_are_their_coordinates(tmp_path, caplog):
    rng = np.random.default_rng(0)
    xy = np.array([(x, y) for x in range(3, 9) for y in range(5, 10)]) + rng.uniform(-0.05, 0.05, (30, 2)).round(3)
    names = [f"{x:.3f}x{y:.3f}" for x, y in xy]
    counts = pd.DataFrame(rng.poisson(3, (30, 4)), index=names, columns=list("ABCD"))
    counts.to_csv(tmp_path / "Rep11.tsv", sep="\t")
    adata = read_section(tmp_path / "Rep11.tsv")
    assert "16" not in adata.obs_names and list(adata.obs_names) == names
    np.testing.assert_allclose(adata.obsm["spatial"], 200 * xy)
    np.testing.assert_array_equal(adata.obs[["array_col", "array_row"]], xy.round())
    assert adata.uns["spabit"]["um_per_px"] == pytest.approx(1, rel=0.02) and "names say" in caplog.text


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_pairs_of_csv(tmp_path, turned, named):
    rng = np.random.default_rng(0)
    xy = np.array([(x, y) for x in range(6) for y in range(5)]) * 40.0 + 100 + rng.uniform(-1, 1, (30, 2))
    spots = [f"b{i}" for i in range(30)]
    counts = pd.DataFrame(rng.poisson(3, (30, 4)), index=spots, columns=list("ABCD"))
    (counts.T if turned else counts).to_csv(tmp_path / "s_counts.csv")
    coordinates, order = pd.DataFrame(xy, index=spots, columns=["xcoord", "ycoord"]), np.arange(30)
    if named:
        order = rng.permutation(30)
        coordinates.iloc[order].rename_axis("barcode").to_csv(tmp_path / "s_coordinates.csv")
    else:
        coordinates.to_csv(tmp_path / "s_coordinates.csv", index=False, header=False)
    (tmp_path / "t_coordinates.csv").write_text("another section's\n")
    adata = read_section(tmp_path / "s_counts.csv")
    assert list(adata.obs_names) == [spots[i] for i in order]
    np.testing.assert_array_equal(adata.X.toarray(), counts.iloc[order])
    np.testing.assert_allclose(adata.obsm["spatial"], xy[order])
    assert adata.obs["array_row"].nunique() == 5 and adata.obs["array_col"].nunique() == 6
    (tmp_path / "s_coords.csv").write_text("")
    with pytest.raises(InputError, match=r"s_coordinates.csv or s_coords.csv.*--positions"):
        read_section(tmp_path / "s_counts.csv")


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ("barcode,x_um,y_um,n_counts", ["x", "y", "other"]),
        ("barcode,coord_y,coord_x", ["y", "x"]),
        ("cell,centroid_x,centroid_y,area", ["x", "y", "other"]),
        ("barcode,row,col,cluster", ["y", "x", "other"]),
        ("barcode,n_counts,imagerow,imagecol,array_x", ["other", "y", "x", "other"]),
        ("barcode,lon,lat", ["x", "y"]),
    ],
)
def test_columns_of_coordinates_by_their_names(tmp_path, header, columns):
    known = {"x": np.arange(20) % 5 * 40 + 7, "y": np.arange(20) // 5 * 40 + 9, "other": 1000 - np.arange(20)}
    table = pd.DataFrame(np.stack([known[name] for name in columns], axis=1), index=[f"b{i}" for i in range(20)])
    table.to_csv(tmp_path / "s_coordinates.csv", header=header.split(",")[1:], index_label=header.split(",")[0])
    pd.DataFrame(1, index=table.index, columns=list("ABC")).to_csv(tmp_path / "s_counts.csv")
    adata = read_section(tmp_path / "s_counts.csv")
    np.testing.assert_array_equal(adata.obsm["spatial"], np.stack([known["x"], known["y"]], axis=1))


@pytest.mark.parametrize("names", [[f"b{i}" for i in range(20)], [f"{i:04}" for i in range(20)]])
def test_coordinates_that_pandas_wrote_of_an_array(tmp_path, names):
    """Their header is ",0,1": no spot; and spots of which the names are digits keep their zeros."""
    xy = np.stack([np.arange(20) % 5 * 40, np.arange(20) // 5 * 40], axis=1)
    pd.DataFrame(xy, index=names).to_csv(tmp_path / "s_coordinates.csv")
    pd.DataFrame(1, index=names, columns=list("ABC")).to_csv(tmp_path / "s_counts.csv")
    adata = read_section(tmp_path / "s_counts.csv")
    assert list(adata.obs_names) == names
    np.testing.assert_array_equal(adata.obsm["spatial"], xy)
    assert adata.uns["spabit"]["array_max"].tolist() == [3, 4]


@pytest.mark.parametrize("header", ["barcode,one,two,n_counts", "barcode,x_um,y_um,x_px,y_px"])
def test_coordinates_that_cannot_be_told_are_refused(tmp_path, header):
    rows = "".join(f"b{i}" + f",{i}" * header.count(",") + "\n" for i in range(9))
    (tmp_path / "s_coordinates.csv").write_text(f"{header}\n{rows}")
    pd.DataFrame(1, index=[f"b{i}" for i in range(9)], columns=list("ABC")).to_csv(tmp_path / "s_counts.csv")
    with pytest.raises(InputError, match="which columns are x and y"):
        read_section(tmp_path / "s_counts.csv")


def test_slide_seq_lies_on_no_lattice(tmp_path):
    rng = np.random.default_rng(0)
    beads = ["".join(letters) for letters in rng.choice(list("ACGT"), (50, 14))]
    counts = pd.DataFrame(rng.poisson(3, (50, 4)), index=beads, columns=list("ABCD"))
    counts.T.rename_axis("GENE").to_csv(tmp_path / "Puck_1.digital_expression.txt.gz", sep="\t")
    table = pd.DataFrame(rng.uniform(0, 900, (50, 2)), index=beads, columns=["xcoord", "ycoord"])
    table.rename_axis("barcode").to_csv(tmp_path / "Puck_1_bead_locations.csv")
    adata = read_section(tmp_path / "Puck_1.digital_expression.txt.gz")
    np.testing.assert_array_equal(adata.X.toarray(), counts)
    np.testing.assert_allclose(adata.obsm["spatial"], table)
    assert adata.uns["spabit"]["lattice"] == "square"
    assert adata.uns["spabit"]["spot_px"] == pytest.approx(spot_pitch(table.to_numpy()))
    (tmp_path / "Puck_1_bead_locations.csv").unlink()
    with pytest.raises(InputError, match="no coordinates beside it"):
        read_section(tmp_path / "Puck_1.digital_expression.txt.gz")


@pytest.fixture
def segmented(tmp_path):
    """Space Ranger 4's cells: triangles and squares about known centroids, in another order than the counts."""
    folder = tmp_path / "S1/outs/segmented_outputs"
    (folder / "spatial").mkdir(parents=True)
    rng = np.random.default_rng(0)
    xy, counts = rng.uniform(50, 250, (20, 2)), rng.poisson(2, (20, len(GENES)))
    write_h5(folder / "filtered_feature_cell_matrix.h5", counts, [f"cellid_{i + 1:09}-1" for i in range(20)])
    corners = [[0, 0], [9, 0], [0, 9], [0, 0]], [[0, 0], [0, 6], [6, 6], [6, 0], [0, 0]]
    features = []
    for i in rng.permutation(20):
        ring = np.array(corners[i % 2], float)
        geometry = {"type": "Polygon", "coordinates": [(ring - 3 + xy[i]).tolist()]}
        features.append({"type": "Feature", "geometry": geometry, "properties": {"cell_id": int(i) + 1}})
    (folder / "cell_segmentations.geojson").write_text(json.dumps({"features": features}))
    (folder / "graphclust_annotated_cell_segmentations.geojson").write_text("{}")
    factors = {"microns_per_pixel": 0.27, "tissue_hires_scalef": 0.5}
    (folder / "spatial/scalefactors_json.json").write_text(json.dumps(factors))
    Image.new("RGB", (150, 150), (200, 120, 160)).save(folder / "spatial/tissue_hires_image.png")
    return folder, xy, counts


def test_segmented_visium_hd(segmented):
    folder, xy, counts = segmented
    for path in (folder, folder.parent, folder / "filtered_feature_cell_matrix.h5", folder / "spatial"):
        adata = read_section(path)
        cell = np.array([int(name[7:16]) - 1 for name in adata.obs_names])
        assert sorted(cell) == list(range(20))
        np.testing.assert_allclose(adata.obsm["spatial"], xy[cell])
        np.testing.assert_array_equal(adata.X.toarray(), counts[cell])
        info = adata.uns["spabit"]
        assert (info["format"], info["name"], info["um_per_px"], info["image_scale"]) == ("segmented", "S1", 0.27, 0.5)
    (folder / "cell_segmentations.geojson").write_text('{"features": []}')
    with pytest.raises(InputError, match="no cells"):
        read_section(folder)
    (folder / "cell_segmentations.geojson").unlink()
    (folder / "graphclust_annotated_cell_segmentations.geojson").unlink()
    with pytest.raises(InputError, match="not both"):
        read_section(folder)


@pytest.mark.parametrize("outlines", ["graphclust_annotated_cell", "nucleus"])
def test_other_outlines_of_cells(segmented, outlines):
    """The same cells: with the clusters in them, those of the nuclei, gzipped; and GEO's prefix before each name."""
    folder, xy, counts = segmented
    text = (folder / "cell_segmentations.geojson").read_bytes()
    for file in folder.glob("*.geojson"):
        file.unlink()
    (folder / f"{outlines}_segmentations.geojson.gz").write_bytes(gzip.compress(text))
    for file in [*folder.glob("*.*"), *folder.glob("spatial/*")]:
        file.rename(file.with_name(f"GSM1_S1_{file.name}"))
    Image.new("RGB", (30, 20)).save(folder.parent / "another_image.png")
    moved = folder.rename(folder.with_name("GSM1"))
    adata = read_section(moved)
    cell = np.array([int(name[7:16]) - 1 for name in adata.obs_names])
    np.testing.assert_allclose(adata.obsm["spatial"], xy[cell])
    np.testing.assert_array_equal(adata.X.toarray(), counts[cell])
    assert adata.uns["spabit"]["image_path"].endswith("GSM1_S1_tissue_hires_image.png")  # none from beside it


def test_bins_come_before_cells(segmented, visium_hd):
    folder, _, _ = segmented
    shutil.move(visium_hd.write() / "binned_outputs", folder.parent)
    assert read_section(folder.parent).uns["spabit"]["format"] == "visium_hd"


def test_one_size_of_bins_needs_no_flag(visium_hd):
    visium_hd.write()
    shutil.rmtree(visium_hd.bins(8))
    assert read_section(visium_hd.folder).n_obs == len(visium_hd.spots(16)[0])
    with pytest.raises(InputError, match="no bins of 8 µm"):
        read_section(visium_hd.folder, bin_um=8)


def test_xenium_without_its_experiment_file(xenium, caplog):
    xenium.write()
    (xenium.folder / "experiment.xenium").unlink()
    adata = read_section(xenium.folder)
    order = [xenium.ids.index(name) for name in adata.obs_names]
    np.testing.assert_allclose(adata.obsm["spatial"], xenium.xy[order])
    assert "0.2125 µm" in caplog.text


@pytest.mark.parametrize(
    "image, alignment",
    [
        ("S_HE_image.ome.tif", "S_he_imagealignment.csv"),
        ("S_he_image.ome.tiff", "S_he_imagealignment.csv"),
        ("Other_he_unaligned_image.ome.tif", "Other_he_unaligned_image_matrix.csv"),
    ],
)
def test_names_of_the_he_image(xenium, image, alignment):
    xenium.write()
    (xenium.folder / "S_he_image.ome.tif").rename(xenium.folder / image)
    (xenium.folder / "S_he_imagealignment.csv").rename(xenium.folder / alignment)
    keypoints = pd.DataFrame(np.ones((5, 4)), columns=["fixedX", "fixedY", "alignmentX", "alignmentY"])
    keypoints.to_csv(xenium.folder / "S_he_image_keypoints.csv", index=False)
    adata = read_section(xenium.folder)
    assert adata.uns["spabit"]["image_path"].endswith(image)
    order = [xenium.ids.index(name) for name in adata.obs_names]
    np.testing.assert_allclose(adata.obsm["spatial"], xenium.xy[order])


@pytest.mark.parametrize("kind", ["rgba", "float", "gray", "channels first"])
def test_images_within_an_h5ad_are_used_at_their_scale(visium, tmp_path, kind):
    folder = read_section(visium.write())
    adata = folder.copy()
    del adata.uns["spabit"]
    pixels = adata.uns["spatial"]["S1"]["images"].pop("hires")
    opaque = np.full((*pixels.shape[:2], 1), 255, np.uint8)
    kinds = {"channels first": np.moveaxis(pixels, 2, 0)}
    kinds |= {"rgba": np.concatenate([pixels, opaque], axis=2), "float": pixels / 255, "gray": pixels[..., 0]}
    adata.uns["spatial"]["S1"]["images"]["hires"] = kinds[kind]
    adata.write_h5ad(tmp_path / "S1.h5ad")
    for source in (tmp_path / "S1.h5ad", adata):
        section = read_section(source, name="S1")
        expected = pixels if kind != "gray" else np.repeat(pixels[..., :1], 3, axis=2)
        np.testing.assert_array_equal(np.asarray(Image.open(section.uns["spabit"]["image_path"])), expected)
        assert section.uns["spabit"]["image_scale"] == folder.uns["spabit"]["image_scale"]
        np.testing.assert_array_equal(section.uns["spatial"]["S1"]["images"]["hires"], expected)
