"""What the model has to beat: predictions from the train spots by methods that a day's work would give.

All of them share one interface, ``Baseline``; ``BASELINES`` makes them by name.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol, Self

import numpy as np
from jaxtyping import Float
from scipy.linalg import cho_solve, solve_triangular
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist

from spabit_jax.chunks import sample
from spabit_jax.data.components import ImageComponents, NoImage, expression_space, standardised
from spabit_jax.ensemble.ridge import NeighbourRegression, ridge
from spabit_jax.kriging.process import matern
from spabit_jax.neighbours import nearest, spot_pitch, weighted_mean

N_COMPONENTS = 20  # principal components of expression, where a method works on them
FOLDS = 5  # of the cross-validation that gives a predictive standard deviation
MIN_SD = 1e-3  # of a gene that does not vary over the train spots


class Spots(NamedTuple):
    """Where expression is predicted, and what is known of a spot without measuring it."""

    xy: Float[np.ndarray, "N 2"]  # in units of the spot pitch
    image: Float[np.ndarray, "N D"]  # image features, standardised over the section's spots; D is 0 without an image
    components: Float[np.ndarray, "N C"]  # of ``data.components.ImageComponents``; C is 0 without an image

    def at(self, index) -> Spots:
        """These of the spots."""
        return Spots(*(array[index] for array in self))


def make_spots(xy: np.ndarray, features) -> Spots:
    """All spots of a section.

    Args:
      xy: (N, 2) full-resolution pixels.
      features: (N, D) image features as extracted, or None without an image.
    """
    xy = in_pitches(xy)
    if features is None:
        nothing = NoImage().at(xy)
        return Spots(xy, nothing, nothing)
    return Spots(xy, standardised(features), ImageComponents.fit(xy, features)[1])


def in_pitches(xy: np.ndarray) -> np.ndarray:
    """(N, 2) places around their mean, in units of the spot pitch, as float32."""
    xy = np.asarray(xy, np.float64)
    return ((xy - xy.mean(axis=0)) / spot_pitch(xy)).astype(np.float32)


class Baseline(Protocol):
    """A method: n train spots, m spots to predict, G genes."""

    def fit(self, spots: Spots, expression: Float[np.ndarray, "n G"]) -> Self: ...

    def predict_mean(self, spots: Spots) -> Float[np.ndarray, "m G"]:
        """Of a spot, whatever other spots are asked for."""
        ...

    def predict(self, spots: Spots) -> tuple[Float[np.ndarray, "m G"], Float[np.ndarray, "m G"]]:
        """Mean, as ``predict_mean`` gives it sooner, and standard deviation of a measurement."""
        ...


class CrossValidated(ABC):
    """A method without an uncertainty of its own: it gets the cross-validated RMSE of each gene at train spots.

    That takes as long as five fits, and is found when it is first asked for. ``fit_mean`` is called on copies then: it
    sets new attributes, and leaves what the object was made with as it is.
    """

    @abstractmethod
    def fit_mean(self, spots: Spots, expression) -> Self: ...

    @abstractmethod
    def predict_mean(self, spots: Spots) -> np.ndarray: ...

    def fit(self, spots: Spots, expression) -> Self:
        self.given, self.sd = (spots, expression), None
        return self.fit_mean(spots, expression)

    def rmse(self) -> np.ndarray:
        """(G,) cross-validated."""
        from sklearn.model_selection import KFold

        spots, expression = self.given
        square = np.zeros_like(expression)
        for train, held_out in KFold(min(FOLDS, len(expression)), shuffle=True, random_state=0).split(expression):
            fold = copy.copy(self).fit_mean(spots.at(train), expression[train])
            square[held_out] = (fold.predict_mean(spots.at(held_out)) - expression[held_out]) ** 2
        return np.sqrt(square.mean(axis=0))

    def predict(self, spots: Spots):
        if self.sd is None:
            self.sd = np.maximum(self.rmse(), MIN_SD)
        mean = self.predict_mean(spots)
        return mean, np.broadcast_to(self.sd, mean.shape)


class GeneMean(CrossValidated):
    """The mean of the train spots everywhere."""

    def fit_mean(self, spots, expression):
        self.mean = expression.mean(axis=0)
        return self

    def predict_mean(self, spots):
        return np.tile(self.mean, (len(spots.xy), 1))


class Nearest(CrossValidated):
    """Mean of the k nearest train spots, weighted by 1 / distance ** power."""

    def __init__(self, k: int, power: float = 0):
        self.k, self.power = k, power

    def fit_mean(self, spots, expression):
        self.tree, self.expression = KDTree(spots.xy), expression
        return self

    def predict_mean(self, spots):
        distance, index = nearest(self.tree, spots.xy, self.k)
        return weighted_mean(self.expression, index, np.maximum(distance, 1e-6) ** -self.power)


class Ridge(CrossValidated):
    """Ridge regression on the image features of the spot."""

    def fit_mean(self, spots, expression):
        self.model = ridge().fit(spots.image, expression)
        return self

    def predict_mean(self, spots):
        return self.model.predict(spots.image)


class OnNeighbours(CrossValidated):
    """``ensemble.ridge.NeighbourRegression``: on image components and on the expression of neighbours."""

    def __init__(self, make_regressor: Callable = ridge, with_xy: bool = False):
        self.regression = NeighbourRegression(make_regressor, with_xy)

    def fit_mean(self, spots, expression):
        self.regression = copy.copy(self.regression).fit(spots.xy, spots.components, expression)
        return self

    def predict_mean(self, spots):
        return self.regression.predict(spots.xy, spots.components)


def _forest():
    from sklearn.ensemble import RandomForestRegressor

    return RandomForestRegressor(200, min_samples_leaf=3, max_features=0.33, random_state=0)


class Kriging:
    """A Gaussian process for each principal component of expression: variance × Matern-3/2 + noise.

    It is one over standardised coordinates and, with an image, ``IMAGE_SCALE`` times a few of its principal components
    at variance 1. Its parameters are those of ``likeliest``, of ``MAX_FITTED`` spots where there are more: the cost
    grows with the cube. ``PlainKriging`` has another way for sections where even that is too much.
    """

    N_IMAGE, IMAGE_SCALE, MAX_FITTED = 6, 0.3, 1000

    def __init__(self, with_image: bool):
        self.with_image = with_image

    def inputs(self, spots: Spots) -> np.ndarray:
        """(m, 2 or 8) what distances are taken in."""
        xy = (spots.xy - self.centre) / self.scale
        return np.concatenate([xy, self.IMAGE_SCALE * self.pca.transform(spots.image)], 1) if self.with_image else xy

    def fit(self, spots: Spots, expression) -> Self:
        from sklearn.decomposition import PCA

        self.centre, self.scale = spots.xy.mean(axis=0), np.maximum(spots.xy.std(axis=0), 1e-6)
        if self.with_image:
            n_image = min(self.N_IMAGE, len(spots.image) - 1, spots.image.shape[1])
            self.pca = PCA(n_image, whiten=True, svd_solver="full").fit(spots.image)
        self.space = expression_space(expression, N_COMPONENTS)
        scores = self.space.encode(expression)
        self.sd = np.maximum(scores.std(axis=0), 1e-6)
        freedom = max(1, len(expression) - 1 - scores.shape[1])  # components take up some of what train spots vary
        self.residual = np.sum((expression - self.space.decode(scores)) ** 2, axis=0) / freedom
        self.x, y = self.inputs(spots), (scores / self.sd).astype(float)
        some = sample(spots.xy, self.MAX_FITTED)
        self.variance, self.length, self.noise = likeliest(cdist(self.x[some], self.x[some]), y[some]).T
        self.factors, self.solved = [None] * y.shape[1], np.empty_like(y)
        for columns, correlation in self._correlations(self.x):
            for i in columns:
                noisy = self.variance[i] * correlation + self.noise[i] * np.eye(len(y))
                self.factors[i] = np.linalg.cholesky(noisy)
                self.solved[:, i] = cho_solve((self.factors[i], True), y[:, i])
        return self

    def _correlations(self, x):
        """The components of each length scale, and (m, n) correlations at it of places and train spots."""
        distance = cdist(x, self.x)
        for length in np.unique(self.length):
            yield np.flatnonzero(self.length == length), matern(distance / length)

    def predict_mean(self, spots: Spots):
        mean = np.empty((len(spots.xy), len(self.sd)))
        for columns, correlation in self._correlations(self.inputs(spots)):
            mean[:, columns] = correlation @ self.solved[:, columns]
        return self.space.decode(mean * (self.variance * self.sd))

    def predict(self, spots: Spots):
        variance = np.empty((len(spots.xy), len(self.sd)))
        for columns, correlation in self._correlations(self.inputs(spots)):
            for i in columns:
                white = solve_triangular(self.factors[i], correlation.T, lower=True)
                variance[:, i] = self.variance[i] * (1 - self.variance[i] * np.sum(white**2, axis=0)) + self.noise[i]
        variance = (variance * self.sd**2) @ self.space.loadings**2 + self.residual
        return self.predict_mean(spots), np.maximum(np.sqrt(variance), MIN_SD)


LENGTHS, NOISES = np.geomspace(0.02, 20, 22), np.geomspace(1e-3, 1e3, 61)  # tried; noise in units of the signal


def likeliest(distance, y) -> np.ndarray:
    """Parameters of the highest marginal likelihood: for each of P columns variance, length scale and noise variance.

    One eigendecomposition for each length scale serves all columns, and the variance of the highest likelihood has a
    closed form (Rasmussen and Williams, eq. 2.30), where an optimiser would decompose for every step of every column.

    Args:
      distance: (n, n) of the places.
      y: (n, P) values.

    Returns:
      (P, 3).
    """
    n, lowest, found = len(y), np.full(y.shape[1], np.inf), np.empty((y.shape[1], 3))
    for length in LENGTHS:
        values, vectors = np.linalg.eigh(matern(distance / length))
        shrunk = 1 / (np.maximum(values, 0)[:, None] + NOISES)
        variance = np.maximum(shrunk.T @ (vectors.T @ y) ** 2 / n, 1e-10)  # (L, P)
        loss = n * np.log(variance) - np.log(shrunk).sum(axis=0)[:, None]
        at = loss.argmin(axis=0)[None]
        of_best = np.take_along_axis(variance, at, axis=0)[0]
        better = np.take_along_axis(loss, at, axis=0)[0] < lowest
        lowest = np.minimum(lowest, loss.min(axis=0))
        found[better] = np.stack([of_best, np.full_like(of_best, length), of_best * NOISES[at[0]]], axis=1)[better]
    return found


class LearnedKriging:
    """``kriging.bag``: kernels over space and image, learned; the mean of five processes."""

    def __init__(self, with_image: bool = True):
        self.with_image = with_image

    def fit(self, spots: Spots, expression) -> Self:
        from sklearn.model_selection import KFold

        from spabit_jax.kriging.bag import Bag, fit_bag

        folds = KFold(min(FOLDS, len(expression)), shuffle=True, random_state=0).split(expression)
        known = spots.xy, self._image(spots), expression
        self.bag = Bag(fit_bag(*known, [held_out for _, held_out in folds]), *known)
        return self

    def predict_mean(self, spots: Spots):
        return self.bag.mean_at(spots.xy, self._image(spots))

    def predict(self, spots: Spots):
        mean, variance = self.bag.at(spots.xy, self._image(spots))
        return mean, np.maximum(np.sqrt(variance), MIN_SD)

    def _image(self, spots: Spots) -> np.ndarray:
        return spots.components if self.with_image else spots.components[:, :0]


class PlainKriging:
    """Kriging on places alone: ``Kriging`` without an image; of a section too large for it, ``LearnedKriging`` without.

    The latter predicts each place from its nearest train spots.
    """

    MAX_SPOTS = 1500

    def fit(self, spots: Spots, expression) -> Self:
        self.model = Kriging(False) if len(expression) <= self.MAX_SPOTS else LearnedKriging(False)
        self.model.fit(spots, expression)
        return self

    def predict_mean(self, spots: Spots):
        return self.model.predict_mean(spots)

    def predict(self, spots: Spots):
        return self.model.predict(spots)


class Mean:
    """Mean of several methods, and of their standard deviations: at least as large as that of the mean's error."""

    def __init__(self, *members: Callable[[], Baseline]):
        self.members = [make() for make in members]

    def fit(self, spots: Spots, expression) -> Self:
        for member in self.members:
            member.fit(spots, expression)
        return self

    def predict_mean(self, spots: Spots):
        return np.mean([member.predict_mean(spots) for member in self.members], axis=0)

    def predict(self, spots: Spots):
        mean, sd = zip(*(member.predict(spots) for member in self.members), strict=True)
        return np.mean(mean, axis=0), np.mean(sd, axis=0)


_kriging_image = partial(Kriging, with_image=True)
BASELINES: dict[str, Callable[[], Baseline]] = {
    "gene_mean": GeneMean,
    "knn_mean": partial(Nearest, 6),
    "inverse_distance": partial(Nearest, 12, power=1),
    "ridge": Ridge,
    "ridge_neighbours": OnNeighbours,
    "random_forest": partial(OnNeighbours, _forest, with_xy=True),
    "kriging": PlainKriging,
    "kriging_image_pcs": _kriging_image,
    "ridge_kriging": partial(Mean, Ridge, PlainKriging),
    "mean_of_three": partial(Mean, Ridge, PlainKriging, _kriging_image),
    "kriging_learned": LearnedKriging,
}
NEED_IMAGE = ("ridge", "kriging_image_pcs", "ridge_kriging", "mean_of_three")
