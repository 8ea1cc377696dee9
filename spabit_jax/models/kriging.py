"""Kriging on space and image: a Gaussian process for each of a few principal components of expression.

Its predictions are what ``SpaBiT`` is averaged with, and the strongest of the baselines.

Expression of the train spots is reduced to P principal components (P is small: what later ones hold is noise). Each is
a Gaussian process with its own five variances and noise, over kernels whose length scales all components share:
Matern-3/2 in space at a long and at a short range, Matern-3/2 over image components, linear in them, and the product of
space and image. Parameters are at the maximum of the posterior: marginal likelihood (Rasmussen and Williams, Gaussian
Processes for Machine Learning, 2006, eq. 2.30) and wide log-normal priors, which keep small sections from overfitting.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from spabit_jax.section import Space, expression_space

N_COMPONENTS = 10  # of expression
STEPS = 60  # of Adam
CHUNK = 1024  # spots predicted in one call
MIN_NOISE = 1e-2  # of a component's variance; also keeps the Cholesky factor sound in float32

# Medians of the priors; spatial scales in units of the spot pitch, image scales in standard deviations of the first
# image component, variances as shares of a component's variance.
LONG, SHORT, IMAGE, PRODUCT_SPACE, PRODUCT_IMAGE, VARIANCE, NOISE = 10.0, 3.0, 2.0, 6.0, 2.0, 0.1, 0.5
SCALE_SD, VARIANCE_SD, NOISE_SD = 0.5, 2.0, 1.0  # of the logs


class Params(NamedTuple):
    """Logs of a process's parameters."""

    space: Float[Array, "2"]  # length scales, long and short
    image: Float[Array, "D"]  # length scale of each image component
    product: Float[Array, "2"]  # length scales of the product kernel: in space, and a factor on ``image``
    variance: Float[Array, "P K"]
    noise: Float[Array, "P"]


MEDIANS = ([LONG, SHORT], IMAGE, [PRODUCT_SPACE, PRODUCT_IMAGE], VARIANCE, NOISE)
PRIOR = Params(*(jnp.log(jnp.array(median)) for median in MEDIANS))
PRIOR_SD = Params(SCALE_SD, SCALE_SD, SCALE_SD, VARIANCE_SD, NOISE_SD)


class Process(NamedTuple):
    """A fitted process: a pytree of arrays, n train spots."""

    params: Params
    xy: Float[Array, "n 2"]
    image: Float[Array, "n D"]
    scores: Float[Array, "P n"]  # of variance 1
    solved: Float[Array, "P n"]  # (K + noise)⁻¹ scores
    factor: Float[Array, "P n n"]  # lower Cholesky factor of K + noise
    space: Space  # scores → expression
    residual: Float[Array, "G"]  # variance of expression that the components do not hold


def distances(a, b):
    """(A, D), (B, D) → (A, B) Euclidean, with a gradient at 0."""
    square = jnp.sum((a[:, None] - b[None]) ** 2, axis=-1)
    return jnp.sqrt(jnp.maximum(square, 1e-10))


def matern(r):
    """Matern-3/2 correlation at distance r in length scales."""
    r = 3**0.5 * r
    return (1 + r) * jnp.exp(-r)


def kernels(params: Params, xy_a, image_a, xy_b, image_b) -> Float[Array, "K A B"]:
    """The kernels without their variances: two in space and, with an image, three more."""
    r = distances(xy_a, xy_b)
    long, short = jnp.exp(params.space)
    found = [matern(r / long), matern(r / short)]
    if len(params.image):
        a, b = image_a * jnp.exp(-params.image), image_b * jnp.exp(-params.image)
        d = distances(a, b)
        in_space, in_image = jnp.exp(params.product)
        product = matern(r / in_space) * jnp.exp(-0.5 * (d / in_image) ** 2)
        found += [matern(d), a @ b.T * IMAGE**2 / len(params.image), product]
    return jnp.stack(found)


def covariance(params: Params, xy, image) -> Float[Array, "P n n"]:
    """Of noisy scores at train spots."""
    noise = jnp.exp(params.noise) + MIN_NOISE
    signal = jnp.einsum("pk,kij->pij", jnp.exp(params.variance), kernels(params, xy, image, xy, image))
    return signal + noise[:, None, None] * jnp.eye(len(xy))


def loss(params: Params, xy, image, scores):
    """Minus the log posterior, over n."""
    factor = jnp.linalg.cholesky(covariance(params, xy, image))
    white = jax.scipy.linalg.solve_triangular(factor, scores.T[..., None], lower=True)
    likelihood = -0.5 * jnp.sum(white**2) - jnp.sum(jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)))
    away = jax.tree.map(lambda p, m, s: jnp.sum(((p - m) / s) ** 2), params, PRIOR, PRIOR_SD)
    return (0.5 * sum(away) - likelihood) / len(xy)


