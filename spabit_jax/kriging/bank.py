"""Kriging without fitting: Gaussian processes whose parameters were drawn once, and which of them a section supports.

Nothing is optimised on a section. Each process of a bank is solved exactly, and its marginal likelihood says how far to
believe it: the mean over the processes, weighted by it, is Bayesian model averaging over a discrete prior (Hoeting et
al., Bayesian model averaging: a tutorial, 1999). All scores of a section share the solutions of a process.

There are two passes. In the second the processes also see what the first says of expression at a place, so that places
of one layer or domain are near each other wherever they lie, and one score can follow from others (``kriging.passes``).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.linalg import lapack
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from threadpoolctl import threadpool_limits

from spabit_jax.chunks import slices
from spabit_jax.errors import Diverged
from spabit_jax.kriging.process import MIN_NOISE, distances, matern

N_PROCESSES = 64
N_WEIGHED = 1000  # known spots by which processes are left out where there are more
NEAREST = 32  # known spots that a place is predicted from where processes are not exact
CHUNK, BLOCK = 512, 2**17  # places at a time; and pairs
NEGLIGIBLE = 1e-2  # weight below which a process is left out
N_IMAGE = 20  # image components by which places are near each other; the linear kernel takes all
# Medians of the prior, spatial scales in pitches, image scales in sd of the first image component; sd of the logs
LONG, SHORT, IMAGE, PRODUCT_SPACE, PRODUCT_IMAGE, SCALE_SD, VARIANCE_SD = 10.0, 2.0, 2.0, 6.0, 1.3, 0.5, 1.0
SAID = 1.5  # of length scales in what the first pass says, in sd of the score of which it says most
LINEAR = 6.0  # on the variance of the linear kernel: image components become ever smaller, and it is over their number
NOISE = (1.2, 0.8)  # of the beta distribution of noise's share of a score's variance


class Bank(NamedTuple):
    """S processes; variances are shares of a score's variance."""

    space: Float[np.ndarray, "S 2"]  # length scales: long and short
    image: Float[np.ndarray, " S"]  # length scale of image components
    product: Float[np.ndarray, "S 2"]  # length scales of the product kernel: in space, and a factor on ``image``
    variance: Float[np.ndarray, "S 5"]  # of space, long and short, of image, Matern and linear, and of the product
    noise: Float[np.ndarray, " S"]
    said: Float[np.ndarray, "S 3"]  # in what the first pass says: length scale, variances of Matern and linear kernel

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
    said = np.tile([1.0, 0.0, 0.0], (n, 1))
    return Bank(*(np.asarray(a, np.float32) for a in (space, image, both, variance, noise + MIN_NOISE, said)))


def second_pass(rng: np.random.Generator, bank: Bank) -> Bank:
    """The bank's processes with a random share of what they explain given to kernels in what the first pass says."""
    n = len(bank.noise)
    share, length = rng.random(n), np.exp(rng.normal(np.log(SAID), SCALE_SD, n))
    split = np.exp(rng.normal(0, VARIANCE_SD, (n, 2)))
    split *= (share * (1 + MIN_NOISE - bank.noise) / split.sum(axis=1))[:, None]
    said = np.concatenate([length[:, None], split], axis=1).astype(np.float32)
    return bank._replace(variance=(bank.variance * (1 - share[:, None])).astype(np.float32), said=said)


def without_image(bank: Bank) -> Bank:
    """For a section without an image: what kernels of the image explain goes to the spatial ones."""
    in_space = bank.variance * np.array([1, 1, 0, 0, 0], np.float32)
    share = (1 + MIN_NOISE - bank.noise - bank.said[:, 1:].sum(axis=1)) / in_space.sum(axis=1)
    return bank._replace(variance=in_space * share[:, None])


class Inputs(NamedTuple):
    """What processes see of n places."""

    xy: Float[np.ndarray, "n d"]  # in pitches
    image: Float[np.ndarray, "n C"]  # image components; C is 0 without an image
    said: Float[np.ndarray, "n Q"]  # what the first pass says of the first scores; Q is 0 in that pass

    @classmethod
    def of(cls, xy, image, said=None) -> Inputs:
        xy, image = np.asarray(xy, np.float32), np.asarray(image, np.float32)
        return cls(xy, image, np.zeros((len(xy), 0), np.float32) if said is None else np.asarray(said, np.float32))

    def at(self, rows) -> Inputs:
        """These of the places."""
        return Inputs(*(array[rows] for array in self))


class Pairs(NamedTuple):
    """What all processes need to know of A places and B others."""

    space: Float[Array, "A B"]  # distance
    image: Float[Array, "A B"] | None  # distance in the first image components
    linear: Float[Array, "A B"] | None  # product of all of them, over the number of those first ones
    said: Float[Array, "A B"] | None  # distance in what the first pass says
    linear_said: Float[Array, "A B"] | None


def _apart(a, b) -> np.ndarray:
    return cdist(a, b).astype(np.float32)


