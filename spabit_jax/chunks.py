"""Long arrays, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def slices(n: int, size: int) -> Iterator[slice]:
    """Consecutive slices of ``size`` rows that make up ``n``; the last may be shorter."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def filled(n: int, size: int) -> Iterator[tuple[slice, np.ndarray]]:
    """As ``slices``, each with ``size`` row numbers: the last repeats its last row, and one program does for all."""
    return ((rows, np.minimum(np.arange(rows.start, rows.start + size), n - 1)) for rows in slices(n, size))
