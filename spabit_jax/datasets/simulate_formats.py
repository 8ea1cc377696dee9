"""A simulated section as Visium, Visium HD or Xenium: to try those formats, and to time large sections."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import tifffile
from anndata import AnnData
from PIL import Image

BIN_UM = 8.0
XENIUM_PIXEL_UM = 0.2125
TILE = (256, 256)


def write_visium(adata: AnnData, image: np.ndarray, folder: Path) -> Path:
    """The output folder of Space Ranger 2, and in it the microscope's image, ``NAME_image.tif``.

    Args:
      adata: N spots of a hexagonal lattice, from ``simulate.simulate_section``.
      image: (height, width, 3) uint8.
      folder: to write into.

    Returns:
      The folder, as ``--section`` wants it.
    """
    (folder / "spatial").mkdir(parents=True)
    _write_10x(folder / "filtered_feature_bc_matrix.h5", adata, adata.obs_names)
    (library,) = adata.uns["spatial"].values()
    _positions(adata, adata.obs_names).to_csv(folder / "spatial" / "tissue_positions.csv", index=False)
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(library["scalefactors"]))
    Image.fromarray(library["images"]["hires"]).save(folder / "spatial" / "tissue_hires_image.png")
    tifffile.imwrite(folder / f"{adata.uns['spabit']['name']}_image.tif", image, photometric="rgb", tile=TILE)
    return folder


def write_visium_hd(adata: AnnData, image: np.ndarray, folder: Path) -> Path:
    """``binned_outputs/square_008um/`` and ``NAME_tissue_image.btf``: a spot becomes a bin of 8 µm.

    Args:
      adata: N spots of a square lattice, from ``simulate.simulate_section``.
      image: (height, width, 3) uint8.
      folder: to write into.

    Returns:
      The folder, as ``--section`` wants it.
    """
    bins = folder / "binned_outputs" / "square_008um"
    (bins / "spatial").mkdir(parents=True)
    barcodes = [f"s_008um_{r:05}_{c:05}-1" for r, c in adata.obs[["array_row", "array_col"]].to_numpy()]
    _write_10x(bins / "filtered_feature_bc_matrix.h5", adata, barcodes)
    _positions(adata, barcodes).to_parquet(bins / "spatial" / "tissue_positions.parquet")
    pitch = 100 / adata.uns["spabit"]["um_per_px"]  # which is for a pitch of 100 µm
    factors = {"bin_size_um": BIN_UM, "microns_per_pixel": BIN_UM / pitch, "spot_diameter_fullres": pitch}
    (bins / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    name = f"{adata.uns['spabit']['name']}_tissue_image.btf"
    tifffile.imwrite(folder / name, image, photometric="rgb", tile=TILE, bigtiff=True)
    return folder


def write_xenium(adata: AnnData, image: np.ndarray, folder: Path, rng: np.random.Generator) -> Path:
    """``cell_feature_matrix.h5``, ``cells.parquet``, and an H&E image that is turned by 90° against them.

    A spot becomes a cell, which lies up to a third of a pitch beside it.

    Args:
      adata, image, folder: of ``write_visium_hd``; any lattice.
      rng: of the cells' places.

    Returns:
      The folder, as ``--section`` wants it.
    """
    folder.mkdir(parents=True)
    name, um_per_px = (adata.uns["spabit"][key] for key in ("name", "um_per_px"))
    pitch = 100 / um_per_px
    xy = adata.obsm["spatial"] + rng.uniform(-pitch / 3, pitch / 3, (adata.n_obs, 2))
    alignment = np.array([[0.0, -1.5, 1.5 * len(image)], [1.5, 0.0, 100.0], [0.0, 0.0, 1.0]])  # H&E to Xenium pixels
    um = (xy @ alignment[:2, :2].T + alignment[:2, 2]) * XENIUM_PIXEL_UM
    cells = [f"cell{i:06}-1" for i in range(adata.n_obs)]
    _write_10x(folder / "cell_feature_matrix.h5", adata, cells)
    pd.DataFrame({"cell_id": cells, "x_centroid": um[:, 0], "y_centroid": um[:, 1]}).to_parquet(
        folder / "cells.parquet"
    )
    (folder / "experiment.xenium").write_text(json.dumps({"pixel_size": XENIUM_PIXEL_UM}))
    np.savetxt(folder / f"{name}_he_imagealignment.csv", alignment, delimiter=",")
    tifffile.imwrite(folder / f"{name}_he_image.ome.tif", image, photometric="rgb", tile=TILE)
    return folder


def _positions(adata: AnnData, barcodes: Sequence[str]) -> pd.DataFrame:
    x, y = adata.obsm["spatial"].T
    table = {"barcode": barcodes, "in_tissue": 1}
    table |= {name: adata.obs[name].to_numpy() for name in ("array_row", "array_col")}
    return pd.DataFrame(table | {"pxl_row_in_fullres": y, "pxl_col_in_fullres": x})


def _write_10x(path: Path, adata: AnnData, barcodes: Sequence[str]) -> None:
    """A 10x .h5 file of version 3."""
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array(barcodes, "S")
        group["data"] = adata.X.data.astype(np.int32)
        group["indices"], group["indptr"] = adata.X.indices, adata.X.indptr
        group["shape"] = np.array(adata.shape[::-1])
        features = group.create_group("features")
        features["id"] = np.array([f"ENSG{i:05}" for i in range(adata.n_vars)], "S")
        features["name"] = np.array(adata.var_names, "S")
        features["feature_type"] = np.array(["Gene Expression"] * adata.n_vars, "S")
        features["genome"] = np.array(["simulated"] * adata.n_vars, "S")
        features["_all_tag_keys"] = np.array(["genome"], "S")
