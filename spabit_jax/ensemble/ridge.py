"""Regression on the image of a place and on the expression of its neighbours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.spatial import KDTree

from spabit_jax.chunks import slices
from spabit_jax.data.components import expression_space
from spabit_jax.neighbours import nearest, weighted_mean

N_COMPONENTS = 20  # principal components of expression
ALPHAS = np.logspace(-1, 5, 25)  # penalties of ridge regression, chosen among by leave-one-out
GAUSSIAN = 2.0  # sd of the widest mean over neighbours, in distances of a place to its nearest train spot
CHUNK = 16384  # places at a time, where scikit-learn's float64 would make (places, genes) twice as large


def ridge():
    """scikit-learn's ridge regression, its penalty chosen by leave-one-out."""
    from sklearn.linear_model import RidgeCV

    return RidgeCV(ALPHAS)


class NeighbourRegression:
    """A scikit-learn regressor on image components and on the expression of neighbours.

    The latter are principal components of expression, as means over the 4 and the 12 nearest train spots and as a
    Gaussian mean over 24; a train spot is never its own neighbour, so that train and test inputs are alike.

    Args:
      make_regressor: makes a regressor with ``fit`` and ``predict``.
      with_xy: whether it is given the place too.
    """

    def __init__(self, make_regressor: Callable = ridge, with_xy: bool = False):
        self.make_regressor, self.with_xy = make_regressor, with_xy

    def fit(self, xy, image, expression):
        """Learns from n train spots: (n, 2) places in pitches, (n, C) image components, (n, G) expression."""
        self.space = expression_space(expression, N_COMPONENTS)
        self.look_at(xy, expression)
        target = self.scores.squeeze()  # scikit-learn wants one component as a vector
        self.regressor = self.make_regressor().fit(self._inputs(xy, image, at_train=True), target)
        return self

    def look_at(self, xy, expression) -> None:
        """Makes these the train spots among which neighbours are found."""
        self.tree, self.scores = KDTree(xy), self.space.encode(expression)

    def predict(self, xy, image, at_train: bool = False) -> np.ndarray:
        """Expression at m places, (m, G); ``at_train`` where these are the train spots that it looks at."""
        x = self._inputs(xy, image, at_train)
        mean = np.empty((len(x), len(self.space.mean)), self.space.mean.dtype)
        for rows in slices(len(x), CHUNK):
            scores = self.regressor.predict(x[rows])
            mean[rows] = self.space.decode(scores.reshape(len(scores), -1))
        return mean

    def _inputs(self, xy, image, at_train: bool) -> np.ndarray:
        parts = [image, *([xy] if self.with_xy else [])]
        for k in (4, 12):
            distance, index = nearest(self.tree, xy, k, at_train)
            parts.append(weighted_mean(self.scores, index, np.ones_like(distance)))
        distance, index = nearest(self.tree, xy, 24, at_train)
        scale = GAUSSIAN * np.maximum(distance[:, :1], 1e-6)
        parts.append(weighted_mean(self.scores, index, np.exp(-0.5 * (distance / scale) ** 2)))
        return np.concatenate(parts, axis=1)
