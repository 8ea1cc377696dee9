"""Kriging on space and image: a Gaussian process for each of a few principal components of expression.

Its predictions are what ``SpaBiT`` is averaged with, and the strongest of the baselines.

Expression of the train spots is reduced to P principal components (P is small: what later ones hold is noise). Each is
a Gaussian process with its own five variances and noise, over kernels whose length scales all components share:
Matern-3/2 in space at a long and at a short range, Matern-3/2 over image components, linear in them, and the product of
space and image. Parameters are at the maximum of the posterior: marginal likelihood (Rasmussen and Williams, Gaussian
Processes for Machine Learning, 2006, eq. 2.30) and wide log-normal priors, which keep small sections from overfitting.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from threadpoolctl import threadpool_limits

from spabit_jax.chunks import sample
from spabit_jax.data.components import Space, expression_space
from spabit_jax.errors import Diverged

N_COMPONENTS = 10  # of expression
STEPS = 60  # of Adam
FEW, FEW_STEPS, LAST_STEPS = 200, 40, 6  # of more spots than so many, with these and then with all
MAX_FITTED = 1000  # train spots that parameters are learned from: the cost grows with the cube
MIN_NOISE = 1e-2  # of a component's variance; also keeps the Cholesky factor sound in float32

# Medians of the priors; spatial scales in units of the spot pitch, image scales in standard deviations of the first
# image component, variances as shares of a component's variance.
LONG, SHORT, IMAGE, PRODUCT_SPACE, PRODUCT_IMAGE, VARIANCE, NOISE = 10.0, 3.0, 2.0, 6.0, 2.0, 0.1, 0.5
SCALE_SD, VARIANCE_SD, NOISE_SD = 0.5, 2.0, 1.0  # of the logs


class Params(NamedTuple):
    """Logs of a process's parameters."""

    space: Float[Array, "2"]  # length scales, long and short
    image: Float[Array, " D"]  # length scale of each image component
    product: Float[Array, "2"]  # length scales of the product kernel: in space, and a factor on ``image``
    variance: Float[Array, "P K"]
    noise: Float[Array, " P"]


MEDIANS = ([LONG, SHORT], IMAGE, [PRODUCT_SPACE, PRODUCT_IMAGE], VARIANCE, NOISE)
PRIOR = Params(*(np.log(np.array(median, np.float32)) for median in MEDIANS))
PRIOR_SD = Params(SCALE_SD, SCALE_SD, SCALE_SD, VARIANCE_SD, NOISE_SD)


class Fitted(NamedTuple):
    """What is learned from train spots before a process is given them: a pytree of arrays."""

    params: Params
    space: Space  # scores of variance 1 → expression
    residual: Float[Array, " G"]  # variance of expression that the components do not hold


class Process(NamedTuple):
    """A fitted process, given n train spots: a pytree of arrays."""

    fitted: Fitted
    xy: Float[Array, "n d"]
    image: Float[Array, "n D"]
    scores: Float[Array, "P n"]
    solved: Float[Array, "P n"]  # (K + noise)⁻¹ scores
    factor: Float[Array, "P n n"]  # lower Cholesky factor of K + noise


product = partial(jnp.einsum, precision="highest")  # some devices would round to 10 bits, too few for a Cholesky factor


@jax.custom_vjp
def square_distances(a, b):
    """(A, D), (B, D) → (A, B) squared Euclidean; the gradient needs no (A, B, D) differences."""
    return jnp.sum((a[:, None] - b[None]) ** 2, axis=-1)


def _square_distances_backward(residuals, gradient):
    a, b = residuals
    to_a = gradient.sum(axis=1)[:, None] * a - product("ab,bd->ad", gradient, b)
    to_b = gradient.sum(axis=0)[:, None] * b - product("ab,ad->bd", gradient, a)
    return 2 * to_a, 2 * to_b


square_distances.defvjp(lambda a, b: (square_distances(a, b), (a, b)), _square_distances_backward)


def distances(a, b):
    """(A, D), (B, D) → (A, B) Euclidean, with a gradient at 0."""
    return jnp.sqrt(jnp.maximum(square_distances(a, b), 1e-10))


def matern(r):
    """Matern-3/2 correlation at distances r in length scales, an array of NumPy or of JAX."""
    r = 3**0.5 * r
    return (1 + r) * r.__array_namespace__().exp(-r)