def pairs(a: Inputs, b: Inputs, apart=_apart) -> Pairs:
    """Of A and B places; ``apart`` gives distances, ``process.distances`` those of JAX."""
    image, linear, said, linear_said = None, None, None, None
    if a.image.shape[1]:
        image = apart(a.image[:, :N_IMAGE], b.image[:, :N_IMAGE])
        linear = a.image @ b.image.T / min(N_IMAGE, a.image.shape[1])
    if a.said.shape[1]:
        said, linear_said = apart(a.said, b.said), a.said @ b.said.T
    return Pairs(apart(a.xy, b.xy), image, linear, said, linear_said)


def themselves(a: Inputs) -> Pairs:
    """Of n places, each with itself: (n,) in place of (A, B)."""
    n_image, n_said = a.image.shape[1], a.said.shape[1]
    nothing = np.zeros(len(a.xy), np.float32)
    linear = (a.image**2).sum(axis=1) / min(N_IMAGE, n_image) if n_image else None
    linear_said = (a.said**2).sum(axis=1) if n_said else None
    return Pairs(nothing, nothing if n_image else None, linear, nothing if n_said else None, linear_said)


def covariance(process: Bank, of: Pairs) -> Float[Array, "A B"]:
    """Of what one process of a bank predicts, noise aside.

    Sections are of any size, and XLA would compile for each: what is large is NumPy's.
    """
    exp = of.space.__array_namespace__().exp
    (long, short), (in_space, in_image), variance = process.space, process.product, process.variance
    total = variance[0] * matern(of.space / long) + variance[1] * matern(of.space / short)
    if of.image is not None:
        d = of.image / process.image
        both = matern(of.space / in_space) * exp(-0.5 * (d / in_image) ** 2)
        total += variance[2] * matern(d) + variance[3] * of.linear * (IMAGE / process.image) ** 2 + variance[4] * both
    if of.said is not None:
        length, near, linear = process.said
        total += near * matern(of.said / length) + linear * of.linear_said
    return total


def _in_blocks(process: Bank, of: Pairs) -> Float[np.ndarray, "A B"]:
    """``covariance``, some rows at a time: what it works on stays in the cache, twice as fast on large sections."""
    found = np.empty(of.space.shape, np.float32)
    for rows in slices(len(found), max(1, BLOCK // found.shape[1])):
        found[rows] = covariance(process, Pairs(*(None if pairs is None else pairs[rows] for pairs in of)))
    return found


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
        some = np.arange(n) if n <= N_WEIGHED else np.sort(np.random.default_rng(0).permutation(n)[:N_WEIGHED])
        some_first = exact and len(some) < n
        found = self._weigh(some, 2 * least if some_first else least)  # all know better: the square is left for them
        if some_first:
            found = self._weigh(np.arange(n), least)
        if exact:
            # a product with a factor's inverse is here as exact as solving, and twice as fast
            self.solved = [(lapack.strtri(factor, lower=1)[0], white) for factor, white in found]
        else:
            self.order = np.lexsort(self.spots.xy.T)  # ties among the nearest do not depend on the order of spots
            self.tree = KDTree(self.spots.xy[self.order])

    def _weigh(self, some: np.ndarray, least: float) -> list[tuple[np.ndarray, np.ndarray]]:
        """Sets evidence and weights, those of some spots, and leaves out processes of less than the log weight.

        Returns:
          Cholesky factor and whitened scores for each process that is left.
        """
        of_spots, scores = pairs(self.spots.at(some), self.spots.at(some)), self.scores[some]
        found, likelihood = {}, []
        # small matrices are slower on several threads
        with threadpool_limits(1 if len(some) <= N_WEIGHED else None, "blas"):
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
    def _factor(process: Bank, of_spots: Pairs, noise) -> np.ndarray:
        """Lower Cholesky factor of the covariance of noisy scores."""
        noisy = _in_blocks(process, of_spots)
        noisy[np.diag_indices(len(noise))] += process.noise * noise
        factor, failed = lapack.spotrf(noisy.T, lower=1, overwrite_a=1)  # symmetric: no copy
        if failed:
            raise Diverged("kriging: a covariance is not positive definite: leave out spots that lie on each other")
        return factor

    def at(self, places: Inputs) -> Answers:
        """At m places."""
        if not self.exact:
            return self._from_nearest(places._replace(image=places.image[:, :N_IMAGE]))
        mean, variance = self._empty(len(places.xy))
        for rows in slices(len(places.xy), CHUNK):
            part = places.at(rows)
            to_spots, own = pairs(part, self.spots), themselves(part)
            for i, (inverse, scores) in enumerate(self.solved):
                cross, known = _in_blocks(self.bank.at(i), to_spots), 0.0
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
            to_spots = pairs(places.at(rows), self.spots)
            for i, of_spots in enumerate(solved):
                mean[rows] += _in_blocks(self.bank.at(i), to_spots) @ of_spots
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
        for rows in slices(len(near), CHUNK):
            filled = np.minimum(np.arange(rows.start, rows.start + min(len(near), CHUNK)), len(near) - 1)
            size = rows.stop - rows.start
            for i in range(len(mean)):
                found = _from(self.bank.at(i), (self.spots, self.noise, self.scores), near[filled], places.at(filled))
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
