"""Where a serial section lies on its neighbour: rotation, translation and reflection, from what is known of both."""

from __future__ import annotations

import itertools

import numpy as np
from scipy.optimize import minimize
from scipy.spatial import KDTree

STEP = 6  # degrees between the rotations that are tried
SIDE = 32  # grid cells from the middle to the edge, at most: a cell is a pitch or more
REFINED = 4  # candidates of the grid that are refined
SHARPNESS = 0.7  # sd in pitches of the Gaussian mean that is compared, with a pull of ``PULL`` spots towards 0
PULL = 0.3
MOST = 500  # spots at which two sections are compared, of more some
TURN = 0.1  # radians that count as much as a pitch


def register(xy: np.ndarray, values: np.ndarray, other_xy: np.ndarray, other_values: np.ndarray) -> np.ndarray:
    """Where the spots of another section lie in the coordinates of this one, rigidly moved and possibly mirrored.

    All rotations and both sides are tried on a grid, every translation at once (cross-correlation by Fourier
    transforms); the best are refined by the squared difference at this section's spots.

    Args:
      xy: (n, 2) spots in pitches.
      values: (n, K) what is known there, at mean 0; NaN is unknown.
      other_xy, other_values: (m, 2), (m, K) of the other.

    Returns:
      (m, 2).
    """
    centre = xy.mean(axis=0)
    here, there = xy - centre, other_xy - other_xy.mean(axis=0)
    unit = max(1.0, max(np.linalg.norm(places, axis=1).max() for places in (here, there)) / SIDE)
    coarse = _candidates(here / unit, values, there / unit, other_values)
    some = slice(None, None, -(-len(here) // MOST))
    compared = here[some], values[some], KDTree(there), np.nan_to_num(other_values)
    mirrored, motion = min((_refined(*compared, *candidate, unit) for candidate in coarse), key=lambda c: c[0])[1:]
    return _move(there, mirrored, *motion) + centre


def _move(xy: np.ndarray, mirrored: bool, angle: float, dx: float, dy: float) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.array([[cos, sin], [-sin, cos]])
    return (xy * [1, -1] if mirrored else xy) @ matrix + [dx, dy]


def _candidates(here, values, there, other_values) -> list[tuple[bool, float, float, float]]:
    """Mirrored, angle and translation of the highest correlations over the square root of the overlap."""
    size = 2 ** int(np.ceil(np.log2(4 * max(np.linalg.norm(places, axis=1).max() for places in (here, there)) + 8)))
    frequency = np.fft.fftfreq(size)
    blur = np.exp(-2 * np.pi**2 * (frequency[:, None] ** 2 + frequency[: size // 2 + 1] ** 2))  # sd of a cell

    def spectrum(xy, values):
        row, column = np.round(xy).astype(int).T % size
        channels = [*np.nan_to_num(values).T, np.ones(len(xy))]
        grid = np.zeros((len(channels), size, size))
        np.add.at(grid, (slice(None), row, column), channels)
        return np.fft.rfft2(grid) * blur

    fixed, found = spectrum(here, values).conj(), []
    for mirrored, angle in itertools.product((False, True), np.deg2rad(np.arange(0, 360, STEP))):
        both = fixed * spectrum(_move(there, mirrored, angle, 0, 0), other_values)
        agreement, overlap = np.fft.irfft2(np.stack([both[:-1].sum(axis=0), both[-1]]), (size, size))
        score = agreement / np.sqrt(np.maximum(overlap, 0) + PULL * overlap.max())
        best = np.unravel_index(score.argmax(), score.shape)
        shift = [-(i - size if i > size / 2 else i) for i in best]
        found.append((score[best], mirrored, angle, *shift))
    return [candidate[1:] for candidate in sorted(found, reverse=True)[:REFINED]]


def _refined(here, values, tree: KDTree, other_values, mirrored, angle, dx, dy, unit):
    """Mean squared difference, whether mirrored, and (angle, dx, dy) in pitches."""
    known = ~np.isnan(values)

    def difference(motion):
        back = here - motion[1:]
        back = _move(back, False, -motion[0] * TURN, 0, 0) * ([1, -1] if mirrored else [1, 1])
        distance, near = tree.query(back, k=min(4, tree.n))
        weight = np.exp(-0.5 * (distance / SHARPNESS) ** 2)
        expected = np.einsum("nk,nkc->nc", weight, other_values[near]) / (weight.sum(axis=1, keepdims=True) + PULL)
        return np.mean((expected - values)[known] ** 2)

    start = np.array([angle / TURN, dx * unit, dy * unit])
    simplex = start + np.array([[0, 0, 0], [0.5, 0, 0], [0, unit, 0], [0, 0, unit]])
    options = {"initial_simplex": simplex, "xatol": 0.02, "fatol": 1e-5, "maxiter": 150}
    found = minimize(difference, start, method="Nelder-Mead", options=options)
    return found.fun, mirrored, (found.x[0] * TURN, *found.x[1:])
