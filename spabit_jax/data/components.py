"""Expression and image as models see them: principal components, fitted once and applied anywhere."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float

from spabit_jax.chunks import slices
from spabit_jax.neighbours import smoothed

N_COMPONENTS = 20  # of the image, for methods to compare with
IMAGE_SCALES = (1.0, 2.0)  # sd of the Gaussian means of image features around a place, in pitches
USUAL = 5  # axes that a gene is taken to have as much along as others, before it is known
CHUNK = 16384  # rows of image features that are held in memory at a time


class Space(NamedTuple):
    """What a model predicts in: expression = mean + scores @ loadings; P scores."""

    mean: Float[np.ndarray, " G"]
    loadings: Float[np.ndarray, "P G"] | Float[np.ndarray, " G"]  # orthogonal rows; (G,) where scores are genes

    def encode(self, expression):
        """(..., G) → (..., P)."""
        centred = expression - self.mean
        if self.loadings.ndim == 1:
            return centred / self.loadings
        return centred @ (self.loadings / (self.loadings**2).sum(axis=1, keepdims=True)).T

    def decode(self, scores):
        """(..., P) → (..., G)."""
        return self.mean + (scores * self.loadings if self.loadings.ndim == 1 else scores @ self.loadings)


def expression_space(expression: Float[np.ndarray, "n G"], n_components: int) -> Space:
    """The space of the first principal components of (n, G) expression, in units of the first one's sd.

    There are at most n - 1; with ``n_components`` 0 it is that of the genes themselves.
    """
    n, n_genes = expression.shape
    if not n_components:
        return Space(np.zeros(n_genes, np.float32), np.ones(n_genes, np.float32))
    from sklearn.utils.extmath import svd_flip

    mean = expression.mean(axis=0)
    centred = expression - mean
    if n > n_genes:  # from the covariance: ten times as fast, and as exact, in double precision
        square, vectors = np.linalg.eigh(centred.T @ centred.astype(np.float64))
        size, right = np.sqrt(np.maximum(square[::-1], 0)), vectors.T[::-1]
    else:
        _, size, right = np.linalg.svd(centred, full_matrices=False)
    _, right = svd_flip(None, right, u_based_decision=False)  # signs would differ from one LAPACK to the next
    loadings = right[: max(1, min(n_components, n - 1))] * max(size[0] / np.sqrt(n), 1e-6)
    return Space(mean.astype(np.float32), loadings.astype(np.float32))


def shrunk(
    loadings: Float[np.ndarray, "P G"], mean: Float[np.ndarray, " G"], chance: Float[np.ndarray, " G"]
) -> Float[np.ndarray, "P G"]:
    """Loadings of G genes on P components, less what is chance in them: an empirical Bayes estimate.

    What genes share, a line in their mean expression, stays: there are many genes to tell it by, and depth moves all of
    them. What a gene has of its own is kept, along each principal axis of it, by the share that chance does not explain
    (Efron and Morris, 1973, J. Am. Stat. Assoc. 68, 117), more of a gene that has more along all of them.

    Args:
      loadings: of components with variance 1 over the spots.
      mean: expression of each gene.
      chance: variance of each gene's loadings about the true ones; 0 where a gene does not vary.
    """
    of_mean = np.stack([np.ones_like(mean), mean], axis=1)
    shared = (of_mean @ np.linalg.lstsq(of_mean, loadings.T)[0]).T
    own = loadings - shared
    size, axes = np.linalg.eigh(own @ own.T / own.shape[1])
    size, along = np.maximum(size, 1e-12)[:, None], axes.T @ own
    of_gene = (USUAL + np.sum(along**2 / size, axis=0)) / (USUAL + len(size))  # (G,) how much it has, over the mean
    true = of_gene * np.maximum(size - chance.mean(), 0)
    kept = np.where(chance > 0, true / np.maximum(true + chance, 1e-12), 1)
    return (shared + axes @ (along * kept)).astype(np.float32)


class ImageModel(Protocol):
    """The image as a model takes it, at any place."""

    def at(self, xy: np.ndarray, features) -> Float[np.ndarray, "n C"]:
        """Of (n, 2) places in pitches with (n, D) image features as extracted, or None without an image."""
        ...


class NoImage(NamedTuple):
    """Without an image: zeros of a width."""

    width: int = 0

    def at(self, xy: np.ndarray, features=None) -> np.ndarray:
        return np.zeros((len(xy), self.width), np.float32)


class Projection(NamedTuple):
    """Principal components: (x - mean) / sd @ vectors."""

    mean: np.ndarray  # (D,)
    sd: np.ndarray  # (D,)
    vectors: np.ndarray  # (D, C)

    @classmethod
    def fit(cls, x, n: int, standardise: bool = False) -> Projection:
        """The first n components of (N, D) rows; fewer where those do not vary in more directions.

        Rows are read a few at a time: they may be many, and lie on disk.
        """
        mean = sum(part.sum(axis=0) for part in _rows(x)) / len(x)
        sd = np.ones(len(mean))
        if standardise:
            sd = np.sqrt(sum(((part - mean) ** 2).sum(axis=0) for part in _rows(x)) / len(x))
            sd[sd == 0] = 1
        gram = sum(part.T @ part for part in ((part - mean) / sd for part in _rows(x)))
        values, vectors = np.linalg.eigh(gram)
        vectors = vectors[:, values > 1e-10 * values.max(initial=0)][:, ::-1][:, :n]
        if vectors.size:  # signs would differ from one LAPACK to the next
            largest = np.abs(vectors).argmax(axis=0)
            vectors *= np.sign(vectors[largest, np.arange(vectors.shape[1])])
        return cls(mean, sd, vectors)

    def of(self, x) -> Float[np.ndarray, "N C"]:
        return np.concatenate([((part - self.mean) / self.sd @ self.vectors).astype(np.float32) for part in _rows(x)])


def _rows(x):
    return (np.asarray(x[rows], np.float64) for rows in slices(max(len(x), 1), CHUNK))


class ImageComponents(NamedTuple):
    """Principal components of the image around a place, at three scales.

    Features are standardised, taken at the place and as Gaussian means over its surroundings (sd of 1 and 2 pitches,
    all spots of the section: an image is there where expression is not), and rotated to principal components, in units
    of the first one's sd. Everything is fitted to, and averaged over, the section's spots: what is asked for elsewhere
    changes nothing.
    """

    own: Projection  # of the features at a place
    around: Projection  # of these and of their means
    xy: np.ndarray  # (N, 2) the spots, in pitches
    spots: np.ndarray  # (N, A) what ``own`` gives there
    unit: np.ndarray  # sd of the first component

    @classmethod
    def fit(cls, xy: np.ndarray, features, n_components: int = N_COMPONENTS) -> tuple[ImageComponents, np.ndarray]:
        """Of the N spots of a section: how they are taken at any place, and (N, C) what they are at the spots.

        Args:
          xy: (N, 2) in units of the spot pitch.
          features: (N, D) as extracted.
          n_components: fewer where the features vary in fewer directions.
        """
        own = Projection.fit(features, 4 * n_components, standardise=True)  # cheaper to average than all features
        spots = own.of(features)
        seen = np.concatenate([spots, *(smoothed(xy, spots, sd) for sd in IMAGE_SCALES)], axis=1)
        around = Projection.fit(seen, n_components)
        components = around.of(seen)
        unit = components[:, :1].std() if components.size else np.float32(1)
        return cls(own, around, xy, spots, unit), components / unit

    def at(self, xy: np.ndarray, features) -> Float[np.ndarray, "n C"]:
        """At (n, 2) places, each within 3 pitches of a spot, with (n, D) features."""
        own = self.own.of(features)
        means = (smoothed(self.xy, self.spots, sd, at=xy) for sd in IMAGE_SCALES)
        return self.around.of(np.concatenate([own, *means], axis=1)) / self.unit


class ReferenceFeatures(NamedTuple):
    """The features that the reference insists on: standardised, projected to a width by a fixed Gaussian matrix / √D.

    Those that have the width already stay as they are.
    """

    mean: np.ndarray  # (D,) over the section's spots
    sd: np.ndarray  # (D,)
    width: int

    @classmethod
    def fit(cls, features, width: int) -> ReferenceFeatures:
        return cls(*_mean_and_sd(features), width)

    def at(self, xy: np.ndarray, features) -> Float[np.ndarray, "n C"]:
        features = np.asarray(features, np.float32)
        n_features = features.shape[1]
        if n_features == self.width:
            return features
        gaussian = np.random.default_rng(0).standard_normal((n_features, self.width))
        return ((features - self.mean) / self.sd @ (gaussian / np.sqrt(n_features))).astype(np.float32)


def standardised(features: np.ndarray, by: np.ndarray | None = None) -> np.ndarray:
    """(N, D) features at mean 0 and sd 1, over themselves or over others ``by``; divided by 1 where one is constant."""
    mean, sd = _mean_and_sd(features if by is None else by)
    return (np.asarray(features, np.float32) - mean) / sd


def _mean_and_sd(features) -> tuple[np.ndarray, np.ndarray]:
    features = np.asarray(features, np.float32)
    varies = np.ptp(features, axis=0) > 0  # the sd of a constant is rounding, not 0
    return features.mean(axis=0), np.where(varies, features.std(axis=0), 1)
