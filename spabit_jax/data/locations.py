"""Places where nobody measured: a denser lattice, a grid in µm, a list, or cells."""

from __future__ import annotations

import json
from numbers import Integral
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from anndata import AnnData
from jaxtyping import Float
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator
from scipy.spatial import KDTree

from spabit_jax.data.tissue import on_tissue
from spabit_jax.errors import InputError
from spabit_jax.geojson import centroid
from spabit_jax.neighbours import spot_pitch
from spabit_jax.readers.lattice import is_staggered
from spabit_jax.readers.tables import FURTHEST as FURTHEST_PX
from spabit_jax.readers.tables import read_csv, to_numbers

MOST = 2_000_000  # locations in one call
MOST_TIMES = 1000  # as dense, along each axis
FURTHEST = 3.0  # pitches from a spot: what is further away has neither neighbours nor surroundings to go by
CELL_IDS = ("cell_id", "id", "name", "label")  # properties of GeoJSON's features, beside their own id

KINDS = "grid:Nx (as in grid:2x), um:N (as in um:16), a CSV file with columns x and y, FILE.geojson (cells), or spots"


class Locations(NamedTuple):
    """M places on a section."""

    names: np.ndarray  # (M,) str
    xy: Float[np.ndarray, "M 2"]  # full-resolution pixels
    array: Float[np.ndarray, "M 2"]  # (row, col), the section's array coordinates continued between its spots

    def __repr__(self) -> str:
        return f"{len(self.names)} locations"


def find_locations(adata: AnnData, asked: str) -> Locations:
    """The locations that ``--locations`` asks for: ``grid:Nx``, ``um:N``, a CSV file or GeoJSON.

    Args:
      adata: the section, as ``spabit_jax.readers.read_section`` makes it.

    Raises:
      InputError: another kind, nothing inside the tissue, too many, or a section without what the kind needs.
    """
    kind, _, step = asked.partition(":")
    if kind == "grid" and step.endswith("x") and step[:-1].isdecimal():
        return grid(adata, int(step[:20].rstrip("x")))  # of more digits it is too dense in any case
    if kind == "um":
        try:
            return micrometres(adata, float(step))
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"--locations={asked}: {step!r} is no distance in µm: give {KINDS}") from error
    if Path(asked).suffix.lower() == ".csv":
        return read_locations(adata, Path(asked))
    if Path(asked).suffix.lower() in (".geojson", ".json"):
        return read_cells(adata, Path(asked))
    raise InputError(f"--locations={asked}: give {KINDS}")


def grid(adata: AnnData, times: int) -> Locations:
    """The section's own lattice, ``times`` as dense along each axis, inside the tissue.

    Spots of a hexagonal or staggered lattice lie where row + column is always even (or odd); the denser lattice is the
    same one, smaller. It runs through the measured spots, wherever they really lie.

    Raises:
      InputError: another number; spots that share array coordinates lie on no lattice; they lie on one line; or there
        are too many.
    """
    if not (isinstance(times, Integral) and 1 <= times <= MOST_TIMES):
        raise InputError(f"grid:{f'{times}'[:20]}x: give how many times as dense, a number from 1 to {MOST_TIMES}")
    array = _array(adata)
    if len(np.unique(array, axis=0)) < len(array):
        raise InputError(
            f"{_name(adata)}: several spots share their array coordinates, so there is no lattice to make denser: "
            "use --locations=um:N or a CSV file"
        )
    basis = np.array([[0, 2], [1, 1]] if is_staggered(array) else [[0, 1], [1, 0]]) / times  # rows: steps in (row, col)
    origin = array[np.lexsort(array.T)[0]]
    low, high = array.min(axis=0) - 2, array.max(axis=0) + 2
    corners = np.array([low, high, [low[0], high[1]], [high[0], low[1]]])
    indices = (corners - origin) @ np.linalg.inv(basis)
    first, last = np.floor(indices.min(axis=0)).astype(int), np.ceil(indices.max(axis=0)).astype(int)
    _check_number(np.prod((last - first + 1).astype(float)), f"grid:{times}x")
    i, j = (axis.ravel() for axis in np.mgrid[first[0] : last[0] + 1, first[1] : last[1] + 1])
    dense = origin + np.stack([i, j], axis=1) @ basis
    dense = dense[((dense >= low) & (dense <= high)).all(axis=1)]
    dense = dense[np.lexsort((dense[:, 1], dense[:, 0]))]
    known = np.asarray(adata.obsm["spatial"], np.float64)
    xy = continued(array, known, dense)
    distance, spot = KDTree(known).query(xy)
    rounded = distance < 1e-6 * spot_pitch(known)
    xy[rounded] = known[spot[rounded]]  # to the bit: a window of the image may begin at another pixel
    inside = on_tissue(adata, xy)
    return _numbered(xy[inside], np.round(dense[inside], 9))


