"""Decoded pixels that windows around neighbouring spots share."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import product

import numpy as np
import zarr

HELD_BYTES = 2**27  # of decoded chunks that are kept


class Chunks:
    """A zarr array of pixels, sliced as such, that keeps ``HELD_BYTES`` of chunks decoded.

    Args:
      array: of any number of axes.
    """

    def __init__(self, array: zarr.Array):
        self._array, self.shape, self.ndim, self.dtype = array, array.shape, array.ndim, array.dtype
        self._sizes = [min(size, n) for size, n in zip(array.chunks, array.shape, strict=True)]
        chunk_bytes = math.prod(self._sizes) * self.dtype.itemsize
        self._chunk = lru_cache(max(1, HELD_BYTES // chunk_bytes))(self._decoded)

    def _decoded(self, *index):
        return self._array[tuple(slice(i * size, (i + 1) * size) for i, size in zip(index, self._sizes, strict=True))]

    def __getitem__(self, key: tuple[slice | int, ...]) -> np.ndarray:
        """The window of an index or a slice without a step for each axis, as numpy has it."""
        asked = [range(n)[k] if isinstance(k, slice) else range(k, k + 1) for k, n in zip(key, self.shape, strict=True)]
        window = np.empty([len(along) for along in asked], self.dtype)
        chunks = (range(r.start // size, -(-r.stop // size)) for r, size in zip(asked, self._sizes, strict=True))
        for index in product(*chunks):
            offsets = [r.start - i * size for r, i, size in zip(asked, index, self._sizes, strict=True)]
            into = tuple(slice(max(-o, 0), size - o) for o, size in zip(offsets, self._sizes, strict=True))
            of = tuple(slice(max(o, 0), o + len(r)) for o, r in zip(offsets, asked, strict=True))
            window[into] = self._chunk(*index)[of]
        return window[tuple(slice(None) if isinstance(k, slice) else 0 for k in key)]
