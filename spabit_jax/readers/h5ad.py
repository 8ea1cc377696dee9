"""AnnData files (.h5ad) with spot centres in ``obsm["spatial"]``."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from absl import logging
from anndata import AnnData
from scipy import sparse

from spabit_jax.errors import InputError
from spabit_jax.readers.assemble import MOST, Images, assemble, is_raw
from spabit_jax.readers.hdf5 import check_heaps
from spabit_jax.readers.image import IMAGE_SUFFIXES, eight_bit, rgb, white_of
from spabit_jax.readers.kept import as_file
from spabit_jax.readers.lattice import array_coordinates, whole_array
from spabit_jax.readers.libraries import libraries_of, mapping, one_library
from spabit_jax.readers.tables import FURTHEST, check_positions, positive, read_positions_10x, reading
from spabit_jax.readers.turns import TURNS
from spabit_jax.readers.visium import first_existing, is_scale, only_genes

LOOKS_FOR = 'a file NAME.h5ad with obsm["spatial"]'
# Names of x and y in full-resolution pixels
_XY = (("pxl_col_in_fullres", "pxl_row_in_fullres"), ("imagecol", "imagerow"))
# What a section that read_section() made knows of the files that it was read from, and its .h5ad alone does not tell.
OF_ITS_FILES = ("format", "lattice", "array_min", "array_max", "um_per_px", "spot_px")


def matches(path: Path) -> bool:
    return path.is_file() and path.suffix == ".h5ad"


def read(path: Path, name: str, image: Path | None, positions: Path | None, labels: Path | None) -> AnnData:
    """Reads an .h5ad file; see ``spabit_jax.readers.read_section``.

    Counts are the first of ``layers["counts"]``, ``X`` and ``raw.X`` that holds raw counts. Array coordinates are
    those of ``obs``; where it has none, they are derived (``lattice.array_coordinates``). Labels are
    ``obs["label"]``. The image is NAME.png|jpg|tif beside the file, in full-resolution pixels, else the largest within
    the file that has a scale factor. Of a file of several sections, ``name`` says which (``one_library``).
    """
    if path.is_dir():
        raise InputError(f"{path}: a folder: give {LOOKS_FOR}")
    with reading(path, "an .h5ad file"):
        check_heaps(path)
        adata = anndata.read_h5ad(path)
        check_sparse(adata)
    stem = name if one_library(adata, name, path).n_obs < adata.n_obs else path.stem
    image = image or first_existing(path.parent, *(glob.escape(stem) + suffix for suffix in IMAGE_SUFFIXES))
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
    adata = adata.to_memory() if adata.isbacked else adata
    adata = one_library(adata, name, path)
    known = _known(adata, path) if positions is None else {}
    same_image = image is not None and str(image.resolve()) == known.get("image_path")
    images = _embedded(adata, name, path)
    if image is not None:
        images = images._replace(file=image, scale=known.get("image_scale", 1.0) if same_image else 1.0)
    result = assemble(
        raw_counts(adata, path),
        _positions(adata, path) if positions is None else read_positions_10x(positions),
        name=name,
        format="h5ad",
        counts_path=path,
        positions_path=positions or path,
        labels=labels or adata.obs.get("label"),
        images=images,
    )
    if positions is None:
        widen_array(result, adata)
    keys = OF_ITS_FILES + (("turn",) if same_image else ())
    result.uns["spabit"] |= {key: known[key] for key in keys if key in known}
    _keep(adata, result)
    return result


def _known(adata: AnnData, path: Path) -> dict:
    """What ``read_section`` said of a section that it made; InputError where that has been changed into nonsense."""
    known = adata.uns.get("spabit", {})
    known = dict(known) if isinstance(known, Mapping) else {}
    rules = {key: lambda value: isinstance(value, str) for key in ("format", "image_path")}
    rules |= {"lattice": lambda value: value in ("hex", "square"), "turn": lambda value: value in TURNS}
    rules |= {key: lambda value: 1e-9 < float(value) < 1e9 for key in ("um_per_px", "spot_px", "image_scale")}
    rules |= {key: lambda v: np.shape(v) == (2,) and np.abs(v).max() <= FURTHEST for key in ("array_min", "array_max")}
    for key in known.keys() & rules.keys():
        try:
            holds = bool(rules[key](known[key]))
        except (TypeError, ValueError):
            holds = False
        if not holds:
            raise InputError(f'{path}: uns["spabit"]["{key}"] is {known[key]!r:.60}: mend it, or remove uns["spabit"]')
    return known


def _keep(adata: AnnData, result: AnnData) -> None:
    """What else is known of the spots, for --config.data.split=obs:COLUMN and --features=obsm:KEY, into ``result``."""
    plain = ("string", "integer", "floating", "boolean", "categorical")
    for column in adata.obs.columns.difference(result.obs.columns, sort=False):
        if pd.api.types.infer_dtype(adata.obs[column]) in plain:
            result.obs[column] = adata.obs[column].reindex(result.obs_names)
    rows = adata.obs_names.get_indexer(result.obs_names)
    for key, values in adata.obsm.items():
        if key not in result.obsm and np.ndim(values) == 2 and (rows >= 0).all():
            dense = values.toarray() if sparse.issparse(values) else np.asarray(values)
            if np.issubdtype(dense.dtype, np.number):
                result.obsm[key] = dense[rows]


def widen_array(section: AnnData, adata: AnnData) -> None:
    """Gives a section the extent of its slide, where the array coordinates are those that ``adata`` has."""
    info = section.uns["spabit"]
    if {"array_row", "array_col"} <= set(adata.obs):
        array = np.array([info["array_min"], info["array_max"]])
        info["array_min"], info["array_max"] = whole_array(array, info["lattice"], section.obs_names[0])


def raw_counts(adata: AnnData, path: Path) -> AnnData:
    """Genes of the first of ``layers["counts"]``, ``X`` and ``raw.X`` that holds raw counts: (N, G) CSR float32."""
    choices = [(adata.layers.get("counts"), adata.var), (adata.X, adata.var)]
    if adata.raw is not None:
        choices.append((adata.raw.X, adata.raw.var))
    for x, var in choices:
        if x is not None and is_raw(x.data if sparse.issparse(x) else np.asarray(x)):
            with reading(path, "an .h5ad file"):
                return only_genes(AnnData(sparse.csr_matrix(x, dtype=np.float32), obs=adata.obs[[]], var=var))
    layers = {key: x.data if sparse.issparse(x) else np.asarray(x) for key, x in adata.layers.items()}
    whole = next((f"; layers[{key!r}] may be, then call it counts" for key in layers if is_raw(layers[key])), "")
    raise InputError(
        f'{path}: neither X nor layers["counts"] nor raw holds whole numbers, none negative or above {MOST:g}: raw '
        f"counts are needed{whole}"
    )


def _positions(adata: AnnData, path: Path) -> pd.DataFrame:
    xy = next((adata.obsm[key] for key in ("spatial", "X_spatial") if key in adata.obsm), None)
    xy = next((adata.obs[list(names)] for names in _XY if xy is None and set(names) <= set(adata.obs)), xy)
    if xy is None or np.ndim(xy) != 2 or np.shape(xy)[1] < 2:
        raise InputError(
            f'{path}: no (N, 2) obsm["spatial"], nor columns {", ".join(_XY[0])} in obs: it must hold x and y of the '
            "spots in pixels"
        )
    for names in (("x", "y"), *_XY):
        if isinstance(xy, pd.DataFrame) and set(names) <= set(xy):
            xy = xy[list(names)]
    with reading(path, 'x and y of the spots in obsm["spatial"]', "it must hold numbers, in pixels"):
        dense = np.asarray(xy.toarray() if sparse.issparse(xy) else xy)[:, :2]
        xy = dense.astype(np.float64, casting="unsafe" if dense.dtype == object else "same_kind")
    return spot_table(adata, xy, array_coordinates, path)


def spot_table(adata: AnnData, xy: np.ndarray, derived, path: Path) -> pd.DataFrame:
    """Positions as ``read_positions_10x`` returns them, of (N, 2) pixels.

    Array coordinates are those of ``obs``; where it has none, they are ``derived(xy, path)``.
    """
    table = pd.DataFrame(xy, index=adata.obs_names, columns=["x", "y"])
    table["in_tissue"] = adata.obs.get("in_tissue", 1)
    if {"array_row", "array_col"} <= set(adata.obs):
        table[["array_row", "array_col"]] = adata.obs[["array_row", "array_col"]]
    elif (np.abs(xy) <= FURTHEST).all():
        table[["array_row", "array_col"]] = derived(xy, path)
    else:
        table[["array_row", "array_col"]] = 0  # check_positions names the spot whose position cannot be
    return check_positions(table, path)


def _embedded(adata: AnnData, name: str, path: Path) -> Images:
    """The images of ``uns["spatial"]`` that have a scale factor, as uint8, and the largest as a file.

    One under another name than ``hires`` and ``lowres`` (HEST's ``downscaled_fullres``) is ``hires`` if there is none.
    """
    libraries = libraries_of(adata)
    library = libraries.get(name) or next(iter(libraries.values()), {})
    given, images, scalefactors = mapping(library.get("scalefactors")), {}, {}
    given = {key: positive(value, f'{key} of uns["spatial"]', path) for key, value in given.items() if is_scale(key)}
    for key, pixels in mapping(library.get("images")).items():
        if f"tissue_{key}_scalef" in given and (key in ("hires", "lowres") or "hires" not in library["images"]):
            kept_as = key if key == "lowres" else "hires"
            with reading(path, f'the image {key} of uns["spatial"]', "correct or remove it"):
                images[kept_as] = _eight_bit(np.asarray(pixels))
            scalefactors[f"tissue_{kept_as}_scalef"] = given[f"tissue_{key}_scalef"]
    if "spot_diameter_fullres" in given:
        scalefactors["spot_diameter_fullres"] = given["spot_diameter_fullres"]
    if not images:
        if found := ", ".join(map(str, mapping(library.get("images")))):
            logging.warning('%s: uns["spatial"] has no tissue_…_scalef for its image %s: it is not used', path, found)
        return Images(scalefactors=scalefactors)
    largest = max(images, key=lambda key: images[key].size)
    return Images(as_file(images[largest]), scalefactors[f"tissue_{largest}_scalef"], images, scalefactors)


def _eight_bit(pixels: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 of gray, RGB or RGBA pixels: bytes, 10 to 16 bits, floats from 0 to 1 (scanpy's) or to 255."""
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim == 3 and pixels.shape[0] in (3, 4) and pixels.shape[2] not in (1, 3, 4):
        pixels = np.moveaxis(pixels, 0, 2)  # channels first, as SpatialData has them
    if pixels.ndim != 3 or not pixels.size or pixels.dtype.kind not in "biuf" or not np.isfinite(pixels).all():
        raise ValueError("(h, w), (h, w, 3) or (h, w, 4) numbers are needed, all finite")
    return rgb(eight_bit(pixels, white_of(pixels.max(), pixels.dtype)), alpha=True)
