"""Kriging without fitting: Gaussian processes whose parameters were drawn once, and which of them a section supports.

Nothing is optimised on a section. Each process of a bank is solved exactly, and its marginal likelihood says how far to
believe it: the mean over the processes, weighted by it, is Bayesian model averaging over a discrete prior (Hoeting et
al., Bayesian model averaging: a tutorial, 1999). All scores of a section share the solutions of a process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.linalg import lapack
from scipy.spatial import KDTree
from scipy.special import logsumexp
from threadpoolctl import threadpool_limits

from spabit_jax.chunks import slices
from spabit_jax.errors import Diverged
from spabit_jax.kriging.process import MIN_NOISE, Params, kernels, product
from spabit_jax.neighbours import nearest

N_PROCESSES = 64
MAX_EXACT = 1500  # known spots of exact processes, whose cost grows with the cube
N_WEIGHED = 1000  # of which the weights are found where there are more
NEAREST = 32  # known spots that a place is predicted from where there are more
CHUNK = 4096  # places at a time
NEGLIGIBLE = 1e-2  # weight below which a process is left out
# Medians of the prior, spatial scales in pitches, image scales in sd of the first image component; sd of the logs
LONG, SHORT, IMAGE, PRODUCT_SPACE, PRODUCT_IMAGE, SCALE_SD, VARIANCE_SD = 10.0, 2.0, 2.0, 6.0, 1.3, 0.5, 1.0
LINEAR = 6.0  # on the variance of the linear kernel: image components become ever smaller, and it is over their number
NOISE = (1.2, 0.8)  # of the beta distribution of noise's share of a score's variance


class Bank(NamedTuple):
    """S processes; variances are shares of a score's variance."""

    space: Float[np.ndarray, "S 2"]  # length scales: long and short
    image: Float[np.ndarray, " S"]  # length scale of image components
    product: Float[np.ndarray, "S 2"]  # length scales of the product kernel: in space, and a factor on ``image``
    variance: Float[np.ndarray, "S 5"]  # of the kernels of ``process.kernels``
    noise: Float[np.ndarray, " S"]

    def at(self, index) -> Bank:
        """These of the processes."""
        return Bank(*(np.asarray(field)[index] for field in self))


def draw_bank(rng: np.random.Generator, n: int = N_PROCESSES, noise=None) -> Bank:
    """Processes from the prior; ``noise`` gives its shares, (n,), in place of drawn ones."""

    def scales(*medians):
        return np.exp(rng.normal(np.log(medians), SCALE_SD, (n, len(medians))))

    space, image, both = scales(LONG, SHORT), scales(IMAGE)[:, 0], scales(PRODUCT_SPACE, PRODUCT_IMAGE)
    share = np.exp(rng.normal(0, VARIANCE_SD, (n, 5)))
    noise = rng.beta(*NOISE, n) if noise is None else noise
    variance = share / share.sum(axis=1, keepdims=True) * (1 - noise[:, None]) * [1, 1, 1, LINEAR, 1]
    return Bank(*(np.asarray(a, np.float32) for a in (space, image, both, variance, noise + MIN_NOISE)))


def without_image(bank: Bank) -> Bank:
    """For a section without an image: what kernels of the image explain goes to the spatial ones."""
    in_space = bank.variance * np.array([1, 1, 0, 0, 0], np.float32)
    share = (1 + MIN_NOISE - bank.noise) / in_space.sum(axis=1)
    return bank._replace(variance=in_space * share[:, None])


@jax.jit
def covariance(process: Bank, xy_a, image_a, xy_b, image_b) -> Float[jax.Array, "A B"]:
    """Of what one process of a bank predicts at A and B places, noise aside."""
    image = jnp.broadcast_to(jnp.log(process.image), image_a.shape[1:])
    params = Params(jnp.log(process.space), image, jnp.log(process.product), None, None)
    found = kernels(params, xy_a, image_a, xy_b, image_b)
    return product("k,kij->ij", process.variance[: len(found)], found)


