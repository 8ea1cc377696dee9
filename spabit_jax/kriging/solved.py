"""The processes of a bank given known spots: which of them the spots support, and what they say at places."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.linalg import lapack
from scipy.spatial import KDTree
from scipy.special import logsumexp
from threadpoolctl import threadpool_limits

from spabit_jax.chunks import filled, sample, slices
from spabit_jax.errors import Diverged
from spabit_jax.kriging.bank import N_IMAGE, Bank, Inputs, Pairs, covariance, pairs, themselves
from spabit_jax.kriging.process import distances

N_WEIGHED = 1000  # known spots by which processes are left out where there are more
NEAREST = 32  # known spots that a place is predicted from where processes are not exact
CHUNK, BLOCK = 512, 2**16  # places at a time; and pairs
NEGLIGIBLE = 1e-2  # weight below which a process is left out

_covariance = jax.jit(covariance)


class Blocks:
    """What processes need to know of A places, ``a``, and B others, ``b``, in blocks of ``BLOCK`` pairs.

    XLA compiles a program for each size of an array: of one size it takes a quarter of NumPy's time. Where there are
    fewer pairs than a quarter of a block NumPy is as fast.
    """

    def __init__(self, a: Inputs, b: Inputs):
        self.pairs, self.blocks = pairs(a, b), []
        self.shape, n = self.pairs.space.shape, self.pairs.space.size
        if n > BLOCK // 4:
            for some in slices(n, BLOCK):
                whole = (0, BLOCK - (some.stop - some.start))
                block = (None if pair is None else np.pad(pair.ravel()[some], whole) for pair in self.pairs)
                self.blocks.append(jax.device_put(Pairs(*block)))
            self.pairs = None

    def covariance(self, process: Bank) -> Float[np.ndarray, "A B"]:
        """As ``bank.covariance``."""
        if not self.blocks:
            return covariance(process, self.pairs)
        found = np.empty((len(self.blocks), BLOCK), np.float32)
        started = [_covariance(process, block) for block in self.blocks]  # all, before the first is waited for
        for row, block in zip(found, started, strict=True):
            row[:] = block
        return found.ravel()[: self.shape[0] * self.shape[1]].reshape(self.shape)


def _blas(n: int):
    """Matrices of few rows are slower on several threads, and ten times as slow where others use the machine too."""
    return threadpool_limits(1 if n <= N_WEIGHED else None, "blas")


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

    Each is solved exactly, of more than ``N_WEIGHED`` spots only those that so many of them support; the cost grows
    with the cube of n. Or so many give the weights, and a place is predicted from its ``NEAREST`` (Vecchia, 1988), by
    the first image components alone: the cost is linear in spots and in places.

    Args:
      bank: S processes.
      spots: n of them.
      noise: (n,) variance of the spots' noise, relative to that of a common spot.
      scores: (n, P) at mean 0 and variance 1.
      exact: which of the two.
      prune: leave out processes of negligible weight.

    Attributes:
      bank: the processes that are not left out.
      evidence: (P,) log density of each score under the bank, up to a constant.
    """

    def __init__(self, bank: Bank, spots: Inputs, noise, scores, exact: bool = True, prune: bool = True):
        self.spots, (self.noise, self.scores) = spots, (np.asarray(a, np.float32) for a in (noise, scores))
        self.exact, n = exact, len(self.noise)
        if not exact:
            self.spots = spots._replace(image=spots.image[:, :N_IMAGE])
        self.bank, least = bank, np.log(NEGLIGIBLE) if prune else -np.inf
        some = sample(spots.xy, N_WEIGHED)
        if exact and len(some) < n:
            self._weigh(some, 2 * least)  # all spots know better: what is left to them is the square
            some = np.arange(n)
        found = self._weigh(some, least)
        if exact:
            with _blas(n):  # a product with a factor's inverse is here as exact as solving, and twice as fast
                self.solved = [(lapack.strtri(factor, lower=1)[0], white) for factor, white in found]
        else:
            self.order = np.lexsort(self.spots.xy.T)  # ties among the nearest do not depend on the order of spots
            self.tree = KDTree(self.spots.xy[self.order])

    def _weigh(self, some: np.ndarray, least: float) -> list[tuple[np.ndarray, np.ndarray]]:
        """Sets evidence and weights, those of some spots, and leaves out processes of less than the log weight.

        Returns:
          Cholesky factor and whitened scores for each process that is left.
        """
        of_spots, scores = Blocks(self.spots.at(some), self.spots.at(some)), self.scores[some]
        found, likelihood = {}, []
        with _blas(len(some)):
            for i in range(len(self.bank.noise)):
                factor = self._factor(self.bank.at(i), of_spots, self.noise[some])
                white, _ = lapack.strtrs(factor, scores, lower=1)
                likelihood.append(-0.5 * np.sum(white**2, axis=0) - np.log(np.diagonal(factor)).sum())
                found[i], best = (factor, white), np.max(likelihood, axis=0)
                found = {j: found[j] for j in found if (likelihood[j] - best > least).any()}  # others only lose
        self.evidence = logsumexp(likelihood, axis=0)
        log_weight = np.array(likelihood) - self.evidence
        kept = np.flatnonzero((log_weight > least).any(axis=1))
        self.bank = self.bank.at(kept)
        self.log_weight = log_weight[kept] - logsumexp(log_weight[kept], axis=0)
        return [found[i] for i in kept]

    @staticmethod
    def _factor(process: Bank, of_spots: Blocks, noise) -> np.ndarray:
        """Lower Cholesky factor of the covariance of noisy scores."""
        noisy = of_spots.covariance(process)
        noisy[np.diag_indices(len(noise))] += process.noise * noise
        factor, failed = lapack.spotrf(noisy.T, lower=1, overwrite_a=1)  # symmetric: no copy
        if failed:
            raise Diverged("kriging: a covariance is not positive definite: leave out spots that lie on each other")
        return factor

    def at(self, places: Inputs) -> Answers:
        """At m places."""
        if not self.exact:
            return self._from_nearest(places._replace(image=places.image[:, :N_IMAGE]))
        with _blas(len(self.noise)):
            return self._exact(places)

    def _exact(self, places: Inputs) -> Answers:
        mean, variance = self._empty(len(places.xy))
        for rows in slices(len(places.xy), CHUNK):
            part = places.at(rows)
            to_spots, own = Blocks(part, self.spots), themselves(part)
            for i, (inverse, scores) in enumerate(self.solved):
                cross, known = to_spots.covariance(self.bank.at(i)), 0.0
                mean[i, rows] = 0
                for some in slices(len(scores), CHUNK):  # the inverse is a triangle
                    white = cross[:, : some.stop] @ inverse[some, : some.stop].T
                    mean[i, rows] += white @ scores[some]
                    known += np.sum(white**2, axis=1)
                variance[i, rows] = covariance(self.bank.at(i), own) - known
        return Answers(mean, variance, self.log_weight)

    def mean_at(self, places: Inputs) -> Float[np.ndarray, "m P"]:
        """The mean of the mixture of exact processes: sooner than ``at``, which solves for variances."""
        weights = np.exp(self.log_weight)
        solved = [inverse.T @ (white * weights[i]) for i, (inverse, white) in enumerate(self.solved)]
        mean = np.zeros((len(places.xy), self.scores.shape[1]), np.float32)
        for rows in slices(len(mean), CHUNK):
            to_spots = Blocks(places.at(rows), self.spots)
            for i, of_spots in enumerate(solved):
                mean[rows] += to_spots.covariance(self.bank.at(i)) @ of_spots
        return mean

    def left_out(self) -> Answers:
        """At the known spots of exact processes, each from all others (Rasmussen and Williams, 2006, eq. 5.12)."""
        mean, variance = self._empty(len(self.noise))
        for i, (inverse, scores) in enumerate(self.solved):
            of_one = 1 / np.sum(inverse**2, axis=0)
            mean[i] = self.scores - inverse.T @ scores * of_one[:, None]
            variance[i] = of_one - self.bank.noise[i] * self.noise
        return Answers(mean, variance, self.log_weight)

    def _empty(self, m: int) -> tuple[np.ndarray, np.ndarray]:
        shape = (len(self.bank.noise), m, self.scores.shape[1])
        return np.empty(shape, np.float32), np.empty(shape[:2], np.float32)

    def _from_nearest(self, places: Inputs) -> Answers:
        mean, variance = self._empty(len(places.xy))
        near = self.order[self.tree.query(places.xy, k=NEAREST)[1]]
        for rows, batch in filled(len(near), min(len(near), CHUNK)):
            size = rows.stop - rows.start
            for i in range(len(mean)):
                found = _from(self.bank.at(i), (self.spots, self.noise, self.scores), near[batch], places.at(batch))
                mean[i, rows], variance[i, rows] = (np.asarray(a)[:size] for a in jax.block_until_ready(found))
        return Answers(mean, variance, self.log_weight)


@jax.jit
def _from(process: Bank, known, near, places: Inputs):
    """Means (m, P) and variances (m,) at m places, each from K known spots of its own, (m, K)."""

    def at(near, place):
        place = jax.tree.map(lambda x: x[None], place)
        spots, noise, scores = jax.tree.map(lambda array: array[near], known)
        noisy = covariance(process, pairs(spots, spots, distances)) + jnp.diag(process.noise * noise)
        right = jnp.concatenate([covariance(process, pairs(spots, place, distances)), scores], axis=1)
        white = jax.scipy.linalg.solve_triangular(jnp.linalg.cholesky(noisy), right, lower=True)
        own = covariance(process, pairs(place, place, distances))[0, 0]
        return white[:, 0] @ white[:, 1:], own - jnp.sum(white[:, 0] ** 2)

    with jax.default_matmul_precision("highest"):  # some devices would round to 10 bits, too few for a Cholesky factor
        return jax.vmap(at)(near, places)
