"""Image features of a section: an encoder's through the cache, or the user's own, a file or ``obsm``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from anndata import AnnData
from scipy.spatial import KDTree

from feature_extraction import cache, encoders
from spabit_jax.data.locations import Locations
from spabit_jax.errors import InputError
from spabit_jax.files import sha256
from spabit_jax.neighbours import spot_pitch
from spabit_jax.readers.hdf5 import check_heaps

FILE, OBSM = "features:", "obsm:"  # what the name of the encoder begins with
SUFFIXES = (".npy", ".npz", ".parquet", ".h5", ".hdf5")
SAME_PLACE = 0.01  # of the pitch, and a pixel, at most a quarter of the pitch: coordinates are often whole numbers
# Names in .npz and .h5 files: of TRIDENT (features, coords), HEST (embeddings, barcodes, coords), and usual ones.
VALUES = ("features", "embeddings", "feats", "X")
BARCODES = ("barcodes", "barcode", "names", "obs_names", "index")
COORDINATES = ("coords", "coordinates", "xy", "spatial")


class Cached(NamedTuple):
    """Image features of one window through the cache: the arguments of ``feature_extraction.cache``.

    ``adata`` needs names, ``obsm["spatial"]`` and ``uns["spabit"]`` only: it may be places without counts.
    """

    adata: AnnData
    encoder: str
    patch_px: float
    cache_dir: str
    transposed_crop: bool

    def extract(self, weights: str | None = None) -> None:
        """Computes them if they are not there, with the weights of a file or the encoder's own."""
        weights = None if self.encoder in encoders.PLAIN else weights
        if cache.is_cached(*self):
            self._check_version(weights)
            return
        from feature_extraction.extract import extract_section

        *asked, transposed = self
        extract_section(*asked, weights=weights, transposed_crop=transposed)

    def _check_version(self, weights: str | None) -> None:
        """InputError where the cache is of other weights, or of another version of an encoder of the user's."""
        if self.encoder in encoders.OWN:
            now, what = encoders.OWN[self.encoder]().weights_hash, f"version %s of {self.encoder}"
        elif weights:
            now, what = encoders.weights_hash(weights), "weights of hash %s"
        else:
            return
        if (have := self.made_from()["weights_hash"]) != now:
            npy = self._npy()
            raise InputError(f"{npy}: made by {what % have}, {now} is asked for: {cache.remedy(npy)}")

    def _npy(self) -> Path:
        name = self.adata.uns["spabit"]["name"]
        return cache.cache_path(self.cache_dir, name, self.encoder, self.patch_px, self.transposed_crop)

    def read(self) -> np.ndarray:
        """(N, D)."""
        return cache.read_cache(*self)

    def made_from(self) -> dict:
        """Hashes of image and weights; InputError if the cache is missing or damaged."""
        self.read()
        meta = cache.read_meta(self._npy())
        turn = {} if meta.get("turn", "0") == "0" else {"turn": meta["turn"]}
        return {key: meta.get(key) for key in ("image_sha256", "weights_hash")} | turn


def side_by_side(windows: Sequence[Cached | OwnFeatures]) -> np.ndarray | None:
    """(N, D) features of all windows; None where there is none."""
    if len(windows) < 2:
        return windows[0].read() if windows else None
    return np.concatenate([window.read() for window in windows], axis=1)


def made_from(windows: Sequence[Cached | OwnFeatures]) -> dict:
    """Hashes of image and weights, these by encoder where there are several; empty without an image.

    Raises:
      InputError: windows of one encoder were made with others each.
    """
    found = {}
    for window in windows:
        made = window.made_from()
        if found.setdefault(window.encoder, made) != made:
            name = window.adata.uns["spabit"]["name"]
            raise InputError(
                f"the image features of {name} in {window.cache_dir} come from several versions of the weights of "
                f"{window.encoder}: delete {name}.* there"
            )
    first = next(iter(found.values()), {})
    return first if len(found) < 2 else first | {"weights_hash": {n: made["weights_hash"] for n, made in found.items()}}


class Table(NamedTuple):
    """Features as a file has them: M places."""

    values: np.ndarray  # (M, D)
    barcodes: np.ndarray | None  # (M,) str
    xy: np.ndarray | None  # (M, 2) full-resolution pixels, the centres
    width: float | None  # of the square that each describes, in pixels; None: only its centre


def encoder_name(features: str | os.PathLike) -> str:
    """The name of the encoder that stands for ``--features``: ``obsm:KEY``, or ``features:`` and an absolute path."""
    features = os.fspath(features)
    return features if features.startswith(OBSM) else FILE + os.path.abspath(features)


