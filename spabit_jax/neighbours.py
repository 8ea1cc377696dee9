"""Neighbours of spots: the graph of the separate GAT, the context of a spot, and expression imputed from neighbours."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.spatial import KDTree

from spabit_jax.chunks import slices
from spabit_jax.scale import LOG

CHUNK = 16384  # places whose surroundings are looked at at a time
TIE = 1e-6  # relative: distances that differ by less are equal


def knn_graph(xy: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The symmetrised graph of the k nearest spots, without self loops.

    Neighbours are found by scikit-learn's ``KDTree``, as the reference does: where distances tie (on array coordinates
    of a hexagonal lattice they do), ties fall as that class breaks them.

    Args:
      xy: (N, 2) coordinates, pixels or array.

    Returns:
      senders, receivers: (E,) int32, every edge in both directions, sorted by receiver, then sender.
    """
    from sklearn.neighbors import KDTree as ReferenceTree

    n = len(xy)
    found = ReferenceTree(xy).query(xy, k=min(k + 1, n), return_distance=False)
    receivers = np.repeat(np.arange(n), found.shape[1])
    senders = found.ravel()
    keep = senders != receivers
    senders, receivers = senders[keep], receivers[keep]
    pairs = np.unique(np.concatenate([receivers * n + senders, senders * n + receivers]))
    return (pairs % n).astype(np.int32), (pairs // n).astype(np.int32)


def morans_i(values: np.ndarray, xy: np.ndarray, k: int = 6) -> np.ndarray:
    """Moran's I of (n, G) values over the graph of the k nearest spots: (G,), NaN where a gene does not vary.

    I = n / Σ w · Σ_ij w_ij z_i z_j / Σ z² (Moran, 1950), as ``scanpy.metrics.morans_i``, whose import and compilation
    take seconds. Spots as near as the k-th nearest are neighbours, too: no tie is broken by the order of spots.
    """
    found, n = np.full(values.shape[1], np.nan), len(xy)
    varies = np.ptp(values, axis=0) > 0
    if varies.any() and n > 1:
        tree = KDTree(xy)
        reach = tree.query(xy, k=[min(k + 1, n)])[0][:, 0]  # the spot itself is the first
        near = tree.query_ball_point(xy, reach * (1 + TIE))
        ends = np.cumsum([0, *map(len, near)])
        graph = csr_array((np.ones(ends[-1]), np.concatenate(near), ends), shape=(n, n))
        graph = graph.maximum(graph.T)
        graph.setdiag(0)
        z = values[:, varies].astype(np.float64)
        z -= z.mean(axis=0)
        found[varies] = n / graph.sum() * (z * (graph @ z)).sum(axis=0) / (z**2).sum(axis=0)
    return found


def impute_from_train(
    counts: np.ndarray, coordinates: np.ndarray, is_train: np.ndarray, k: int, scale: str = "log2_count"
) -> np.ndarray:
    """Expression of train spots; at the others, of the mean count of their k nearest train spots.

    Args:
      counts: (N, G) raw or scaled counts; only the rows of train spots are looked at.
      coordinates: (N, 2), array coordinates in the reference; neighbours by scikit-learn's ``KDTree``.
      is_train: (N,) bool.
      scale: the logarithm that is taken, a name in ``spabit_jax.scale.SCALES``.

    Returns:
      (N, G) float32.
    """
    from sklearn.neighbors import KDTree as ReferenceTree

    train = np.flatnonzero(is_train)
    imputed = np.empty(counts.shape, np.float64)
    imputed[train] = counts[train]
    if len(train) < len(counts):
        tree = ReferenceTree(coordinates[train])
        nearest = tree.query(coordinates[~is_train], k=min(k, len(train)), return_distance=False)
        imputed[~is_train] = counts[train[nearest]].mean(axis=1)
    return LOG[scale](imputed).astype(np.float32)


class Context(NamedTuple):
    """The train spots among which the nearest of any place are found.

    Ties are broken by coordinates, so that nothing depends on the order of the spots.
    """

    train: np.ndarray  # (n,) indices of the train spots, sorted by coordinates
    tree: KDTree  # over them
    k: int  # how many nearest
    unit: float  # median distance of a spot to its nearest train spot

    @classmethod
    def of(cls, xy: np.ndarray, is_train: np.ndarray, k: int) -> Context:
        """Of (N, 2) spots, some of them (N,) train spots; ``k`` is less where there are not that many others."""
        train = np.flatnonzero(is_train)
        train = train[np.lexsort((xy[train, 1], xy[train, 0]))]
        tree = KDTree(xy[train])
        context = cls(train, tree, min(k, len(train) - 1), 1.0)
        distance, _ = context._query(xy, np.arange(len(xy)))
        return context._replace(unit=float(np.median(distance.min(axis=1))))

    def of_spots(self, xy: np.ndarray) -> np.ndarray:
        """(N, k) int32 indices for the (N, 2) spots themselves, nearest first, never the spot itself."""
        return self._nearest(*self._query(xy, np.arange(len(xy))))

    def at(self, xy: np.ndarray) -> np.ndarray:
        """(n, k) int32 indices for (n, 2) other places, nearest first."""
        return self._nearest(*self._query(xy, np.full(len(xy), -1)))

    def _query(self, xy: np.ndarray, itself: np.ndarray):
        spare = min(len(self.train), self.k + 1 + 12)  # room for ties at the k-th place, of which a lattice has 12
        distance, nearest = (a.reshape(len(xy), -1) for a in self.tree.query(xy, k=spare))
        distance[self.train[nearest] == itself[:, None]] = np.inf
        return distance, nearest

    def _nearest(self, distance: np.ndarray, nearest: np.ndarray) -> np.ndarray:
        # train spots are sorted by coordinates, so their rank breaks ties of the rounded distance
        rounded = np.round(distance / self.unit, 6)
        order = np.lexsort((nearest, rounded), axis=1)[:, : self.k]
        return self.train[np.take_along_axis(nearest, order, axis=1)].astype(np.int32)


def nearest(tree: KDTree, xy, k: int, leave_self_out: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Distances and indices, (m, k) each, of the nearest points of a tree.

    Args:
      xy: (m, 2) places.
      k: how many; fewer where there are not that many.
      leave_self_out: the places are the tree's points themselves, in order, and none is its own neighbour.
    """
    k = min(k, tree.n - leave_self_out)
    distance, index = (a.reshape(len(xy), -1) for a in tree.query(xy, k=k + leave_self_out))
    if not leave_self_out:
        return distance, index
    keep = index != np.arange(len(xy))[:, None]
    keep[keep.all(axis=1), -1] = False  # more than k points at one place: the spot itself may not be among those found
    return distance[keep].reshape(-1, k), index[keep].reshape(-1, k)


def weighted_mean(values, index, weight) -> np.ndarray:
    """Means of rows of (n, G) values by (m, k) indices and weights: (m, G)."""
    m, k = index.shape
    weight = weight / weight.sum(axis=1, keepdims=True)
    return csr_array((weight.ravel(), index.ravel(), np.arange(0, m * k + 1, k)), shape=(m, len(values))) @ values


def smoothed(xy: np.ndarray, values: np.ndarray, sd: float, at: np.ndarray | None = None) -> np.ndarray:
    """Gaussian means of (N, D) values at (N, 2) places, around each of them or around (M, 2) others.

    ``sd`` is in the units of ``xy``, and the mean cut off at three; what is further than that from all places gets NaN.
    """
    tree, at = KDTree(xy), xy if at is None else at
    parts = []
    for rows in slices(len(at), CHUNK):  # pairs of neighbours are many
        around = KDTree(at[rows])
        weight = around.sparse_distance_matrix(tree, 3 * sd, output_type="coo_matrix").tocsr()
        weight.data = np.exp(-0.5 * (weight.data / sd) ** 2)
        parts.append((weight @ values) / np.asarray(weight.sum(axis=1)))
    return np.concatenate(parts).astype(values.dtype)


def spot_pitch(xy: np.ndarray) -> float:
    """Median distance of a spot to its nearest neighbour, in the units of ``xy``: (N, 2)."""
    return float(np.median(KDTree(xy).query(xy, k=2)[0][:, 1]))
