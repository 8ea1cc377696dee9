"""AnnData files (.h5ad) with spot centres in ``obsm["spatial"]``."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from spabit_jax.errors import InputError
from spabit_jax.readers.assemble import assemble, is_raw
from spabit_jax.readers.lattice import array_coordinates
from spabit_jax.readers.tables import check_positions, read_positions_10x, reading
from spabit_jax.readers.visium import IMAGE_SUFFIXES, first_existing

LOOKS_FOR = 'a file NAME.h5ad with obsm["spatial"]'
# What a section that read_section() made knows of the files that it was read from, and its .h5ad alone does not tell.
OF_ITS_FILES = ("format", "lattice", "array_min", "array_max", "um_per_px", "spot_px")


def matches(path: Path) -> bool:
    return path.is_file() and path.suffix == ".h5ad"


def read(path: Path, name: str, image: Path | None, positions: Path | None, labels: Path | None) -> AnnData:
    """Reads an .h5ad file; see ``spabit_jax.readers.read_section``.

    Counts are the first of ``layers["counts"]``, ``X`` and ``raw.X`` that holds raw counts. Array coordinates are
    those of ``obs``; where it has none, they are derived (``lattice.array_coordinates``). Labels are
    ``obs["label"]``. The image is NAME.png|jpg|tif beside the file, in full-resolution pixels; images within the
    file are kept for plots, windows are not read from them.
    """
    if path.is_dir():
        raise InputError(f"{path}: a folder: give {LOOKS_FOR}")
    with reading(path, "an .h5ad file"):
        adata = anndata.read_h5ad(path)
        check_sparse(adata)
    image = image or first_existing(path.parent, *(glob.escape(path.stem) + suffix for suffix in IMAGE_SUFFIXES))
    return from_anndata(adata, path, name, image, positions, labels)


def check_sparse(adata: AnnData) -> None:
    """ValueError where a sparse matrix points outside itself: compiled code follows its indices unchecked."""
    raw = None if adata.raw is None else adata.raw.X
    for x in (adata.X, *adata.layers.values(), raw):
        if isinstance(x, sparse.csr_matrix | sparse.csc_matrix | sparse.csr_array | sparse.csc_array):
            x.check_format(full_check=True)


def from_anndata(
    adata: AnnData, path: Path, name: str, image: Path | None, positions: Path | None, labels: Path | None
) -> AnnData:
    """As ``read``, of what a file holds; ``path`` is for error messages."""
    images, scalefactors = _embedded(adata, name, path)
    known = adata.uns.get("spabit", {}) if positions is None else {}
    same_image = image is not None and str(image.resolve()) == known.get("image_path")
    result = assemble(
        raw_counts(adata, path),
        _positions(adata, path) if positions is None else read_positions_10x(positions),
        name=name,
        format="h5ad",
        counts_path=path,
        positions_path=positions or path,
        labels=labels or adata.obs.get("label"),
        image=image,
        image_scale=known.get("image_scale", 1.0) if same_image else 1.0,
        images=images,
        scalefactors=scalefactors,
    )
    result.uns["spabit"] |= {key: known[key] for key in OF_ITS_FILES if key in known}
    return result


def raw_counts(adata: AnnData, path: Path) -> AnnData:
    """The first of ``layers["counts"]``, ``X`` and ``raw.X`` that holds raw counts, as (N, G) CSR float32."""
    choices = [(adata.layers.get("counts"), adata.var), (adata.X, adata.var)]
    if adata.raw is not None:
        choices.append((adata.raw.X, adata.raw.var))
    for x, var in choices:
        if x is not None and is_raw(x.data if sparse.issparse(x) else np.asarray(x)):
            with reading(path, "an .h5ad file"):
                return AnnData(sparse.csr_matrix(x, dtype=np.float32), obs=adata.obs[[]], var=var)
    raise InputError(
        f'{path}: neither X nor layers["counts"] nor raw holds whole numbers, none negative: raw counts are needed'
    )


def _positions(adata: AnnData, path: Path) -> pd.DataFrame:
    xy = adata.obsm.get("spatial")
    if xy is None or np.ndim(xy) != 2 or np.shape(xy)[1] < 2:
        raise InputError(f'{path}: no (N, 2) obsm["spatial"]: it must hold x and y of the spots in pixels')
    return spot_table(adata, np.asarray(xy, np.float64)[:, :2], array_coordinates, path)


def spot_table(adata: AnnData, xy: np.ndarray, derived, path: Path) -> pd.DataFrame:
    """Positions as ``read_positions_10x`` returns them, of (N, 2) pixels.

    Array coordinates are those of ``obs``; where it has none, they are ``derived(xy, path)``.
    """
    table = pd.DataFrame(xy, index=adata.obs_names, columns=["x", "y"])
    table["in_tissue"] = adata.obs.get("in_tissue", 1)
    if {"array_row", "array_col"} <= set(adata.obs):
        table[["array_row", "array_col"]] = adata.obs[["array_row", "array_col"]]
    elif np.isfinite(xy).all():
        table[["array_row", "array_col"]] = derived(xy, path)
    else:
        table[["array_row", "array_col"]] = 0  # check_positions names the spot that has no position
    return check_positions(table, path)


def _embedded(adata: AnnData, name: str, path: Path) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """The images of ``uns["spatial"]`` that have a scale factor, as uint8, and their scale factors."""
    libraries = adata.uns.get("spatial")
    libraries = libraries if isinstance(libraries, Mapping) else {}
    if len(libraries) > 1 and name not in libraries:
        raise InputError(f"{path}: holds {len(libraries)} sections ({', '.join(libraries)}): write one file for each")
    library = libraries.get(name) or next(iter(libraries.values()), {})
    given, images, scalefactors = library.get("scalefactors", {}), {}, {}
    for key, pixels in library.get("images", {}).items():
        if f"tissue_{key}_scalef" in given:
            pixels = np.asarray(pixels)
            if pixels.dtype != np.uint8:  # scanpy keeps images as floats from 0 to 1
                pixels = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
            images[key] = pixels[..., :3] if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
            scalefactors[f"tissue_{key}_scalef"] = float(given[f"tissue_{key}_scalef"])
    if "spot_diameter_fullres" in given:
        scalefactors["spot_diameter_fullres"] = float(given["spot_diameter_fullres"])
    return images, scalefactors
