"""Scales of expression: what is predicted, and what every number and map is in.

``log2_count`` is the reference's: log2(count + 1), in which a spot with more counts has more of every gene.
``log1p_normalised`` takes that out: counts are scaled to one total for every spot, then log1p.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from anndata import AnnData

LABELS = {"log2_count": "log2(count + 1)", "log1p_normalised": "log1p(normalised count)"}
SCALES = tuple(LABELS)
LOG = {"log2_count": lambda amounts: np.log2(amounts + 1), "log1p_normalised": np.log1p}
UNLOG = {"log2_count": lambda expression: np.exp2(expression) - 1, "log1p_normalised": np.expm1}
NOISE_BOUNDS = (0.2, 5.0)
TOTAL = "total_counts_of_all_genes"  # column of obs where the other genes are gone: of joined sections


class Scale(NamedTuple):
    """How counts become expression."""

    name: str  # of ``SCALES``
    target: float | None  # total that the counts of a spot are scaled to; None: they stay as they are

    def amounts(self, counts, totals) -> np.ndarray:
        """Counts (N, G) of spots with (N,) totals, scaled: (N, G) float32."""
        counts = np.asarray(counts, np.float32)
        if self.target is None:
            return counts
        factor = self.target / np.maximum(np.asarray(totals, np.float64), 1)
        return counts * factor[:, None].astype(np.float32)

    def expression(self, counts, totals) -> np.ndarray:
        """Counts (N, G) of spots with (N,) totals → expression (N, G) float32."""
        return LOG[self.name](self.amounts(counts, totals))

    def noise(self, totals) -> np.ndarray:
        """Variance of the noise of spots with (n,) totals, relative to that of the target: (n,) float32.

        Of a count that is divided by the spot's total it is the target over the total (counts are Poisson), and that is
        bounded, for spots of next to no counts. Where depth is not taken out it is the same for all.
        """
        if self.target is None:
            return np.ones(len(totals), np.float32)
        return np.clip(self.target / np.maximum(totals, 1), *NOISE_BOUNDS).astype(np.float32)


LOG2 = Scale("log2_count", None)


def find_scale(name: str, adata: AnnData, is_train: np.ndarray) -> Scale:
    """The scale of a section.

    Args:
      name: ``log2_count``, or ``log1p_normalised``: counts × target / total of the spot over all its genes (as
        ``scanpy.pp.normalize_total``), then log1p. The target is the median total of the train spots.
      adata: counts of all genes in ``X``.
      is_train: (N,) bool; nothing is taken from the other spots.
    """
    if name == "log2_count":
        return LOG2
    return Scale(name, float(max(np.median(total_counts(adata)[is_train]), 1)))


def total_counts(adata: AnnData) -> np.ndarray:
    """(N,) counts of all genes."""
    if TOTAL in adata.obs:
        return adata.obs[TOTAL].to_numpy(np.float64)
    return np.asarray(adata.X.sum(axis=1), np.float64).ravel()
