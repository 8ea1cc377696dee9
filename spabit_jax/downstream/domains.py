"""Spatial domains: clusters of spots by expression, and how well they agree with an annotation."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import kneighbors_graph
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from spabit_jax.downstream.expression import centred, kinds, train_spots
from spabit_jax.neighbours import smoothed, spot_pitch
from spabit_jax.predictions import scale_of

N_COMPONENTS = 20
N_NEIGHBOURS = 15  # in Leiden's graph, as scanpy has it
_MAX_RESOLUTION = 8.0
COLUMNS = ["expression", "smoothing", "method", "seed", "n_domains", "scored_on", "n_spots", "ari", "nmi"]


def find_domains(predictions: AnnData, labels: np.ndarray, n_domains: int, n_seeds: int) -> tuple[pd.DataFrame, dict]:
    """Clusters every kind of expression with every method, with and without spatial smoothing.

    Args:
      predictions: content of predictions.h5ad, N spots.
      labels: (N,) str, "" where unknown; those spots are clustered and left out of the score.
      n_domains: how many domains are asked for.
      n_seeds: seeds of each clustering.

    Returns:
      A row per kind, smoothing, method, seed and set of spots that is scored (``all``, ``train``, ``test``; of
      ``measured`` only train) with columns ``COLUMNS``; ari and nmi are NaN where no spot has a label. And
      (kind, smoothing, method) → (N,) domains of the first seed, -1 at spots that were not clustered.
    """
    is_train, xy = train_spots(predictions), np.asarray(predictions.obsm["spatial"], float)
    scored = {"all": np.ones_like(is_train), "train": is_train, "test": ~is_train}
    rows, maps = [], {}
    sources = kinds(predictions)
    bar = tqdm(total=len(sources) * 2 * len(METHODS), desc="domains", unit="clustering", disable=None)
    with bar, threadpool_limits(1):  # matrices this small are slower on several threads
        for kind, (spots, values) in sources.items():
            for smoothing in (False, True):
                shares = centred(values, scale_of(predictions).name)
                components = principal_components(smooth(xy[spots], shares) if smoothing else shares)
                for method, cluster in METHODS.items():
                    for seed in range(n_seeds):
                        found = np.full(len(xy), -1)
                        found[spots] = cluster(components, n_domains, seed)
                        maps.setdefault((kind, smoothing, method), found)
                        for name, among in scored.items():
                            if name == "train" or kind != "measured":
                                score = agreement(found[among], labels[among])
                                size = len(np.unique(found[spots]))
                                rows.append((kind, smoothing, method, seed, size, name, *score))
                    bar.update()
    return pd.DataFrame(rows, columns=COLUMNS), maps


def agreement(domains: np.ndarray, labels: np.ndarray) -> tuple[int, float, float]:
    """How many of (n,) spots have a label, and over them the adjusted Rand index and normalised mutual information."""
    known = labels != ""
    if not known.any():
        return 0, np.nan, np.nan
    domains, labels = domains[known], labels[known].astype(str)
    ari, nmi = adjusted_rand_score(labels, domains), normalized_mutual_info_score(labels, domains)
    return int(known.sum()), float(ari), float(nmi)


def smooth(xy: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Gaussian means of (n, G) values around each spot, the sd being the distance of neighbouring spots."""
    return smoothed(xy / spot_pitch(xy), values, sd=1.0)


def principal_components(values: np.ndarray) -> np.ndarray:
    """(n, G) → (n, C): scores of the first principal components, genes not scaled."""
    return PCA(min(N_COMPONENTS, len(values) - 1, values.shape[1]), svd_solver="full").fit_transform(values)


def kmeans(components: np.ndarray, n_domains: int, seed: int) -> np.ndarray:
    """(n, C) → (n,) domains by k-means, the best of ten starts."""
    return KMeans(n_domains, n_init=10, random_state=seed).fit_predict(components)


def mixture(components: np.ndarray, n_domains: int, seed: int) -> np.ndarray:
    """(n, C) → (n,) domains by a Gaussian mixture whose components share one full covariance: mclust's model EEE."""
    model = GaussianMixture(n_domains, covariance_type="tied", max_iter=1000, random_state=seed)
    return model.fit_predict(components)


def leiden(components: np.ndarray, n_domains: int, seed: int) -> np.ndarray:
    """(n, C) → (n,) domains by Leiden on the nearest-neighbour graph.

    The resolution is searched by bisection until there are ``n_domains``; where none gives that number, the
    clustering with the nearest number of those seen is taken.
    """
    import scanpy as sc

    graph = kneighbors_graph(components, min(N_NEIGHBOURS, len(components) - 1))
    graph = graph.maximum(graph.T)
    holder = AnnData(obs=pd.DataFrame(index=pd.RangeIndex(len(components)).astype(str)))
    low, high, best = 0.0, _MAX_RESOLUTION, None
    for _ in range(20):
        resolution = (low + high) / 2
        sc.tl.leiden(
            holder, resolution, adjacency=graph, directed=False, flavor="igraph", n_iterations=2, random_state=seed
        )
        found = holder.obs["leiden"].cat.codes.to_numpy()
        n_found = found.max() + 1
        if best is None or abs(n_found - n_domains) < abs(best.max() + 1 - n_domains):
            best = found
        if n_found == n_domains:
            break
        low, high = (resolution, high) if n_found < n_domains else (low, resolution)
    return best


METHODS = {"kmeans": kmeans, "mixture": mixture, "leiden": leiden}
