"""Kriging of a whole section: several processes on a small one, each place from its nearest spots on a large one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial import KDTree

from spabit_jax.chunks import filled
from spabit_jax.data.components import Space
from spabit_jax.kriging.process import (
    MIN_NOISE,
    N_COMPONENTS,
    Fitted,
    Params,
    condition,
    covariance,
    decode,
    fit,
    kernels,
    leave_one_out,
    predict,
    predict_mean,
    product,
)

MAX_EXACT = 1500  # train spots of an exact process, whose cost grows with the cube
NEAREST = 32  # train spots that a place is predicted from where there are more
CHUNK = 1024  # places predicted in one call


def fit_bag(xy, image, expression, folds, n_components: int = N_COMPONENTS) -> list[Fitted]:
    """What is learned from n train spots: once for each fold, without it; with more than ``MAX_EXACT``, once from all.

    Args:
      xy: (n, 2) in units of the spot pitch.
      image: (n, D) image components; D is 0 without an image.
      expression: (n, G), on any scale.
      folds: indices into the n spots, which they part; each has spots outside it.
      n_components: of expression.

    Raises:
      Diverged: parameters are not finite.
    """
    if len(xy) > MAX_EXACT:
        return [fit(xy, image, expression, n_components)]
    n_fit = len(xy) - max(len(fold) for fold in folds)  # the same for all: one compilation
    outside = [np.setdiff1d(np.arange(len(xy)), fold)[:n_fit] for fold in folds]
    return [fit(xy[spots], image[spots], expression[spots], n_components) for spots in outside]


def pack(fitted: list[Fitted]) -> dict[str, np.ndarray]:
    """For a file: F fits → arrays with F first."""
    parts = [{**f.params._asdict(), **f.space._asdict(), "residual": f.residual} for f in fitted]
    return {name: np.stack([part[name] for part in parts]) for name in parts[0]}


def unpack(packed: dict[str, np.ndarray]) -> list[Fitted]:
    """The fits that were packed."""
    parts = [dict(zip(packed, values, strict=True)) for values in zip(*packed.values(), strict=True)]
    made = [[kind(*(part[name] for name in kind._fields)) for kind in (Params, Space)] for part in parts]
    return [Fitted(*pair, part["residual"]) for pair, part in zip(made, parts, strict=True)]


class Bag:
    """Kriging from n train spots, with what ``fit_bag`` learned from them.

    Up to ``MAX_EXACT`` of them it is the mean of the folds' processes, all given all spots: better than one process
    fitted to all, on small sections above all. Beyond that it is one process, and each place is predicted from its
    ``NEAREST`` spots (Vecchia, 1988): the cost is linear.

    Args:
      fitted: of ``fit_bag``.
      xy, image, expression: the spots, as there.
    """

    def __init__(self, fitted: list[Fitted], xy, image, expression):
        self.xy, self.image, self.expression = (np.asarray(a, np.float32) for a in (xy, image, expression))
        self.exact = len(xy) <= MAX_EXACT
        if self.exact:
            # one after the other: on a CPU batches of Cholesky factors may wait for each other forever
            known = self.xy, self.image, self.expression
            self.processes = [jax.block_until_ready(condition(f, *known)) for f in fitted]
        else:
            (self.fitted,) = fitted
            self.scores = self.fitted.space.encode(self.expression)
            self.order = np.lexsort(self.xy.T)  # ties among the nearest do not depend on the order of spots
            self.tree = KDTree(self.xy[self.order])

    def at(self, xy, image) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of a measurement, (m, G) each, at (m, 2) places with (m, D) image components."""
        xy, image = np.asarray(xy, np.float32), np.asarray(image, np.float32)
        if self.exact:
            return _in_chunks(self._exact, xy, image)
        return self._from(self.order[self.tree.query(xy, k=NEAREST)[1]], xy, image)

    def mean_at(self, xy, image) -> np.ndarray:
        """The mean of ``at``, (m, G): sooner, as exact variances take the most time."""
        if not self.exact:
            return self.at(xy, image)[0]

        def mean(xy, image):
            return [np.mean([predict_mean(process, xy, image) for process in self.processes], axis=0)]

        return _in_chunks(mean, np.asarray(xy, np.float32), np.asarray(image, np.float32))[0]

    def left_out(self, folds) -> tuple[np.ndarray, np.ndarray]:
        """As ``at``, at each train spot from the others, by the process with components and parameters not from it.

        With more than ``MAX_EXACT`` spots there is one process, fitted to very many, of which the spot may be one.

        Args:
          folds: of ``fit_bag``.
        """
        if not self.exact:
            nearest = self.order[self.tree.query(self.xy, k=NEAREST + 1)[1]]
            keep = nearest != np.arange(len(nearest))[:, None]
            keep[keep.all(axis=1), -1] = False  # more spots at one place: itself may not be among those found
            return self._from(nearest[keep].reshape(-1, NEAREST), self.xy, self.image)
        mean, variance = np.empty((2, *self.expression.shape), np.float32)
        for fold, process in zip(folds, self.processes, strict=True):
            mean[fold], variance[fold] = (np.asarray(values)[fold] for values in leave_one_out(process))
        return mean, variance

    def _exact(self, xy, image):
        found = [jax.block_until_ready(predict(process, xy, image)) for process in self.processes]
        means, variances = np.stack(found, axis=1)
        return means.mean(axis=0), variances.mean(axis=0) + means.var(axis=0)

    def _from(self, nearest, xy, image):
        known = self.xy, self.image, self.scores
        return _in_chunks(lambda *at: predict_from_nearest(self.fitted, known, *at), nearest, xy, image)


def _in_chunks(function, *arrays):
    """``function`` of the same rows of each array, ``CHUNK`` at a time; the last chunk repeats its last row."""
    n = len(arrays[0])
    results = None
    for rows, batch in filled(n, min(n, CHUNK)):
        found = function(*(array[batch] for array in arrays))
        results = results or tuple(np.empty((n, *values.shape[1:]), values.dtype) for values in found)
        for whole, values in zip(results, found, strict=True):
            whole[rows] = np.asarray(values)[: rows.stop - rows.start]
    return results


@jax.jit
def predict_from_nearest(fitted: Fitted, known, nearest, xy, image):
    """As ``predict``, each place from K known spots of its own: the cost is linear in places and in known spots.

    Args:
      known: xy (n, 2), image (n, D) and scores (n, P) of known spots.
      nearest: (m, K) indices into them.
      xy, image: (m, 2), (m, D) of the places.
    """
    amplitude = jnp.exp(fitted.params.variance)

    def at(nearest, xy, image):
        around_xy, around_image, scores = (array[nearest] for array in known)
        factor = jnp.linalg.cholesky(covariance(fitted.params, around_xy, around_image))
        cross = kernels(fitted.params, xy[None], image[None], around_xy, around_image)[:, 0]
        own = kernels(fitted.params, xy[None], image[None], xy[None], image[None])[:, 0, 0]
        right = jnp.stack([product("pk,kj->pj", amplitude, cross), scores.T], axis=-1)
        white = jax.scipy.linalg.solve_triangular(factor, right, lower=True)  # (P, K, 2)
        return jnp.sum(white[..., 0] * white[..., 1], axis=1), amplitude @ own - jnp.sum(white[..., 0] ** 2, axis=1)

    mean, variance = jax.vmap(at)(nearest, xy, image)
    return decode(fitted, mean, variance + jnp.exp(fitted.params.noise) + MIN_NOISE)
