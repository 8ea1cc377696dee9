"""Visium folders as Space Ranger writes them, version 1 and later."""

from __future__ import annotations

import glob
import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from absl import logging
from anndata import AnnData
from scipy import sparse
from scipy.io import mmread

from spabit_jax.errors import InputError
from spabit_jax.readers.assemble import THUMBNAIL_PX, assemble
from spabit_jax.readers.image import open_image
from spabit_jax.readers.tables import read_counts, read_positions_10x, reading

LOOKS_FOR = (
    "a folder (or its outs/) with [PREFIX_]filtered_feature_bc_matrix.h5 or filtered_feature_bc_matrix/, and "
    "spatial/tissue_positions[_list].csv|parquet"
)
IMAGE_SUFFIXES = (".tif", ".tiff", ".btf", ".svs", ".jpg", ".jpeg", ".png")
_POSITIONS = [
    folder + file
    for folder in ("spatial/", "")
    for file in ("tissue_positions.csv", "tissue_positions_list.csv", "tissue_positions.parquet")
]


def matches(path: Path) -> bool:
    return find_counts(root(path)) is not None


def root(path: Path) -> Path:
    """The folder itself, or its ``outs/``."""
    return path / "outs" if (path / "outs").is_dir() else path


def first_existing(folder: Path, *patterns: str) -> Path | None:
    """The first file in ``folder`` that one of the glob patterns finds."""
    return next((path for pattern in patterns for path in sorted(folder.glob(pattern))), None)


def find_counts(folder: Path) -> Path | None:
    return first_existing(
        folder, "filtered_feature_bc_matrix.h5", "*_filtered_feature_bc_matrix.h5", "filtered_feature_bc_matrix"
    )


def read(path: Path, name: str, image: Path | None, positions: Path | None, labels: Path | None) -> AnnData:
    """Reads a Visium section; see ``spabit_jax.readers.read_section``."""
    folder = root(path)
    counts = find_counts(folder)
    if counts is None:
        raise InputError(f"{path}: no counts: looked for {LOOKS_FOR}")
    return read_folder(folder, counts, "visium", name, image, positions, labels)


def read_folder(
    folder: Path,
    counts: Path,
    format: str,
    name: str,
    image: Path | None,
    positions: Path | None,
    labels: Path | None,
) -> AnnData:
    """Reads a folder whose counts are found; the reference's layout shares all the rest.

    The image is, in this order: the one given; one in full resolution (``full_image``);
    ``spatial/tissue_hires_image.png``; ``…_lowres_image.png``.
    """
    positions = positions or first_existing(folder, *_POSITIONS)
    if positions is None:
        raise InputError(f"{folder}: no positions: looked for {', '.join(_POSITIONS)}; give --positions")
    previews, scalefactors = _previews(folder)  # {key: (file, image pixels per full-resolution pixel)}
    image = image or full_image(folder) or next((file for file, _ in previews.values()), None)
    image_scale, images = 1.0, {}
    for key, (file, scale) in previews.items():
        if image.resolve() == file.resolve():
            image_scale = scale
        images[key], shrunk = open_image(file).thumbnail(THUMBNAIL_PX)
        scalefactors[f"tissue_{key}_scalef"] = scale * shrunk
    section = folder.resolve().name
    return assemble(
        read_10x(counts),
        read_positions_10x(positions),
        name=name,
        format=format,
        counts_path=counts,
        positions_path=positions,
        labels=labels or first_existing(folder, f"{glob.escape(section)}_truth.txt", "label.txt", "layers.csv"),
        image=image,
        image_scale=image_scale,
        images=images,
        scalefactors=scalefactors,
        um_per_px=scalefactors.get("microns_per_pixel"),
    )


def read_10x(path: Path) -> AnnData:
    """Reads counts of genes: a 10x .h5 file, a folder of matrix.mtx, features.tsv and barcodes.tsv, or a text table."""
    if path.suffix == ".csv":
        return read_counts(path)
    if path.is_dir():
        return _read_mtx(path)
    import scanpy

    with reading(path, "a 10x .h5 file"):
        _check_10x(path)
        return scanpy.read_10x_h5(path)


def _check_10x(path: Path) -> None:
    """ValueError where a matrix of the file points outside itself: compiled code follows its indices unchecked."""
    with h5py.File(path) as file:
        for matrix in file.values():
            if isinstance(matrix, h5py.Group) and {"data", "indices", "indptr", "shape"} <= set(matrix):
                arrays = tuple(matrix[name][:] for name in ("data", "indices", "indptr"))
                sparse.csc_matrix(arrays, shape=tuple(matrix["shape"][:])).check_format(full_check=True)


def _read_mtx(folder: Path) -> AnnData:
    """Reads what scanpy.read_10x_mtx does not as well: files not compressed, features with one column only."""
    names = ("matrix.mtx*", "features.tsv*", "barcodes.tsv*")
    matrix, features, barcodes = (first_existing(folder, name) for name in names)
    features = features or first_existing(folder, "genes.tsv*")
    if not (matrix and features and barcodes):
        raise InputError(f"{folder}: matrix.mtx, features.tsv and barcodes.tsv (or .gz of each) are needed")
    with reading(matrix, "a Matrix Market file"):
        x = sparse.csr_matrix(mmread(matrix).T, dtype=np.float32)
    with reading(features, "a table of features"):
        var = pd.read_csv(features, sep="\t", header=None, dtype=str)
    with reading(barcodes, "a list of barcodes"):
        obs = pd.read_csv(barcodes, sep="\t", header=None, dtype=str)
    if x.shape != (len(obs), len(var)):
        raise InputError(f"{matrix}: {x.shape[::-1]} counts, but {len(var)} features and {len(obs)} barcodes beside it")
    frame = pd.DataFrame({"gene_ids": var[0].to_numpy()}, index=var[min(1, var.shape[1] - 1)].to_numpy())
    genes = np.ones(len(var), bool) if var.shape[1] < 3 else (var[2] == "Gene Expression").to_numpy()
    with reading(folder, "10x counts"):
        return AnnData(x[:, genes], obs=pd.DataFrame(index=obs[0].to_numpy()), var=frame[genes])


def full_image(folder: Path) -> Path | None:
    """``image.*``, ``PREFIX_tissue_image.*``, ``PREFIX_image.*``, ``spatial/*_full_image.*``, ``spatial/image.*``."""
    # 10x publishes CytAssist's picture as PREFIX_image.tif, and the microscope's as PREFIX_tissue_image.tif
    for pattern in ("image", "*_tissue_image", "*_image", "spatial/*_full_image", "spatial/image"):
        for suffix in IMAGE_SUFFIXES:
            for path in sorted(folder.glob(pattern + suffix)):
                if not path.name.startswith(("tissue_", "detected_")):
                    return path
    return None


def _previews(folder: Path) -> tuple[dict[str, tuple[Path, float]], dict[str, float]]:
    """The small images that have a scale factor, hires first, and the scale factors that belong to no image."""
    path = folder / "spatial" / "scalefactors_json.json"
    scalefactors = {}
    if path.is_file():
        with reading(path, "scale factors"):
            scalefactors = {key: float(value) for key, value in json.loads(path.read_text()).items()}
    previews = {}
    for key in ("hires", "lowres"):
        # Files give the factor of an image that is not there, too: scanpy would look for the image.
        scale = scalefactors.pop(f"tissue_{key}_scalef", None)
        file = folder / "spatial" / f"tissue_{key}_image.png"
        if file.is_file() and scale is None:
            logging.warning("%s: not used, because %s has no scale factor for it", file, path)
        elif file.is_file():
            previews[key] = file, scale
    return previews, scalefactors
