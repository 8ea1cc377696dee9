"""The lattice that spots lie on: what it is, its scale in µm, and array coordinates where a file has none."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from scipy.spatial import KDTree

from spabit_jax.errors import InputError
from spabit_jax.neighbours import spot_pitch

_ROW, _COL = 3**0.5 / 2, 1 / 2  # of the hexagonal lattice, in units of the distance between neighbours
_NO_LATTICE = 0.3  # of the order of directions from 0 to 1, up to which cells count as lying on no lattice
VISIUM_UM = 100.0
_VISIUM_ARRAYS = ((77, 127), (127, 223))  # last row and column: of 6.5 mm, of 11 mm
_BIN = r"s_\d+um_\d+_\d+"


def measure(array: np.ndarray, xy: np.ndarray, square_um: float | None) -> tuple[str, float, float | None]:
    """Finds the lattice and its scale by least squares of pixels on array coordinates.

    Hexagonal is a lattice whose row + column is always even (or odd) and whose rows are √3 times as far apart as its
    columns (Visium: 100 µm between neighbours). A square lattice may be staggered too: the legacy ST arrays of 2,000
    spots are two interleaved lattices with the pitch of those of 1,000 spots.

    Args:
      array: (N, 2) integers, (row, col).
      xy: (N, 2) float, full-resolution pixels.
      square_um: pitch of a square lattice in µm (legacy ST: 200), None if it is not known.

    Returns:
      ``hex`` or ``square``; the distance between neighbours in pixels, and µm per pixel (NaN and None if the spots
      lie on one line).
    """
    steps, _, rank, _ = np.linalg.lstsq(array - array.mean(0), xy - xy.mean(0), rcond=1e-6)
    staggered = is_staggered(array)
    area = abs(np.linalg.det(steps))  # px² of one row × one column
    if rank < 2 or area == 0:
        return "hex" if staggered else "square", np.nan, None
    row_px, col_px = np.hypot(*steps.T)
    if staggered and row_px > 1.3 * col_px:  # between 1 and √3
        pitch = (area / (_ROW * _COL)) ** 0.5
        return "hex", pitch, VISIUM_UM / pitch
    um_per_px = None if square_um is None else square_um / (1 + staggered) / area**0.5
    return "square", (area * (1 + staggered)) ** 0.5, um_per_px


def is_staggered(array: np.ndarray) -> bool:
    """Whether row + column is always even, or always odd, as on hexagonal and staggered lattices: (N, 2) → bool."""
    return len(array) > 1 and np.ptp(array.sum(axis=1) % 2) == 0


def whole_array(array: np.ndarray, lattice: str, barcode: str) -> tuple[np.ndarray, np.ndarray]:
    """Array extent of all spots of a slide, of a file that has the array coordinates of those in tissue alone.

    So that a section is split in the same way whether it is read from Space Ranger's folder or from a file made of it.

    Args:
      array: (N, 2) integers, (row, col).
      lattice: ``hex`` for Visium.
      barcode: of one spot; bins of Visium HD are called ``s_008um_00012_00034-1``.

    Returns:
      First and last [row, col]: those of ``array`` if the slide is neither Visium's nor Visium HD's.
    """
    low, high = array.min(0), array.max(0)
    if (low < 0).any():
        return low, high
    if re.match(_BIN, barcode):
        return np.zeros_like(low), high
    if lattice == "hex":
        last = next((np.array(last) for last in _VISIUM_ARRAYS if (high <= last).all()), None)
        return (low, high) if last is None else (np.zeros_like(low), last)
    return low, high


def array_coordinates(xy: np.ndarray, path: Path) -> np.ndarray:
    """Array coordinates of spots that come without them.

    Neighbours (within 1.2 times the median distance to the nearest) give the kind of the lattice, hexagonal or
    square, and by their mean its step and its turn; the array coordinates are the nearest lattice points, counted
    from 0. Cells that lie on no lattice get a square one with their median distance, several to a point.

    Args:
      xy: (N, 2) float, pixels.
      path: for the error message.

    Returns:
      (N, 2) int64, (row, col); on a hexagonal lattice row + col is even.

    Raises:
      InputError: most spots share their position with another.
    """
    if len(xy) < 2:
        return np.zeros((len(xy), 2), np.int64)
    tree = KDTree(xy)
    distance = np.median(tree.query(xy, k=2)[0][:, 1])
    if not distance > 0:
        raise InputError(f"{path}: spots share their positions: obsm['spatial'] must hold their centres in pixels")
    pairs = tree.query_pairs(1.2 * distance, output_type="ndarray")
    z = xy @ np.array([1, 1j])
    offset = z[pairs[:, 1]] - z[pairs[:, 0]]
    offset = offset[offset != 0]
    direction = offset / np.abs(offset)
    order = {n: abs(np.mean(direction**n)) for n in (4, 6)}  # 1 on a lattice
    fold = 6 if order[6] > max(order[4], _NO_LATTICE) else 4
    turn = np.angle(np.mean(direction**fold)) / fold
    sector = np.round((np.angle(offset) - turn) * fold / (2 * np.pi))
    step = np.mean(offset * np.exp(-2j * np.pi * sector / fold))
    origin = z[np.argmin(np.abs(z - z.mean()))]
    place = (z - origin) / step
    if fold == 4:
        array = np.column_stack([np.rint(place.imag), np.rint(place.real)]).astype(np.int64)
        return array - array.min(0)
    row = np.rint(place.imag / _ROW)
    col = row + 2 * np.rint((place.real / _COL - row) / 2)
    array = np.column_stack([row, col]).astype(np.int64)
    low = array.min(0)
    return array - low + [0, low.sum() % 2]


def squares(xy: np.ndarray, width: float) -> np.ndarray:
    """(N, 2) int64, (row, col) of the squares of that width in which (N, 2) places lie, counted from the least."""
    return ((xy - xy.min(0)) // width).astype(np.int64)[:, ::-1]


def cell_squares(xy: np.ndarray, path: Path) -> np.ndarray:
    """Array coordinates of cells, which lie on no lattice: squares of the median distance to the nearest neighbour.

    Several cells may share a square, and squares may be empty.

    Args:
      xy: (N, 2) float, in any unit.
      path: for the error message.

    Returns:
      (N, 2) int64, (row, col), counted from 0.

    Raises:
      InputError: most cells share their position with another.
    """
    if len(xy) < 2:
        return np.zeros((len(xy), 2), np.int64)
    width = spot_pitch(xy)
    if not width > 0:
        raise InputError(f"{path}: most cells share their position with another: give the cells' centroids")
    return squares(xy, width)
