"""Xenium output folders: cells, or their counts summed over squares, placed on the H&E image aligned to them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from absl import logging
from anndata import AnnData
from scipy import sparse

from spabit_jax.errors import InputError
from spabit_jax.neighbours import spot_pitch
from spabit_jax.readers.assemble import NO_IMAGE, Images, assemble, make_names_unique
from spabit_jax.readers.lattice import cell_squares, squares
from spabit_jax.readers.samples import Samples, by_prefix, one_sample
from spabit_jax.readers.tables import check_positions, read_affine, read_csv, reading
from spabit_jax.readers.visium import read_10x, root

LOOKS_FOR = "a folder (or its outs/) with cell_feature_matrix.h5, cells.parquet and experiment.xenium"
OPTIONS = ("spot_um", "alignment")
PIXEL_UM = 0.2125  # of every Xenium so far
_HE = r"h_?&?e(_unaligned|_aligned)?(_image)?"
ENDINGS = {
    "counts": (r"cell_feature_matrix\.h5", r"cell_feature_matrix"),
    "cells": (r"cells\.parquet", r"cells\.csv"),
    "experiment": (r"experiment\.xenium",),
    "image": (rf"(?i:{_HE})\.ome\.(tif|tiff)", rf"(?i:{_HE})\.(tif|tiff|btf|jpg|png)"),
    "alignment": (rf"(?i:{_HE})_?alignment\.csv", rf"(?i:{_HE})_matrix\.csv", r"imagealignment\.csv", r"matrix\.csv"),
}
_COLUMNS = ["cell_id", "x_centroid", "y_centroid"]


def matches(path: Path) -> bool:
    return any("counts" in files for files in _samples(path).values())


def _samples(path: Path) -> Samples:
    """The output folder's files, and the image and its alignment, which 10x publishes beside the folder's archive."""
    beside = [path.resolve().parent] if path.resolve().name == "outs" else []
    return by_prefix(dict.fromkeys([root(path), path, *beside]), ENDINGS)


def read(
    path: Path,
    name: str,
    image: Path | None,
    positions: Path | None,
    labels: Path | None,
    spot_um: float | None = None,
    alignment: Path | None = None,
) -> AnnData:
    """Reads a Xenium section; see ``spabit_jax.readers.read_section``.

    Full-resolution pixels are those of the H&E image. Without an alignment (and so without an image) they are those of
    Xenium's own image, whose x and y are µm / pixel_size. Array coordinates are those of the square lattice: of the
    pseudo-spots, or for cells of one with the median distance between neighbours, several cells to a point or none.

    Args:
      positions: table of cells instead of ``cells.parquet``, with columns cell_id, x_centroid, y_centroid (µm).
      spot_um: width of the squares over which counts are summed; a spot for each cell if None.
      alignment: (3, 3) matrix (``tables.read_affine``) from pixels of the H&E image to Xenium's; default
        ``*imagealignment.csv``.
    """
    folder = root(path)
    files = _of_one_sample(path, name)
    counts_path, cells_path = files.get("counts"), positions or files.get("cells")
    if counts_path is None or cells_path is None:
        wanted = "cell_feature_matrix.h5 or that folder" if counts_path is None else "cells.parquet, cells.csv[.gz]"
        raise InputError(f"{folder}: no {'counts' if counts_path is None else 'cells'}: looked for {wanted}")
    if spot_um is not None and not 0 < spot_um < np.inf:
        raise InputError(f"--spot_um={spot_um:g}: pseudo-spots need a width in µm above 0")
    image, alignment = image or files.get("image"), alignment or files.get("alignment")
    if image not in (None, NO_IMAGE) and alignment is None:
        raise InputError(
            f"{folder}: no *imagealignment.csv that places the cells on {image.name}: give --alignment=FILE"
        )
    pixel_um = _pixel_um(files.get("experiment"), folder)
    to_image = np.eye(3) if alignment is None else np.linalg.inv(read_affine(alignment))
    um_per_px = pixel_um / abs(np.linalg.det(to_image)) ** 0.5

    counts, cells = read_10x(counts_path), _read_cells(cells_path)
    scalefactors = {}
    if spot_um is None:
        spots = cells
        spots[["array_row", "array_col"]] = cell_squares(cells.to_numpy(), cells_path)
        if len(cells) > 1:
            scalefactors["spot_diameter_fullres"] = spot_pitch(cells[["x", "y"]].to_numpy()) / um_per_px
    else:
        counts, spots = _pseudo_spots(counts, cells, spot_um, counts_path, cells_path)
        scalefactors["spot_diameter_fullres"] = float(spot_um / um_per_px)
    xy = spots[["x", "y"]].to_numpy() / pixel_um
    spots[["x", "y"]] = xy @ to_image[:2, :2].T + to_image[:2, 2]
    return assemble(
        counts,
        check_positions(spots.assign(in_tissue=1), cells_path),
        name=name,
        format="xenium",
        counts_path=counts_path,
        positions_path=cells_path,
        labels=labels,
        images=Images(image, scalefactors=scalefactors),
        um_per_px=um_per_px,
    )


def _of_one_sample(path: Path, name: str) -> dict[str, Path]:
    """Image and alignment may have a prefix of their own, where there is one of each and no other sample."""
    samples = _samples(path)
    _, files = one_sample(samples, name, path, whole=("counts", "cells"))
    if sum("counts" in sample for sample in samples.values()) == 1:
        for what in ("image", "alignment"):
            found = [sample[what] for sample in samples.values() if what in sample]
            files |= {what: files.get(what, found[0])} if found else {}
    return files


def _pixel_um(path: Path | None, folder: Path) -> float:
    if path is None:
        logging.warning("%s: no experiment.xenium: a pixel is taken to be %g µm, as of all Xenium", folder, PIXEL_UM)
        return PIXEL_UM
    with reading(path, "an experiment.xenium"):
        pixel_um = float(json.loads(path.read_text())["pixel_size"])
    if not 0 < pixel_um < np.inf:
        raise InputError(f"{path}: a pixel_size of {pixel_um:g} µm: correct it")
    return pixel_um


def _read_cells(path: Path) -> pd.DataFrame:
    """x and y of the cells in µm, (N, 2), indexed by their ids."""
    with reading(path, f"a table of cells ({', '.join(_COLUMNS)})"):
        if path.suffix == ".parquet":
            table = pd.read_parquet(path, columns=_COLUMNS)
        else:
            table = read_csv(path, usecols=_COLUMNS)
        # Xenium's first versions wrote integers, or bytes
        names = [i.decode() if isinstance(i, bytes) else str(i) for i in table["cell_id"]]
        cells = pd.DataFrame(table[_COLUMNS[1:]].to_numpy(np.float64), index=names, columns=["x", "y"])
    if not len(cells):
        raise InputError(f"{path}: no cells")
    bad = ~np.isfinite(cells.to_numpy()).all(axis=1)
    if bad.any():
        raise InputError(f"{path}: the position of cell {cells.index[bad][0]} is missing or not a number: correct it")
    if not cells.index.is_unique:
        raise InputError(f"{path}: cell {cells.index[cells.index.duplicated()][0]} occurs twice: remove one row")
    return cells


def _pseudo_spots(
    counts: AnnData, cells: pd.DataFrame, width: float, counts_path: Path, cells_path: Path
) -> tuple[AnnData, pd.DataFrame]:
    """Counts summed over squares, as those of spots; x, y (µm), array_row and array_col of the squares with cells."""
    make_names_unique(counts, counts_path)
    cells = cells[cells.index.isin(counts.obs_names)]
    if not len(cells):
        raise InputError(f"{counts_path} and {cells_path} share no cell: give the table of these cells (--positions)")
    array, spot = np.unique(squares(cells.to_numpy(), width), axis=0, return_inverse=True)
    cell = counts.obs_names.get_indexer(cells.index)
    shape = len(array), counts.n_obs
    member = sparse.csr_matrix((np.ones(len(cells), np.float32), (spot.ravel(), cell)), shape=shape)
    names = [f"spot_{row}_{col}" for row, col in array]
    spots = pd.DataFrame(cells.min().to_numpy() + (array[:, ::-1] + 0.5) * width, index=names, columns=["x", "y"])
    spots[["array_row", "array_col"]] = array
    return AnnData(member @ counts.X, obs=pd.DataFrame(index=names), var=counts.var), spots
