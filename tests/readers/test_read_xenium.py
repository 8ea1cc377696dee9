from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from spabit_jax.errors import InputError
from spabit_jax.readers import read_section


def test_cells_on_the_image(xenium):
    folder = xenium.write()
    adata = read_section(folder)
    assert list(adata.obs_names) == xenium.ids
    np.testing.assert_array_equal(adata.X.toarray(), xenium.counts[:, :4])  # without control probes
    np.testing.assert_allclose(adata.obsm["spatial"], xenium.xy, atol=1e-6)
    info = adata.uns["spabit"]
    assert (info["format"], info["lattice"], info["image_scale"]) == ("xenium", "square", 1.0)
    assert info["um_per_px"] == pytest.approx(xenium.he_um)
    assert info["image_path"] == str(folder.resolve() / "S_he_image.ome.tif")
    assert adata.uns["spatial"]["X1"]["images"]["hires"].shape == (300, 400, 3)


def test_array_coordinates_of_cells_are_squares_of_a_cell_s_distance(xenium):
    adata = read_section(xenium.write())
    distance = np.linalg.norm(xenium.um[:, None] - xenium.um[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    width = np.median(distance.min(1))
    offset = xenium.um - xenium.um.min(0)
    expected = np.floor(offset[:, ::-1] / width)
    np.testing.assert_array_equal(adata.obs[["array_row", "array_col"]], expected)


@pytest.mark.parametrize("spot_um", [20.0, 55.0])
def test_pseudo_spots_are_sums_of_cells(xenium, spot_um):
    adata = read_section(xenium.write(), spot_um=spot_um)
    sums = {}
    low = xenium.um.min(0)
    for um, counts in zip(xenium.um, xenium.counts[:, :4], strict=True):
        col, row = (int(v) for v in (um - low) // spot_um)
        sums[row, col] = sums.get((row, col), 0) + counts
    assert [*zip(adata.obs["array_row"], adata.obs["array_col"], strict=True)] == sorted(sums)
    np.testing.assert_array_equal(adata.X.toarray(), [sums[key] for key in sorted(sums)])

    centres = np.array([[low[0] + (c + 0.5) * spot_um, low[1] + (r + 0.5) * spot_um] for r, c in sorted(sums)])
    to_xenium = xenium.alignment[:2, :2], xenium.alignment[:2, 2]
    np.testing.assert_allclose((adata.obsm["spatial"] @ to_xenium[0].T + to_xenium[1]) * xenium.pixel_um, centres)
    assert adata.uns["spatial"]["X1"]["scalefactors"]["spot_diameter_fullres"] == pytest.approx(spot_um / xenium.he_um)
    assert adata.uns["spabit"]["um_per_px"] == pytest.approx(xenium.he_um)


def test_cells_without_counts_and_counts_without_cell(xenium):
    xenium.write()
    xenium.cells()[3:].to_parquet(xenium.folder / "cells.parquet")
    xenium.h5([f"stray{i}" if i == 10 else name for i, name in enumerate(xenium.ids)])
    adata = read_section(xenium.folder)
    assert list(adata.obs_names) == [*xenium.ids[3:10], *xenium.ids[11:]]
    kept = np.delete(xenium.counts[:, :4], [0, 1, 2, 10], axis=0)
    np.testing.assert_array_equal(adata.X.toarray(), kept)
    assert read_section(xenium.folder, spot_um=30).X.sum() == kept.sum()


@pytest.mark.parametrize("kind", ["csv.gz", "csv", "integers", "bytes"])
def test_tables_of_cells_of_older_versions(xenium, kind):
    expected = read_section(xenium.write()).X.toarray()
    (xenium.folder / "cells.parquet").unlink()
    if kind.startswith("csv"):
        xenium.cells().to_csv(xenium.folder / f"cells.{kind}", index=False)
    else:
        ids = [*range(1, 61)]
        xenium.h5([str(i) for i in ids])
        ids = ids if kind == "integers" else [str(i).encode() for i in ids]
        xenium.cells(ids).to_parquet(xenium.folder / "cells.parquet")
    adata = read_section(xenium.folder)
    np.testing.assert_array_equal(adata.X.toarray(), expected)
    np.testing.assert_allclose(adata.obsm["spatial"], xenium.xy, atol=1e-6)


def test_without_an_image_coordinates_are_xenium_s_pixels(xenium):
    xenium.write()
    for path in xenium.folder.glob("*_he_*"):
        path.unlink()
    adata = read_section(xenium.folder)
    np.testing.assert_allclose(adata.obsm["spatial"], xenium.um / xenium.pixel_um)
    assert adata.uns["spabit"]["um_per_px"] == xenium.pixel_um and "image_path" not in adata.uns["spabit"]


def test_image_and_alignment_from_elsewhere(xenium, tmp_path):
    xenium.write()
    image, alignment = tmp_path / "he.tif", tmp_path / "matrix.csv"
    (xenium.folder / "S_he_image.ome.tif").rename(image)
    (xenium.folder / "S_he_imagealignment.csv").rename(alignment)
    adata = read_section(xenium.folder, image=image, alignment=alignment)
    np.testing.assert_allclose(adata.obsm["spatial"], xenium.xy, atol=1e-6)
    (tmp_path / "S").mkdir()
    xenium.folder.rename(tmp_path / "S/outs")
    for file in (image, alignment):
        file.rename(tmp_path / "S" / f"S_he_image{'.ome.tif' if file == image else 'alignment.csv'}")
    adata = read_section(tmp_path / "S")
    np.testing.assert_allclose(adata.obsm["spatial"], xenium.xy, atol=1e-6)
    assert adata.uns["spabit"]["name"] == "S" and "image_path" in adata.uns["spabit"]


@pytest.mark.parametrize("form", ["tabs", "spaces", "two rows"])
def test_an_alignment_however_it_is_written(xenium, form):
    xenium.write()
    rows = xenium.alignment[: 2 if form == "two rows" else 3]
    np.savetxt(xenium.folder / "S_he_imagealignment.csv", rows, delimiter={"tabs": "\t", "spaces": " "}.get(form, ","))
    adata = read_section(xenium.folder)
    order = [xenium.ids.index(name) for name in adata.obs_names]
    np.testing.assert_allclose(adata.obsm["spatial"], xenium.xy[order])


def test_the_image_lies_beside_outs(xenium):
    """As 10x publishes it, beside the folder's archive; whichever of the two folders is given."""
    xenium.write()
    (xenium.folder / "outs").mkdir()
    for name in ("cell_feature_matrix.h5", "cells.parquet", "experiment.xenium"):
        (xenium.folder / name).rename(xenium.folder / "outs" / name)
    for folder in (xenium.folder, xenium.folder / "outs"):
        assert read_section(folder).uns["spabit"]["image_path"].endswith("S_he_image.ome.tif")


def test_errors(xenium, tmp_path):
    def error(**kwargs) -> str:
        with pytest.raises(InputError) as caught:
            read_section(xenium.folder, **kwargs)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    folder = xenium.write()
    for matrix, words in [
        (np.eye(4), "shape (4, 4) where (3, 3)"),
        (np.diag([1, 1, 2.0]), "last row"),
        (np.diag([1, 0, 1.0]), "can be inverted"),
        ([["a"] * 3] * 3, "cannot be read as an affine matrix"),
    ]:
        path = xenium.align(matrix)
        message = error()
        assert words in message and str(path) in message
    path.unlink()
    assert "give --alignment=FILE" in error()
    assert "no such file" in error(alignment=path)
    xenium.align()

    assert "--spot_um=-1" in error(spot_um=-1)
    assert "--spot_um is not for" in str(_caught(tmp_path / "a.tsv", spot_um=5))
    (folder / "experiment.xenium").write_text(json.dumps({}))
    assert "experiment.xenium: cannot be read" in error() and "pixel_size" in error()
    (folder / "experiment.xenium").write_text(json.dumps({"pixel_size": 0.2125}))

    cells, good = folder / "cells.parquet", xenium.cells()
    whole = cells.read_bytes()
    cells.write_bytes(whole[: len(whole) // 2])
    assert f"{cells}: cannot be read as a table of cells" in error()
    for table, words in [
        (good.drop(columns="x_centroid"), "x_centroid"),
        (good.assign(x_centroid=[np.nan, *good["x_centroid"][1:]]), f"position of cell {xenium.ids[0]}"),
        (pd.concat([good, good[:1]]), "occurs twice"),
        (good[:0], "no cells"),
        (good.assign(x_centroid=1.0, y_centroid=1.0), "share their position"),
    ]:
        table.to_parquet(cells)
        assert words in error() and str(cells) in error()
    good.assign(cell_id=[f"{name}x" for name in xenium.ids]).to_parquet(cells)
    assert "share no spot" in error() and "share no cell" in error(spot_um=20)
    cells.unlink()
    assert "no cells: looked for cells.parquet" in error()
    (folder / "cell_feature_matrix.h5").unlink()
    assert "no counts" in error(format="xenium")


def _caught(path, **kwargs):
    path.touch()
    with pytest.raises(InputError) as caught:
        read_section(path, **kwargs)
    return caught.value