class Answers(NamedTuple):
    """What the S processes of a bank say of P scores at m places."""

    mean: Float[np.ndarray, "S m P"]
    variance: Float[np.ndarray, "S m"]  # of a score, noise aside
    log_weight: Float[np.ndarray, "S P"]  # of each process for each score; weights sum to 1

    def mixed(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance, (m, P) each, of their mixture."""
        weight = np.exp(self.log_weight)[:, None]
        mean = np.sum(weight * self.mean, axis=0)
        return mean, np.sum(weight * (self.variance[..., None] + (self.mean - mean) ** 2), axis=0)


class Solved:
    """The processes of a bank given n known spots: those that the spots support.

    Up to ``MAX_EXACT`` spots each process is solved exactly. Of more, ``N_WEIGHED`` give the weights, and a place is
    predicted from its ``NEAREST`` (Vecchia, 1988): the cost is linear in spots and in places.

    Args:
      bank: S processes.
      xy: (n, 2) in pitches.
      image: (n, C) image components; C is 0 without an image.
      noise: (n,) variance of the spots' noise, relative to that of a common spot.
      scores: (n, P) at mean 0 and variance 1.
      prune: leave out processes of negligible weight.
    """

    def __init__(self, bank: Bank, xy, image, noise, scores, prune: bool = True):
        self.xy, self.image, self.noise, self.scores = (np.asarray(a, np.float32) for a in (xy, image, noise, scores))
        n = len(self.xy)
        self.exact = n <= MAX_EXACT
        some = np.arange(n) if self.exact else np.sort(np.random.default_rng(0).permutation(n)[:N_WEIGHED])
        factors, likelihood = [], []
        with threadpool_limits(1, "blas"):  # matrices this small are slower on several threads
            for i in range(len(bank.noise)):
                factor = self._factor(bank.at(i), some)
                white, _ = lapack.strtrs(factor, self.scores[some], lower=1)
                likelihood.append(-0.5 * np.sum(white**2, axis=0) - np.log(np.diagonal(factor)).sum())
                factors.append(factor if self.exact else None)
        log_weight = np.array(likelihood) - logsumexp(likelihood, axis=0)
        kept = np.flatnonzero((log_weight > (np.log(NEGLIGIBLE) if prune else -np.inf)).any(axis=1))
        self.bank, self.factors = bank.at(kept), [factors[i] for i in kept]
        self.log_weight = log_weight[kept] - logsumexp(log_weight[kept], axis=0)
        if self.exact:
            self.solved = [lapack.spotrs(factor, self.scores, lower=1)[0] for factor in self.factors]
        else:
            self.order = np.lexsort(self.xy.T)  # ties among the nearest do not depend on the order of spots
            self.tree = KDTree(self.xy[self.order])

    def _factor(self, process: Bank, spots) -> np.ndarray:
        """Lower Cholesky factor of the covariance of noisy scores."""
        xy, image = self.xy[spots], self.image[spots]
        noisy = np.array(covariance(process, xy, image, xy, image))
        noisy[np.diag_indices(len(xy))] += process.noise * self.noise[spots]
        factor, failed = lapack.spotrf(noisy, lower=1, clean=1)
        if failed:
            raise Diverged("kriging: a covariance is not positive definite: leave out spots that lie on each other")
        return factor

    def at(self, xy, image) -> Answers:
        """At (m, 2) places with (m, C) image components."""
        xy, image = np.asarray(xy, np.float32), np.asarray(image, np.float32)
        if not self.exact:
            return self._from(self.order[self.tree.query(xy, k=NEAREST)[1]], xy, image)
        mean = np.empty((len(self.factors), len(xy), self.scores.shape[1]), np.float32)
        variance = np.empty(mean.shape[:2], np.float32)
        for i, (factor, solved) in enumerate(zip(self.factors, self.solved, strict=True)):
            process = self.bank.at(i)
            for rows in slices(len(xy), CHUNK):
                cross = np.asarray(covariance(process, self.xy, self.image, xy[rows], image[rows]))
                white, _ = lapack.strtrs(factor, cross, lower=1)
                mean[i, rows] = cross.T @ solved
                variance[i, rows] = prior_variance(process, image[rows]) - np.sum(white**2, axis=0)
        return Answers(mean, variance, self.log_weight)

    def left_out(self) -> Answers:
        """At the known spots, each from all others (Rasmussen and Williams, 2006, eq. 5.12)."""
        (answers,) = self.left_out_in([(np.arange(0), self.scores)])
        return answers

    def left_out_in(self, folds: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Answers]:
        """As ``left_out``, at the spots of each fold, with weights from the spots outside it.

        Args:
          folds: of each its f spots (none: answers at all, weights from all), and (n, P) scores of all n.
        """
        if not self.exact:
            near = np.empty((len(self.xy), NEAREST), int)
            near[self.order] = self.order[nearest(self.tree, self.xy[self.order], NEAREST, leave_self_out=True)[1]]
            return [self._from(near[at], self.xy[at], self.image[at], scores)
                    for fold, scores in folds for at in [fold if len(fold) else slice(None)]]  # fmt: skip
        found = [([], [], []) for _ in folds]
        for factor, noise in zip(self.factors, self.bank.noise, strict=True):
            inverse, _ = lapack.spotri(factor, lower=1)
            inverse = np.tril(inverse) + np.tril(inverse, -1).T
            log_det, of_one = 2 * np.log(np.diagonal(factor)).sum(), 1 / np.diagonal(inverse)
            for (fold, scores), (mean, variance, likelihood) in zip(folds, found, strict=True):
                solved, at = inverse @ scores, fold if len(fold) else slice(None)
                mean.append((scores - solved * of_one[:, None])[at])
                variance.append((of_one - noise * self.noise)[at])
                likelihood.append(-0.5 * np.sum(scores * solved, axis=0) - 0.5 * log_det)
                if len(fold):  # minus that of the fold given the others: its precision is a block of the inverse
                    block = np.linalg.cholesky(inverse[np.ix_(fold, fold)])
                    white = np.linalg.solve(block, solved[fold])
                    likelihood[-1] += 0.5 * np.sum(white**2, axis=0) - np.log(np.diagonal(block)).sum()
        return [Answers(np.stack(mean), np.stack(variance), likelihood - logsumexp(likelihood, axis=0))
                for mean, variance, likelihood in found]  # fmt: skip

    def _from(self, near, xy, image, scores=None) -> Answers:
        scores = self.scores if scores is None else scores
        mean = np.empty((len(self.bank.noise), len(xy), scores.shape[1]), np.float32)
        variance = np.empty(mean.shape[:2], np.float32)
        for rows in slices(len(xy), CHUNK):
            filled = np.minimum(np.arange(rows.start, rows.start + min(len(xy), CHUNK)), len(xy) - 1)
            known = self.xy, self.image, self.noise, scores
            size = rows.stop - rows.start
            for i in range(len(mean)):
                found = _from_nearest(self.bank.at(i), known, near[filled], xy[filled], image[filled])
                mean[i, rows], variance[i, rows] = (np.asarray(a)[:size] for a in jax.block_until_ready(found))
        return Answers(mean, variance, self.log_weight)


def prior_variance(process: Bank, image) -> np.ndarray:
    """(m,) of a score at places with (m, C) image components, before anything is known."""
    variance = np.full(len(image), process.variance[[0, 1]].sum(), np.float32)
    if image.shape[1]:
        linear = np.sum((image / process.image) ** 2, axis=1) * 4 / image.shape[1]  # as in ``process.kernels``
        variance += process.variance[[2, 4]].sum() + process.variance[3] * linear
    return variance


@jax.jit
def _from_nearest(process: Bank, known, near, xy, image):
    """Means (m, P) and variances (m,) at m places, each from K known spots of its own, (m, K)."""

    def at(near, xy, image):
        around_xy, around_image, noise, scores = (array[near] for array in known)
        noisy = covariance(process, around_xy, around_image, around_xy, around_image) + jnp.diag(process.noise * noise)
        cross = covariance(process, around_xy, around_image, xy[None], image[None])
        right = jnp.concatenate([cross, scores], axis=1)
        white = jax.scipy.linalg.solve_triangular(jnp.linalg.cholesky(noisy), right, lower=True)
        own = covariance(process, xy[None], image[None], xy[None], image[None])[0, 0]
        return white[:, 0] @ white[:, 1:], own - jnp.sum(white[:, 0] ** 2)

    return jax.vmap(at)(near, xy, image)
