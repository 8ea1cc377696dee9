"""The hand-written gradients of kriging; its predictions are tested in tests/test_baselines.py."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import multivariate_normal

from spabit_jax.kriging.process import log_likelihood, square_distances


def test_square_distances_and_their_gradient():
    rng = np.random.default_rng(0)
    a, b, weight = (rng.normal(size=shape).astype(np.float32) for shape in ((7, 3), (5, 3), (7, 5)))
    np.testing.assert_allclose(square_distances(a, b), cdist(a, b, "sqeuclidean"), rtol=1e-5)

    def plain(a, b):
        return jnp.sum((a[:, None] - b) ** 2, axis=-1)

    found, expected = (
        jax.grad(lambda a, b, f=f: jnp.sum(weight * f(a, b)), argnums=(0, 1))(a, b) for f in (square_distances, plain)
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_likelihood_is_scipys_and_its_gradient_that_of_autodiff():
    rng = np.random.default_rng(1)
    n, root = 12, rng.normal(size=(12, 12)) / 12**0.5
    covariance = (root @ root.T + 0.3 * np.eye(n)).astype(np.float32)
    scores = rng.normal(size=n).astype(np.float32)
    expected = multivariate_normal.logpdf(scores, cov=covariance) + n / 2 * np.log(2 * np.pi)
    np.testing.assert_allclose(log_likelihood(covariance, scores), expected, rtol=1e-5)

    def plain(covariance, scores):
        return -0.5 * (scores @ jnp.linalg.inv(covariance) @ scores + jnp.linalg.slogdet(covariance)[1])

    found, expected = (jax.grad(f, argnums=(0, 1))(covariance, scores) for f in (log_likelihood, plain))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)