def is_own(encoder: str) -> bool:
    """Whether an encoder's name stands for features of the user's own."""
    return encoder.startswith((FILE, OBSM))


class OwnFeatures(NamedTuple):
    """Features of the user's own at the spots of a section; nothing of them is computed, nor kept in the cache."""

    adata: AnnData
    encoder: str  # of ``encoder_name``

    @property
    def where(self) -> str:
        return self.encoder.removeprefix(FILE)

    def extract(self, weights: str | None = None) -> None:
        """There is nothing to compute; InputError where they do not fit the section."""
        self.read()

    def read(self) -> np.ndarray:
        """(N, D) at the spots; InputError where there are none for some spot, or not such as can be used."""
        if self.encoder.startswith(OBSM):
            return _of_obsm(self.adata, self.encoder.removeprefix(OBSM))
        table, names = read_features(Path(self.where)), self.adata.obs_names
        if table.barcodes is not None:
            return table.values[self._rows(table.barcodes)]
        if table.xy is not None:
            return self._at(table, np.asarray(self.adata.obsm["spatial"], np.float64), "spots")
        if len(table.values) != len(names):
            raise InputError(
                f"{self.where}: {len(table.values)} rows for the {len(names)} spots of section {self._name}: give a "
                "row for each in the section's order, or barcodes or coordinates (.npz, .parquet, .h5)"
            )
        logging.info("%s: no barcodes: its rows are those of spots %s, %s, …", self.where, *[*names, "…"][:2])
        return table.values

    def at(self, locations: Locations) -> np.ndarray:
        """(M, D) at new locations; InputError where the file has no coordinates, or none there."""
        table = None if self.encoder.startswith(OBSM) else read_features(Path(self.where))
        if table is None or table.xy is None:
            raise InputError(
                f"{self.where} has features of spots, without coordinates: use --locations=spots, or train with a file "
                "that has coordinates (.npz, .parquet, .h5) of the locations too"
            )
        return self._at(table, locations.xy, "locations")

    def made_from(self) -> dict:
        """Hash and width, for config.json."""
        values = self.read()
        content = hashlib.sha256(np.ascontiguousarray(values)).hexdigest()
        file = {} if self.encoder.startswith(OBSM) else {"features_file_sha256": sha256(self.where)}
        return {"features_sha256": content, "features_width": values.shape[1]} | file

    @property
    def _name(self) -> str:
        return self.adata.uns["spabit"]["name"]

    def _rows(self, barcodes: np.ndarray) -> np.ndarray:
        row, names = {barcode: i for i, barcode in enumerate(barcodes)}, self.adata.obs_names
        if len(row) < len(barcodes):
            raise InputError(f"{self.where}: a barcode occurs twice: give each spot one row")
        if lost := [name for name in names if name not in row]:
            raise InputError(
                f"{self.where}: no features of {len(lost)} of the {len(names)} spots of section {self._name} "
                f"({lost[0]}, …): its barcodes are {barcodes[0]}, …"
            )
        return np.array([row[name] for name in names])

    def _at(self, table: Table, xy: np.ndarray, what: str) -> np.ndarray:
        """Of the nearest place of the file: within its square, or within a pixel and ``SAME_PLACE``."""
        pitch = spot_pitch(np.asarray(self.adata.obsm["spatial"], np.float64))
        pixel = min(1.0, pitch / 4)  # rows and columns are a whole pitch apart
        reach, order = (pixel + SAME_PLACE * pitch, 2) if table.width is None else (table.width / 2 + pixel, np.inf)
        distance, nearest = KDTree(table.xy).query(xy, p=order)
        if far := int((distance > reach).sum()):
            x, y = xy[distance.argmax()]
            raise InputError(
                f"{self.where}: no features at {far} of the {len(xy)} {what} of section {self._name} (({x:g}, "
                f"{y:g}), …): its coordinates must be theirs, x and y in full-resolution pixels"
            )
        return table.values[nearest]


def _of_obsm(adata: AnnData, key: str) -> np.ndarray:
    if key not in adata.obsm:
        known = ", ".join(name for name in adata.obsm if name != "spatial") or "none"
        name = adata.uns["spabit"]["name"]
        raise InputError(f"section {name} has no obsm[{key!r}] (there is {known}): give an .h5ad that has it")
    return _checked(np.asarray(adata.obsm[key]), f"obsm:{key}")