def kernels(params: Params, xy_a, image_a, xy_b, image_b) -> Float[Array, "K A B"]:
    """The kernels without their variances: two in space and, with an image, three more."""
    r = distances(xy_a, xy_b)
    long, short = jnp.exp(params.space)
    found = [matern(r / long), matern(r / short)]
    if len(params.image):
        a, b = image_a * jnp.exp(-params.image), image_b * jnp.exp(-params.image)
        d = distances(a, b)
        in_space, in_image = jnp.exp(params.product)
        both = matern(r / in_space) * jnp.exp(-0.5 * (d / in_image) ** 2)
        found += [matern(d), product("id,jd->ij", a, b) * IMAGE**2 / len(params.image), both]
    return jnp.stack(found)


def covariance(params: Params, xy, image) -> Float[Array, "P n n"]:
    """Of noisy scores at train spots."""
    noise = jnp.exp(params.noise) + MIN_NOISE
    signal = product("pk,kij->pij", jnp.exp(params.variance), kernels(params, xy, image, xy, image))
    return signal + noise[:, None, None] * jnp.eye(len(xy))


@jax.custom_vjp
def log_likelihood(of_scores, scores):
    """(n, n) covariance, (n,) centred scores at train spots → a number.

    Without its constant (Rasmussen and Williams, eq. 2.30).
    Its gradient is written out (eq. 5.9): through the Cholesky factor it takes twice as long.
    """
    return _log_likelihood_forward(of_scores, scores)[0]


@jax.jit  # traced and lowered once for all components
def _log_likelihood_forward(of_scores, scores):
    factor = jnp.linalg.cholesky(of_scores)
    inverse = _inverse_in_halves(factor)
    upper, lower, last = inverse
    first, second = jnp.split(scores, [len(upper)])
    white = jnp.concatenate([upper @ first, lower @ first + last @ second])
    return -0.5 * white @ white - jnp.sum(jnp.log(jnp.diagonal(factor))), (inverse, white)


@jax.jit
def _log_likelihood_backward(residuals, gradient):
    (upper, lower, last), white = residuals
    first, second = jnp.split(white, [len(upper)])
    solved = jnp.concatenate([upper.T @ first + lower.T @ second, last.T @ second])
    across = lower.T @ last
    inverse = jnp.block([[upper.T @ upper + lower.T @ lower, across], [across.T, last.T @ last]])
    return gradient / 2 * (jnp.outer(solved, solved) - inverse), -gradient * solved


def _inverse_in_halves(factor):
    """The inverse of a lower triangle, by its blocks: upper left, lower left, lower right.

    Two halves are solved for and the rest are products, where zeros would take as long: a third less for a step.
    """
    half = len(factor) // 2
    ends = factor[:half, :half], factor[half:, half:]
    upper, last = (jax.scipy.linalg.solve_triangular(end, jnp.eye(len(end)), lower=True) for end in ends)
    return upper, -last @ (factor[half:, :half] @ upper), last


log_likelihood.defvjp(_log_likelihood_forward, _log_likelihood_backward)


def loss(params: Params, xy, image, scores):
    """Minus the log posterior, over n."""
    pairs = zip(covariance(params, xy, image), scores.T, strict=True)
    likelihood = sum(log_likelihood(*pair) for pair in pairs)  # apart, which XLA solves side by side
    away = jax.tree.map(lambda p, m, s: jnp.sum(((p - m) / s) ** 2), params, PRIOR, PRIOR_SD)
    return (0.5 * sum(away) - likelihood) / len(xy)


@partial(jax.jit, static_argnames=("steps", "rate"))
@jax.default_matmul_precision("highest")  # as ``product``
def optimize(params: Params, xy, image, scores, steps: int, rate: float) -> Params:
    """Parameters after steps of Adam, for (n, P) scores of variance 1 at (n, 2) places with (n, D) image components."""
    optimizer = optax.adam(rate)

    def step(carry, _):
        params, state = carry
        update, state = optimizer.update(jax.grad(loss)(params, xy, image, scores), state)
        return (optax.apply_updates(params, update), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), length=steps)[0][0]