@jax.jit
def optimize(xy, image, scores) -> Params:
    """Parameters for (n, P) scores of variance 1 at (n, 2) places with (n, D) image components."""
    n_kernels = 5 if image.shape[1] else 2
    shapes = Params((2,), (image.shape[1],), (2,), (scores.shape[1], n_kernels), (scores.shape[1],))
    params = Params(*(jnp.broadcast_to(m, s) for m, s in zip(PRIOR, shapes, strict=True)))
    optimizer = optax.adam(0.1)

    def step(carry, _):
        params, state = carry
        update, state = optimizer.update(jax.grad(loss)(params, xy, image, scores), state)
        return (optax.apply_updates(params, update), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), length=STEPS)[0][0]


def fit(xy, image, expression, n_components: int = N_COMPONENTS) -> Process:
    """Fits the process to train spots.

    Args:
      xy: (n, 2) in units of the spot pitch.
      image: (n, D) image components; D is 0 without an image.
      expression: (n, G) log2(count + 1).
    """
    space = expression_space(np.asarray(expression, np.float32), n_components)
    scores = space.encode(expression)
    sd = np.maximum(scores.std(axis=0), 1e-6)
    space = Space(space.mean, space.loadings * sd[:, None])
    residual = np.mean((expression - space.decode(scores / sd)) ** 2, axis=0)
    params = optimize(*_float32(xy, image, scores / sd))
    return condition(params, space, residual, xy, image, expression)


@jax.jit
def condition(params: Params, space: Space, residual, xy, image, expression) -> Process:
    """The process with these parameters, given (n, G) expression at (n, 2) places with (n, D) image components."""
    scores = space.encode(expression).T  # (P, n)
    factor = jnp.linalg.cholesky(covariance(params, xy, image))
    solved = jax.scipy.linalg.cho_solve((factor, True), scores[..., None])[..., 0]
    return Process(params, xy, image, scores, solved, factor, space, residual)


@jax.jit
def predict(process: Process, xy, image):
    """Expression at (m, 2) places with (m, D) image components: mean and variance of a measurement, (m, G) each."""
    params, amplitude = process.params, jnp.exp(process.params.variance)
    cross = jnp.einsum("pk,kij->pij", amplitude, kernels(params, xy, image, process.xy, process.image))  # (P, m, n)
    mean = jnp.einsum("pij,pj->ip", cross, process.solved)
    own = jax.vmap(lambda a, b: kernels(params, a[None], b[None], a[None], b[None])[:, 0, 0])(xy, image)  # (m, K)
    white = jax.scipy.linalg.solve_triangular(process.factor, cross.swapaxes(1, 2), lower=True)  # (P, n, m)
    variance = own @ amplitude.T - jnp.sum(white**2, axis=1).T + jnp.exp(params.noise) + MIN_NOISE
    return process.space.decode(mean), variance @ process.space.loadings**2 + process.residual


@jax.jit
def leave_one_out(process: Process):
    """As ``predict``, at each of the process's own spots from all the others (Rasmussen and Williams, eq. 5.12)."""
    eye = jnp.broadcast_to(jnp.eye(len(process.xy)), process.factor.shape)
    inverse = jax.scipy.linalg.cho_solve((process.factor, True), eye)
    variance = 1 / jnp.diagonal(inverse, axis1=1, axis2=2)  # (P, n)
    mean = process.scores - process.solved * variance
    return process.space.decode(mean.T), variance.T @ process.space.loadings**2 + process.residual


def fit_bag(xy, image, expression, folds, n_components: int = N_COMPONENTS) -> list[Process]:
    """A process for each fold, whose components and parameters come from the spots outside it, given all spots.

    Their mean is better than one process fitted to all spots, on small sections above all.

    Args:
      folds: indices into the n spots; each is outside at least a few.
    """
    n_fit = len(xy) - max(len(fold) for fold in folds)  # the same for all: one compilation
    bag = []
    for fold in folds:
        spots = np.setdiff1d(np.arange(len(xy)), fold)[:n_fit]
        fitted = fit(xy[spots], image[spots], expression[spots], n_components)
        bag.append(condition(fitted.params, fitted.space, fitted.residual, xy, image, expression))
    return bag


def predict_bag(bag: list[Process], xy, image) -> tuple[np.ndarray, np.ndarray]:
    """As ``predict``: mean of the processes' means; mean of their variances plus the variance of their means."""
    mean, variance = np.empty((2, len(xy), len(bag[0].residual)), np.float32)
    for start in range(0, len(xy), CHUNK):
        part = slice(start, start + CHUNK)
        means, variances = np.stack([predict(process, xy[part], image[part]) for process in bag], axis=1)
        mean[part], variance[part] = means.mean(axis=0), variances.mean(axis=0) + means.var(axis=0)
    return mean, variance


def _float32(*arrays):
    return [np.asarray(a, np.float32) for a in arrays]