def micrometres(adata: AnnData, step: float) -> Locations:
    """A square grid along the image's axes with ``step`` µm between neighbours, inside the tissue.

    Raises:
      InputError: the scale of the section is not known, its spots lie on one line, or there are too many.
    """
    um_per_px = adata.uns["spabit"].get("um_per_px")
    if um_per_px is None:
        raise InputError(f"the scale of {_name(adata)} is not known in µm: use --locations=grid:Nx or a CSV file")
    if not 0 < step < np.inf:
        raise InputError(f"--locations=um:{step:g}: a distance above 0 is needed")
    width, known = step / um_per_px, np.asarray(adata.obsm["spatial"], np.float64)
    _check_plane(known)
    reach = spot_pitch(known)
    first = np.floor((known.min(axis=0) - reach) / width).astype(int)
    last = np.ceil((known.max(axis=0) + reach) / width).astype(int)
    _check_number(np.prod((last - first + 1).astype(float)), f"um:{step:g}")
    row, col = (axis.ravel() for axis in np.mgrid[first[1] : last[1] + 1, first[0] : last[0] + 1])
    xy = np.stack([col, row], axis=1) * width
    xy = xy[on_tissue(adata, xy)]
    return _numbered(xy, continued(known, _array(adata), xy))


def read_locations(adata: AnnData, path: Path) -> Locations:
    """Locations of a CSV file with columns x, y (full-resolution pixels) and optionally name, in capitals or not.

    Raises:
      InputError: no such file or columns, values that are no numbers, names that occur twice, no rows, or a location
        further than ``FURTHEST`` pitches from all measured spots.
    """
    try:
        table = read_csv(path, dtype=str)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable CSV file ({' '.join(str(error).split())})") from error
    table = table.rename(columns={c: c.strip().lower() for c in table if c.strip().lower() not in table})
    if missing := [column for column in ("x", "y") if column not in table]:
        raise InputError(f"{path}: no column {missing[0]}: x and y (full-resolution pixels) are needed, name may be")
    xy = table[["x", "y"]].apply(to_numbers).to_numpy(np.float64)
    if not len(xy):
        raise InputError(f"{path}: no location: give one a row")
    within = (np.abs(xy) <= FURTHEST_PX).all(axis=1)
    if not within.all():
        raise InputError(f"{path}: x or y of row {int(within.argmin()) + 1} is not a number, or beyond {FURTHEST_PX:g}")
    _check_number(len(xy), path)
    _check_near(adata, xy, path)
    known = np.asarray(adata.obsm["spatial"], np.float64)
    located = _numbered(xy, continued(known, _array(adata), xy))
    if "name" not in table:
        return located
    if table["name"].isna().any() or table["name"].duplicated().any():
        raise InputError(f"{path}: a name is missing or occurs twice: give every location its own, or none")
    return located._replace(names=table["name"].to_numpy(str))


def _check_near(adata: AnnData, xy: np.ndarray, where) -> None:
    known = np.asarray(adata.obsm["spatial"], np.float64)
    distance = KDTree(known).query(xy)[0] / spot_pitch(known)
    far = int(distance.argmax())
    if distance[far] > FURTHEST:
        raise InputError(
            f"{where}: ({xy[far, 0]:g}, {xy[far, 1]:g}) is {distance[far]:.1f} spot pitches from the nearest spot, "
            f"more than {FURTHEST:g}: nothing is known there (x is the column, y the row, in full-resolution pixels)"
        )


def check_locations(adata: AnnData, locations: Locations) -> Locations:
    """Locations of the user's own making, as arrays.

    Raises:
      InputError: there are none, not as many of each field, values that are no numbers, names that occur twice, or a
        location further than ``FURTHEST`` pitches from all measured spots.
    """
    try:
        names, xy, array = np.asarray(locations.names, str), *(np.asarray(a, np.float64) for a in locations[1:])
    except (TypeError, ValueError) as error:
        raise InputError(f"Locations: xy and array must be numbers ({error})") from error
    if not len(names) or names.ndim != 1 or {xy.shape, array.shape} != {(len(names), 2)}:
        raise InputError(f"Locations: names {names.shape}, xy {xy.shape}, array {array.shape}: (M,), (M, 2), (M, 2)")
    if not (np.isfinite(xy).all() and np.isfinite(array).all()) or len(np.unique(names)) < len(names):
        raise InputError("Locations: a value is not a number, or a name occurs twice: give every location its own")
    _check_near(adata, xy, "Locations")
    return Locations(names, xy, array)