def learn(xy, image, scores) -> Params:
    """The parameters, from ``FEW`` spots first: where there are more, a few steps with all are enough after that."""
    shapes = Params((2,), (image.shape[1],), (2,), (scores.shape[1], 5 if image.shape[1] else 2), (scores.shape[1],))
    params = Params(*(np.broadcast_to(m, s) for m, s in zip(PRIOR, shapes, strict=True)))
    few = np.sort(np.random.default_rng(1).permutation(len(xy))[:FEW])
    more = len(few) < len(xy)
    with threadpool_limits(1, "blas"):  # XLA's own threads share out the components
        first = optimize(params, xy[few], image[few], scores[few], FEW_STEPS if more else STEPS, 0.1)
        params = jax.block_until_ready(first)
        if more:
            params = jax.block_until_ready(optimize(params, xy, image, scores, LAST_STEPS, 0.05))
    return params


def fit(xy, image, expression, n_components: int = N_COMPONENTS) -> Fitted:
    """Learns components and parameters from train spots; the latter from ``MAX_FITTED`` of them where there are more.

    Args:
      xy: (n, 2) in units of the spot pitch.
      image: (n, D) image components; D is 0 without an image.
      expression: (n, G), on any scale.

    Raises:
      Diverged: the parameters are not finite.
    """
    xy, image, expression = (np.asarray(a, np.float32) for a in (xy, image, expression))
    space = expression_space(expression, n_components)
    scores = space.encode(expression)
    sd = np.maximum(scores.std(axis=0), 1e-6)
    residual = np.mean((expression - space.decode(scores)) ** 2, axis=0)
    some = sample(xy, MAX_FITTED)
    params = learn(xy[some], image[some], (scores / sd)[some])
    if not all(np.isfinite(leaf).all() for leaf in params):
        raise Diverged("kriging: parameters are not finite: leave out spots without counts, or spots on each other")
    return Fitted(params, Space(space.mean, space.loadings * sd[:, None]), residual)


@jax.jit
def condition(fitted: Fitted, xy, image, expression) -> Process:
    """The process given (n, G) expression at (n, 2) places with (n, D) image components."""
    scores = fitted.space.encode(expression).T  # (P, n)
    factor = jnp.linalg.cholesky(covariance(fitted.params, xy, image))
    solved = jax.scipy.linalg.cho_solve((factor, True), scores[..., None])[..., 0]
    return Process(fitted, xy, image, scores, solved, factor)


@jax.jit
def predict_mean(process: Process, xy, image) -> Float[Array, "m G"]:
    """The mean of ``predict``."""
    params = process.fitted.params
    found = kernels(params, xy, image, process.xy, process.image)
    by_kernel = product("kij,pj->kip", found, process.solved)
    return process.fitted.space.decode(product("pk,kip->ip", jnp.exp(params.variance), by_kernel))


@jax.jit
def predict(process: Process, xy, image):
    """Expression at (m, 2) places with (m, D) image components: mean and variance of a measurement, (m, G) each."""
    params, amplitude = process.fitted.params, jnp.exp(process.fitted.params.variance)
    cross = product("pk,kij->pij", amplitude, kernels(params, xy, image, process.xy, process.image))  # (P, m, n)
    mean = product("pij,pj->ip", cross, process.solved)
    own = jax.vmap(lambda a, b: kernels(params, a[None], b[None], a[None], b[None])[:, 0, 0])(xy, image)  # (m, K)
    white = jax.scipy.linalg.solve_triangular(process.factor, cross.swapaxes(1, 2), lower=True)  # (P, n, m)
    variance = product("mk,pk->mp", own, amplitude) - jnp.sum(white**2, axis=1).T + jnp.exp(params.noise) + MIN_NOISE
    return decode(process.fitted, mean, variance)


@jax.jit
def leave_one_out(process: Process):
    """As ``predict``, at each of the process's own spots from all the others (Rasmussen and Williams, eq. 5.12)."""
    eye = jnp.broadcast_to(jnp.eye(len(process.xy)), process.factor.shape)
    inverse = jax.scipy.linalg.cho_solve((process.factor, True), eye)
    variance = 1 / jnp.diagonal(inverse, axis1=1, axis2=2)  # (P, n)
    mean = process.scores - process.solved * variance
    return decode(process.fitted, mean.T, variance.T)


def decode(fitted: Fitted, mean, variance):
    """(m, P) means and variances of scores → (m, G) of measurements."""
    return fitted.space.decode(mean), product("mp,pg->mg", variance, fitted.space.loadings**2) + fitted.residual
