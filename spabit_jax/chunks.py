"""Long arrays, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator


def slices(n: int, size: int) -> Iterator[slice]:
    """Consecutive slices of ``size`` rows that make up ``n``; the last may be shorter."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