def read_features(path: Path) -> Table:
    """Features of a file.

    ``.npy``: (N, D), in the order of the section's spots. ``.npz`` and ``.h5``: an array of ``VALUES``, and where there
    is one of ``BARCODES`` or of ``COORDINATES``: centres, or with the attribute ``patch_size_level0`` (TRIDENT) the
    upper left corners of squares of that width. ``.parquet``: columns of numbers; ``barcode`` or the index; x and y.

    Raises:
      InputError: no such file, another kind, or not what is said above.
    """
    if not path.is_file():
        raise InputError(f"--features={path}: no such file: give {', '.join(SUFFIXES[:4])}, or obsm:KEY of an .h5ad")
    readers = dict(zip(SUFFIXES, (_npy, _npz, _parquet, _h5, _h5), strict=True))
    if path.suffix.lower() not in readers:
        raise InputError(f"--features={path}: give {', '.join(SUFFIXES[:4])}, or obsm:KEY of an .h5ad")
    try:
        table = readers[path.suffix.lower()](path)
    except (OSError, EOFError, ValueError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a readable {path.suffix} file ({' '.join(str(error).split())})") from error
    values = _checked(table.values, str(path))
    for what, array in (("barcodes", table.barcodes), ("coordinates", table.xy)):
        if array is not None and len(array) != len(values):
            raise InputError(f"{path}: {len(values)} rows of features and {len(array)} {what}: they must be as many")
    return table._replace(values=values)


def _checked(values: np.ndarray, where: str) -> np.ndarray:
    if values.ndim == 3 and len(values) == 1:  # a batch of one slide
        values = values[0]
    if values.ndim != 2 or not values.size or not np.issubdtype(values.dtype, np.number):
        raise InputError(f"{where}: features of shape {values.shape} and type {values.dtype}: (spots, width) is needed")
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise InputError(f"{where}: a feature is not a finite number of float32: mend the file")
    return values


def _npy(path: Path) -> Table:
    return Table(np.load(path), None, None, None)


def _npz(path: Path) -> Table:
    with np.load(path) as file:
        known = [name for name in (*VALUES, *BARCODES, *COORDINATES) if name in file]
        try:
            return _table({name: file[name] for name in known}, path, None)
        except ValueError as error:  # NumPy's, for what only pickle could read
            raise InputError(f"{path}: {error}: save text as text, barcodes.astype(str)") from error


def _h5(path: Path) -> Table:
    import h5py

    check_heaps(path)
    with h5py.File(path) as file:
        known = [name for name in (*VALUES, *BARCODES, *COORDINATES) if isinstance(file.get(name), h5py.Dataset)]
        widths = (file[name].attrs.get("patch_size_level0") for name in known if name in COORDINATES)
        if "img" in file and not set(known) & set(VALUES):
            raise InputError(f"{path}: holds pictures of patches (img), no features: run an encoder on them first")
        return _table({name: file[name][()] for name in known}, path, next(widths, None))


def _table(arrays: dict[str, np.ndarray], path: Path, corner_width) -> Table:
    """The arrays of ``.npz`` and ``.h5``; with a width the coordinates are those of upper left corners."""
    kinds = (VALUES, BARCODES, COORDINATES)
    values, barcodes, xy = (next((arrays[n] for n in names if n in arrays), None) for names in kinds)
    if values is None:
        raise InputError(f"{path}: no array {' or '.join(VALUES)}")
    if barcodes is not None:
        barcodes = np.array([b.decode() if isinstance(b, bytes) else str(b) for b in barcodes.ravel()])
    if xy is None:
        return Table(values, barcodes, None, None)
    xy = np.asarray(xy, np.float64)
    xy = xy[0] if xy.ndim == 3 and len(xy) == 1 else xy
    if xy.ndim != 2 or xy.shape[1] != 2 or not np.isfinite(xy).all():
        raise InputError(f"{path}: coordinates of shape {xy.shape}: x and y of each row are needed")
    if corner_width is None:
        return Table(values, barcodes, xy, None)
    return Table(values, barcodes, xy + float(corner_width) / 2, float(corner_width))


def _parquet(path: Path) -> Table:
    import pandas as pd

    table = pd.read_parquet(path)
    named = next((table.pop(name) for name in BARCODES if name in table), None)
    if named is None and not isinstance(table.index, pd.RangeIndex):
        named = table.index
    xy = table[["x", "y"]].to_numpy(np.float64) if {"x", "y"} <= set(table) else None
    values = table.drop(columns=["x", "y"], errors="ignore")
    if text := [name for name in values if not pd.api.types.is_numeric_dtype(values[name])]:
        raise InputError(f"{path}: column {text[0]} is not of numbers: barcode, x, y and features are needed")
    barcodes = None if named is None else np.asarray(named, str)
    return Table(values.to_numpy(), barcodes, xy, None)
