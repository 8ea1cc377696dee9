"""Neighbours of spots: the graph of the separate GAT, the context of a spot, and expression imputed from neighbours."""

from __future__ import annotations

import numpy as np
from scipy.spatial import KDTree

from spabit_jax.scale import LOG

CHUNK = 16384  # places whose surroundings are looked at at a time


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
    """Moran's I of (n, G) values over the graph of the k nearest spots: (G,), NaN where a gene does not vary."""
    from scanpy.metrics import morans_i
    from scipy import sparse

    found = np.full(values.shape[1], np.nan)
    varies = np.ptp(values, axis=0) > 0  # scanpy warns of the others
    if varies.any() and len(xy) > 1:
        senders, receivers = knn_graph(xy, k)
        graph = sparse.csr_matrix((np.ones(len(senders)), (receivers, senders)), shape=(len(xy), len(xy)))
        found[varies] = morans_i(graph, np.ascontiguousarray(values[:, varies].T, np.float64))
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


def context_spots(xy: np.ndarray, is_train: np.ndarray, k: int, n_spots: int | None = None) -> np.ndarray:
    """The k nearest train spots of each spot, nearest first, never the spot itself.

    Ties are broken by coordinates, so that the result does not depend on the order of the spots.

    Args:
      xy: (N, 2) coordinates of the spots.
      is_train: (N,) bool.
      k: how many; fewer where there are not that many other train spots.
      n_spots: the first so many are the section's spots, the others new locations; all are spots if None.

    Returns:
      (N, k) int32 indices of spots.
    """
    train = np.flatnonzero(is_train)
    train = train[np.lexsort((xy[train, 1], xy[train, 0]))]
    k = min(k, len(train) - 1)
    spare = min(len(train), k + 1 + 12)  # room for ties at the k-th place, of which a lattice has at most 12
    distance, nearest = KDTree(xy[train]).query(xy, k=spare)
    distance[train[nearest] == np.arange(len(xy))[:, None]] = np.inf
    # train spots are sorted by coordinates, so their rank breaks ties of the rounded distance
    rounded = np.round(distance / np.median(distance[:n_spots].min(axis=1)), 6)
    order = np.lexsort((nearest, rounded), axis=1)[:, :k]
    return train[np.take_along_axis(nearest, order, axis=1)].astype(np.int32)


def smoothed(xy: np.ndarray, values: np.ndarray, sd: float, at: np.ndarray | None = None) -> np.ndarray:
    """Gaussian means of (N, D) values at (N, 2) places, around each of them or around (M, 2) others.

    ``sd`` is in the units of ``xy``, and the mean cut off at three; what is further than that from all places gets NaN.
    """
    tree, at = KDTree(xy), xy if at is None else at
    parts = []
    for start in range(0, len(at), CHUNK):  # pairs of neighbours are many
        around = KDTree(at[start : start + CHUNK])
        weight = around.sparse_distance_matrix(tree, 3 * sd, output_type="coo_matrix").tocsr()
        weight.data = np.exp(-0.5 * (weight.data / sd) ** 2)
        parts.append((weight @ values) / np.asarray(weight.sum(axis=1)))
    return np.concatenate(parts).astype(values.dtype)


def spot_pitch(xy: np.ndarray) -> float:
    """Median distance of a spot to its nearest neighbour, in the units of ``xy``: (N, 2)."""
    return float(np.median(KDTree(xy).query(xy, k=2)[0][:, 1]))
