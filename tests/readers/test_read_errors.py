from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from spabit_jax.errors import InputError
from spabit_jax.readers import read_section


def error(*args, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        read_section(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 900
    return message


def test_path_and_format(visium, tmp_path):
    assert "nowhere" in error(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    message = error(tmp_path / "empty")
    assert "filtered_feature_bc_matrix.h5" in message and "INPUTS.md" in message
    assert len(message) < 200 + len(str(tmp_path))
    message = error(visium.write(), format="merfish")
    assert "merfish" in message and "visium" in message and "h5ad" in message
    assert "no such file" in error(visium.folder, image=tmp_path / "no.png")
    for name in ("a/b", "..", ".", " ", "x" * 240, "a\0b"):
        assert "slash" in error(visium.folder, name=name)
    for format in ("visium", "reference"):
        assert "no counts" in error(tmp_path / "empty", format=format)
    for format in ("st", "h5ad"):
        assert "a folder" in error(tmp_path / "empty", format=format)


def test_positions(visium):
    path = visium.write() / "spatial/tissue_positions_list.csv"
    good = visium.table
    for table, words in [
        (good.drop(columns="array_row"), "5 columns"),
        (pd.concat([good, good[:1]]), "occurs twice"),
        (good.assign(in_tissue=0), "in_tissue must be 1"),
        (good.astype(object).assign(pxl_row_in_fullres="far"), "not a number"),
        (good.assign(barcode=good["barcode"] + "x"), "share no spot"),
    ]:
        table.to_csv(path, index=False, header=False)
        message = error(visium.folder)
        assert words in message and str(path) in message
    path.write_text("")
    assert str(path) in error(visium.folder)
    path.unlink()
    assert "no positions" in error(visium.folder)


@pytest.mark.parametrize("value", [-1.0, np.nan, 0.5])
def test_counts_that_are_not_raw(visium, legacy_st, tmp_path, value):
    frame = pd.DataFrame(visium.counts.astype(float), index=visium.barcodes)
    frame.iloc[2, 1] = value
    visium.positions()
    frame.to_csv(visium.folder / "counts.csv")
    message = error(visium.folder)
    assert "raw counts are needed" in message and "counts.csv" in message
    legacy_st.counts = legacy_st.counts.astype(float)
    legacy_st.counts.iloc[0, 0] = value
    assert "raw counts are needed" in error(legacy_st.write())
    adata = anndata.AnnData(np.full((2, 1), value, np.float32), obsm={"spatial": np.eye(2)})
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert "raw counts are needed" in error(tmp_path / "a.h5ad")


def test_repeated_barcode(visium):
    barcodes = [visium.barcodes[0], *visium.barcodes[:-1]]
    visium.write()
    visium.h5(barcodes)
    assert f"{barcodes[0]} occurs twice" in error(visium.folder)
    (visium.folder / "filtered_feature_bc_matrix.h5").unlink()
    visium.mtx("filtered_feature_bc_matrix", barcodes=barcodes)
    assert f"{barcodes[0]} occurs twice" in error(visium.folder)


@pytest.mark.parametrize(
    "file",
    [
        "filtered_feature_bc_matrix.h5",
        "spatial/tissue_positions_list.csv",
        "spatial/tissue_hires_image.png",
        "spatial/scalefactors_json.json",
    ],
)
@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_damaged_files_are_named(visium, file, damage):
    path = visium.write() / file
    whole = path.read_bytes()
    damaged = {"truncated": whole[: len(whole) * 2 // 3 - 5], "garbage": b"\x00\xff\x13" * 50, "empty": b""}[damage]
    if (damage, path.suffix) == ("truncated", ".csv"):
        damaged = whole[:-10]
    path.write_bytes(damaged)
    assert str(path) in error(visium.folder)


@pytest.mark.parametrize("file", ["matrix.mtx.gz", "features.tsv.gz", "barcodes.tsv.gz"])
def test_damaged_mtx(visium, file):
    visium.positions()
    visium.mtx("filtered_feature_bc_matrix")
    path = visium.folder / "filtered_feature_bc_matrix" / file
    path.write_bytes(path.read_bytes()[:-15])
    assert file in error(visium.folder)
    path.unlink()
    assert "are needed" in error(visium.folder)


def test_legacy_st(legacy_st, tmp_path):
    path = legacy_st.write()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert str(path) in error(path)
    path.write_bytes(whole)
    table = tmp_path / "C2_selection.tsv"
    legacy_st.table.drop(columns="pixel_x").to_csv(table, sep="\t", index=False)
    assert "no column pixel_x" in error(path)
    table.unlink()
    Image.new("RGB", (9, 9)).save(tmp_path / "C2.png")  # pixels are not what the spots' names say
    assert "--positions" in error(path)
    (tmp_path / "C2.png").unlink()
    legacy_st.counts.index = [f"spot {i}" for i in range(len(legacy_st.counts))]
    legacy_st.counts.to_csv(path, sep="\t")
    assert "--positions" in error(path)


def test_image_must_reach_the_spots(visium, legacy_st, tmp_path):
    path = visium.write()
    Image.new("RGB", (500, 1300)).save(tmp_path / "turned.png")  # as for exchanged x and y
    message = error(path, image=tmp_path / "turned.png")
    assert "500 x 1300" in message and "--image" in message and "tissue_positions_list.csv" in message
    assert "give --swap_xy" in message
    assert "image" in error(path, image=path / "spatial/scalefactors_json.json")


def test_labels(visium, tmp_path):
    path, labels = visium.write(), tmp_path / "labels.csv"
    first = visium.barcodes[0]
    for text, words in [
        ("nobody,WM\nno one,WM\n", "names none of the spots"),
        (f"{first},WM\n{first},WM\n", "two labels"),
        ("1\n2\n3\n", "3 labels for"),
        (f"{first},WM,1,2\n", "4 columns"),
    ]:
        labels.write_text(text)
        message = error(path, labels=labels)
        assert words in message and str(labels) in message


def test_h5ad(tmp_path):
    path = tmp_path / "a.h5ad"
    path.write_bytes(b"no h5")
    assert str(path) in error(path)
    adata = anndata.AnnData(np.ones((3, 1), np.float32))
    adata.write_h5ad(path)
    assert 'obsm["spatial"]' in error(path)
    adata.obsm["spatial"] = np.ones((3, 2))
    adata.write_h5ad(path)
    assert "share their positions" in error(path)
    adata.obsm["spatial"] = np.array([[1, 1], [2, np.nan], [3, 3]])
    adata.write_h5ad(path)
    assert "position of spot 1" in error(path)
    adata.obsm["spatial"] = np.array([[1, 1], [2, 2], [3, 3]])
    adata.uns["spatial"] = {"s1": {}, "s2": {}}
    adata.write_h5ad(path)
    assert "s1, s2" in error(path)
