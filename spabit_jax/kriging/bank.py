"""Kriging without fitting: Gaussian processes whose parameters were drawn once, and which of them a section supports.

Nothing is optimised on a section. Each process of a bank is solved exactly, and its marginal likelihood says how far to
believe it: the mean over the processes, weighted by it, is Bayesian model averaging over a discrete prior (Hoeting et
al., Bayesian model averaging: a tutorial, 1999). All scores of a section share the solutions of a process.

There are two passes. In the second the processes also see what the first says of expression at a place, so that places
of one layer or domain are near each other wherever they lie, and one score can follow from others (``kriging.passes``).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float
from scipy.spatial.distance import cdist

from spabit_jax.kriging.process import MIN_NOISE, matern

N_PROCESSES = 64
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

    Arrays of NumPy or of JAX: sections are of any size, and XLA would compile for each (``solved.Blocks``).
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
