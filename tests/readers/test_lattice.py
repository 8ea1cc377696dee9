from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spabit_jax.errors import InputError
from spabit_jax.readers.lattice import array_coordinates, cell_squares, measure


def hexagonal(rows=9, cols=14):
    return np.array([(r, c) for r in range(rows) for c in range(cols) if (r + c) % 2 == 0])


def square(rows=7, cols=11):
    return np.array([(r, c) for r in range(rows) for c in range(cols)])


def pixels(array, row_px, col_px, degrees=0.0):
    turn = np.deg2rad(degrees)
    x, y = col_px * array[:, 1], row_px * array[:, 0]
    return np.column_stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)]) + [311, 127]


@pytest.mark.parametrize("degrees", [0, 17, 90])
def test_measure(degrees):
    lattice, pitch, um_per_px = measure(hexagonal(), pixels(hexagonal(), 3**0.5 * 40, 40, degrees), None)
    assert (lattice, pitch, um_per_px) == ("hex", pytest.approx(80), pytest.approx(100 / 80))
    lattice, pitch, um_per_px = measure(square(), pixels(square(), 290, 290, degrees), 200.0)
    assert (lattice, pitch, um_per_px) == ("square", pytest.approx(290), pytest.approx(200 / 290))
    # Two interleaved lattices of 200 µm: a step of the array coordinates is 100 µm.
    lattice, pitch, um_per_px = measure(hexagonal(), pixels(hexagonal(), 24, 24, degrees), 200.0)
    assert (lattice, pitch, um_per_px) == ("square", pytest.approx(24 * 2**0.5), pytest.approx(100 / 24))


def test_scale_unknown():
    assert measure(square(), pixels(square(), 8, 8), None)[2] is None
    assert measure(square(1, 5), pixels(square(1, 5), 8, 8), 200.0)[2] is None  # on one line
    assert measure(np.array([[3, 3]]), np.array([[1.0, 2.0]]), 200.0)[2] is None


@pytest.mark.parametrize("degrees", [-5, 0, 0.4, 9])
@pytest.mark.parametrize("make, row_px", [(hexagonal, 3**0.5 * 69), (square, 69)])
def test_array_coordinates_are_found_again(make, row_px, degrees):
    rng = np.random.default_rng(0)
    array = make(31, 37)
    array = array[rng.random(len(array)) < 0.8]  # holes
    xy = pixels(array, row_px, 69, degrees) + rng.normal(0, 2, (len(array), 2))
    order = rng.permutation(len(array))
    found = array_coordinates(xy[order], Path("a.h5ad"))
    shift = found - array[order]
    assert (shift == shift[0]).all()
    assert found.min() in (0, 1)
    if make is hexagonal:
        assert (found.sum(1) % 2 == 0).all()


def test_cells_off_any_lattice_get_places_nearby():
    xy = np.random.default_rng(0).random((500, 2)) * 1000
    found = array_coordinates(xy, Path("a.h5ad"))
    assert found.min(0).tolist() == [0, 0] and len(np.unique(found, axis=0)) > 250


def test_cells_that_lie_on_no_lattice_are_on_no_hexagonal_one(tmp_path):
    for seed in range(5):
        xy = np.random.default_rng(seed).uniform(0, 1000, (700, 2))
        array = array_coordinates(xy, tmp_path)
        assert measure(array, xy, None)[0] == "square"


def test_squares_of_cells(tmp_path):
    xy = np.array([[10.0, 5.0], [13.0, 5.0], [10.0, 8.0], [19.5, 8.1]])
    assert cell_squares(xy, tmp_path).tolist() == [[0, 0], [0, 1], [1, 0], [1, 3]]
    assert cell_squares(xy[:1], tmp_path).tolist() == [[0, 0]]
    with pytest.raises(InputError, match="share their position"):
        cell_squares(np.ones((3, 2)), tmp_path)
