"""AnnData → SectionData: the arrays that enter JAX."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from anndata import AnnData
from jaxtyping import Bool, Float, Int

from spabit_jax.config import Config
from spabit_jax.data.graphs import GraphsTuple, make_graph
from spabit_jax.neighbours import context_spots, impute_from_train, knn_graph, smoothed, spot_pitch
from spabit_jax.scale import LOG, Scale, find_scale, total_counts

IMAGE_SCALES = (1.0, 2.0)  # sd of the Gaussian means of image features around a spot, in pitches
CHUNK = 16384  # rows of image features that are held in memory at a time
N_POOL = 2  # context spots are drawn from a pool this many times as large when a training step hides some


class Space(NamedTuple):
    """What a model predicts in: expression = mean + scores @ loadings; P scores."""

    mean: Float[np.ndarray, "G"]
    loadings: Float[np.ndarray, "P G"] | Float[np.ndarray, "G"]  # orthogonal rows; (G,) where scores are genes

    def encode(self, expression):
        """(..., G) → (..., P)."""
        centred = expression - self.mean
        if self.loadings.ndim == 1:
            return centred / self.loadings
        return centred @ (self.loadings / (self.loadings**2).sum(axis=1, keepdims=True)).T

    def decode(self, scores):
        """(..., P) → (..., G)."""
        return self.mean + (scores * self.loadings if self.loadings.ndim == 1 else scores @ self.loadings)


class SectionData(NamedTuple):
    """A section as a pytree of arrays: N spots, G genes of the panel, D image features.

    The expression of test spots is NaN: it never enters JAX, and whatever touched it would show.
    """

    expression: Float[np.ndarray, "N G"]  # on the scale of ``config.data.scale``; NaN at test spots
    features: Float[np.ndarray, "N D"]  # image features; D is 0 without an image
    xy: Float[np.ndarray, "N 2"]  # in units of the spot pitch, from the section's centre
    is_train: Bool[np.ndarray, "N"]
    context: Int[np.ndarray, "N K"]  # nearest train spots of each spot, nearest first, never itself
    imputed: Float[np.ndarray, "N G"] | None  # of the separate GAT: expression, at test spots imputed from train spots
    graph: GraphsTuple | None  # of the separate GAT: N nodes without features


def make_section(
    adata: AnnData,
    genes: list[str],
    is_train: np.ndarray,
    features,
    config: Config,
    n_spots: int | None = None,
    scale: Scale | None = None,
) -> SectionData:
    """Turns a section into arrays.

    Args:
      adata: the section; raw counts in ``X``, ``obsm["spatial"]``, array coordinates.
      genes: the panel, G names.
      is_train: (N,) bool.
      features: (N, D) image features as extracted, or None without an image.
      config: its ``data``, ``gat`` and ``faults`` parts decide on panel, neighbours and image transform.
      n_spots: the first so many rows are the section's spots; those after them are new locations, never train spots,
        which change no array at the spots. All are spots if None.
      scale: of expression; by default that of ``config.data.scale`` with these train spots.
    """
    xy = np.asarray(adata.obsm["spatial"], np.float64)
    scale = scale or find_scale(config.data.scale, adata, is_train)
    amounts = np.full((adata.n_obs, len(genes)), np.nan, np.float32)
    amounts[is_train] = scale.amounts(adata[is_train, genes].X.toarray(), total_counts(adata)[is_train])

    k = config.gat.n_neighbours
    near = neighbour_coordinates(adata, config)
    n_pool = config.model.n_context * (N_POOL if config.train.neighbour_dropout else 1)
    in_pitches = ((xy - xy[:n_spots].mean(axis=0)) / spot_pitch(xy[:n_spots])).astype(np.float32)
    return SectionData(
        expression=LOG[scale.name](amounts),
        features=image_features(in_pitches, features, config, n_spots),
        xy=in_pitches,
        is_train=is_train,
        context=context_spots(near, is_train, n_pool, n_spots),
        imputed=None if config.gat.joint else impute_from_train(amounts, near, is_train, k, scale.name),
        graph=None if config.gat.joint else make_graph(*knn_graph(near, k), n_node=len(xy)),
    )


def neighbour_coordinates(adata: AnnData, config: Config) -> np.ndarray:
    """(N, 2) coordinates by which neighbours are found: pixels, or the array's with ``faults.array_neighbours``."""
    if config.faults.array_neighbours:
        return adata.obs[["array_row", "array_col"]].to_numpy(np.float64)
    return np.asarray(adata.obsm["spatial"], np.float64)