def read_cells(adata: AnnData, path: Path) -> Locations:
    """Locations of GeoJSON (QuPath, Space Ranger's ``cell_segmentations.geojson``): the centroid of each cell.

    Cells are polygons or points in full-resolution pixels. Their names are the features' ``id``, or a property of
    ``CELL_IDS``; without them they are numbered. Cells further than ``FURTHEST`` pitches from all spots are left out.

    Raises:
      InputError: no such file, not GeoJSON, another geometry, names that occur twice, or no cell near a spot.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a readable GeoJSON file ({' '.join(str(error).split())})") from error
    cells = content.get("features", [content]) if isinstance(content, dict) else content
    if not isinstance(cells, list) or not cells:
        raise InputError(f"{path}: no features: a GeoJSON FeatureCollection of polygons is needed")
    _check_number(len(cells), path)
    xy = np.array([_centroid(cell, f"{path}: feature {i + 1}") for i, cell in enumerate(cells)])
    known = np.asarray(adata.obsm["spatial"], np.float64)
    near = KDTree(known).query(xy)[0] <= FURTHEST * spot_pitch(known)
    if not near.any():
        raise InputError(f"{path}: no cell lies near a spot: coordinates must be x and y in full-resolution pixels")
    if not near.all():
        logging.warning("%s: %d of %d cells are left out: no spot is near", path, (~near).sum(), len(near))
    names = np.array([_cell_name(cell, i) for i, cell in enumerate(cells)])[near]
    if len(np.unique(names)) < len(names):
        raise InputError(f"{path}: an id is missing or occurs twice: give every cell its own, or none")
    return Locations(names, xy[near], continued(known, _array(adata), xy[near]))


def _cell_name(cell: dict, i: int) -> str:
    properties = cell.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    names = (cell.get("id"), *(properties.get(key) for key in CELL_IDS))
    return next((str(name) for name in names if name is not None), f"cell_{i}")


def _centroid(cell: dict, where: str) -> np.ndarray:
    try:
        xy = centroid(cell["geometry"])
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise InputError(f"{where} is no Polygon, MultiPolygon or Point with coordinates: mend the file") from error
    if not (np.abs(xy) <= FURTHEST_PX).all():
        raise InputError(f"{where} has a coordinate that is not a number, or beyond {FURTHEST_PX:g}: mend the file")
    return xy


def continued(known: np.ndarray, values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """A map between array coordinates and pixels, given at the spots, continued to other places.

    It is the affine map with the least squared error; what that leaves (spots lie up to a fifth of a pitch off the
    lattice of legacy ST) is interpolated between the spots, and taken from the nearest one outside their hull.

    Args:
      known, values: (N, 2) each; ``at``: (M, 2), in the frame of ``known``.

    Returns:
      (M, 2), in the frame of ``values``; at a spot that spot's value.

    Raises:
      InputError: the spots lie on one line.
    """
    order = np.lexsort(np.transpose(known)[::-1])  # a lattice's triangles may be cut either way: not as spots come
    known, values = np.asarray(known, np.float64)[order], np.asarray(values, np.float64)[order]
    centre = known.mean(axis=0)
    _check_plane(known)
    steps = np.linalg.lstsq(known - centre, values - values.mean(axis=0), rcond=1e-9)[0]
    rest = values - values.mean(axis=0) - (known - centre) @ steps
    found = LinearNDInterpolator(known, rest)(at)
    outside = np.isnan(found[:, 0])
    found[outside] = NearestNDInterpolator(known, rest)(at[outside]) if outside.any() else 0
    return values.mean(axis=0) + (at - centre) @ steps + found


def _check_plane(known: np.ndarray) -> None:
    if np.linalg.matrix_rank(known - known.mean(axis=0), rtol=1e-9) < 2:
        raise InputError("the spots lie on one line: there is no lattice to continue")


def _array(adata: AnnData) -> np.ndarray:
    return adata.obs[["array_row", "array_col"]].to_numpy(np.float64)


def _name(adata: AnnData) -> str:
    return f"section {adata.uns['spabit']['name']}"


def _numbered(xy: np.ndarray, array: np.ndarray) -> Locations:
    if not len(xy):
        raise InputError("no location lies on the tissue: ask for more, as in --locations=grid:2x")
    return Locations(np.array([f"grid_{i}" for i in range(len(xy))]), xy, array)


def _check_number(number: float, asked) -> None:
    if number > MOST:
        raise InputError(f"--locations={asked}: {number:.3g} locations, at most {MOST:,}: ask for fewer")
