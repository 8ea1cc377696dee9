"""Long arrays, some rows at a time, or some rows only."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def slices(n: int, size: int) -> Iterator[slice]:
    """Consecutive slices of ``size`` rows that make up ``n``; the last may be shorter."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def filled(n: int, size: int) -> Iterator[tuple[slice, np.ndarray]]:
    """As ``slices``, each with ``size`` row numbers: the last repeats its last row, and one program does for all."""
    return ((rows, np.minimum(np.arange(rows.start, rows.start + size), n - 1)) for rows in slices(n, size))


def sample(xy: np.ndarray, size: int) -> np.ndarray:
    """Row numbers, sorted, of ``size`` of (n, d) places, at random but the same in any order of rows; or of all."""
    order = np.lexsort(xy.T)
    return np.sort(order[np.random.default_rng(0).permutation(len(xy))[:size]])