def image_features(xy: np.ndarray, features, config: Config, n_spots: int | None = None) -> np.ndarray:
    """Image features as the model takes them: (N, D) float32.

    ``components`` are those of ``image_components``; without an image D is 0.
    ``reference`` gives the ``model.width`` features that the reference insists on: as they are where there are that
    many, else standardised and projected by a fixed Gaussian matrix over √D; zeros without an image.

    Args:
      xy: (N, 2) in units of the spot pitch.
      features: (N, D) as extracted, or None without an image.
      n_spots: of ``make_section``; means, sds and components are those of these spots.
    """
    if config.data.image_transform == "components":
        return image_components(xy, features, config.data.image_components, n_spots)
    width = config.model.width
    if features is None:
        return np.zeros((len(xy), width), np.float32)
    features = np.asarray(features, np.float32)
    if features.shape[1] == width:
        return features
    gaussian = np.random.default_rng(0).standard_normal((features.shape[1], width))
    return (standardised(features, n_spots) @ (gaussian / np.sqrt(features.shape[1]))).astype(np.float32)


def standardised(features: np.ndarray, n_spots: int | None = None) -> np.ndarray:
    """(N, D) features at mean 0 and sd 1 over the first ``n_spots``; divided by 1 where a feature does not vary."""
    features = np.asarray(features, np.float32)
    spots = features[:n_spots]
    sd = spots.std(axis=0)
    return (features - spots.mean(axis=0)) / np.where(sd > 0, sd, 1)


def image_components(xy: np.ndarray, features, n_components: int = 20, n_spots: int | None = None) -> np.ndarray:
    """Principal components of the image around each spot, at three scales.

    Features are standardised, taken at the spot and as Gaussian means over its surroundings (sd of 1 and 2 pitches, all
    spots of the section: an image is there where expression is not), and rotated to principal components, in units of
    the first one's sd.

    Args:
      xy: (N, 2) in units of the spot pitch.
      features: (N, D) as extracted, or None without an image.
      n_spots: the first so many rows are spots; those after them are new locations, of which nothing is fitted or
        averaged, each within 3 pitches of a spot.

    Returns:
      (N, C) float32; C is ``n_components``, or as many as the features have; 0 without an image.
    """
    if features is None:
        return np.zeros((len(xy), 0), np.float32)
    n_spots = len(xy) if n_spots is None else n_spots
    own = _principal_components(features, 4 * n_components, n_spots, standardise=True)  # cheaper to average
    around = [smoothed(xy[:n_spots], own[:n_spots], sd) for sd in IMAGE_SCALES]
    if n_spots < len(xy):
        new = [smoothed(xy[:n_spots], own[:n_spots], sd, at=xy[n_spots:]) for sd in IMAGE_SCALES]
        around = [np.concatenate(both) for both in zip(around, new, strict=True)]
    components = _principal_components(np.concatenate([own, *around], axis=1), n_components, n_spots)
    return components / components[:n_spots, :1].std() if components.size else components


def _principal_components(x, n: int, n_spots: int, standardise: bool = False) -> np.ndarray:
    """The first n of (N, D) rows, of which ``n_spots`` decide; fewer where those do not vary in more directions.

    Rows are read a few at a time: they may be many, and lie on disk.
    """

    def rows(stop):
        return (np.asarray(x[i : min(i + CHUNK, stop)], np.float64) for i in range(0, stop, CHUNK))

    mean = sum(part.sum(axis=0) for part in rows(n_spots)) / n_spots
    sd = np.ones(len(mean))
    if standardise:
        sd = np.sqrt(sum(((part - mean) ** 2).sum(axis=0) for part in rows(n_spots)) / n_spots)
        sd[sd == 0] = 1
    gram = sum(part.T @ part for part in ((part - mean) / sd for part in rows(n_spots)))
    values, vectors = np.linalg.eigh(gram)
    vectors = vectors[:, values > 1e-10 * values.max(initial=0)][:, ::-1][:, :n]
    return np.concatenate([((part - mean) / sd @ vectors).astype(np.float32) for part in rows(len(x))])


def expression_space(expression: Float[np.ndarray, "n G"], n_components: int) -> Space:
    """The space of the first principal components of (n, G) expression, in units of the first one's sd.

    There are at most n - 1; with ``n_components`` 0 it is that of the genes themselves.
    """
    n, n_genes = expression.shape
    if not n_components:
        return Space(np.zeros(n_genes, np.float32), np.ones(n_genes, np.float32))
    mean = expression.mean(axis=0)
    _, size, right = np.linalg.svd(expression - mean, full_matrices=False)
    loadings = right[: max(1, min(n_components, n - 1))] * max(size[0] / np.sqrt(n), 1e-6)
    return Space(mean.astype(np.float32), loadings.astype(np.float32))
