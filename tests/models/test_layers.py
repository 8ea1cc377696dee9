import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spabit_jax.models.layers import dropout, random_bits


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5])
def test_dropout_keeps_the_mean(rate):
    n = 10**6
    out = np.asarray(dropout(jnp.ones(n), rate, jax.random.key(0)))
    assert (out == 0).mean() == pytest.approx(rate, abs=5 * (rate * (1 - rate) / n) ** 0.5)
    np.testing.assert_allclose(out[out > 0], 1 / (1 - rate), rtol=1e-4)


def test_dropout_without_a_key_or_a_rate():
    x = jnp.arange(5.0)
    assert dropout(x, 0.5, None) is x and dropout(x, 0.0, jax.random.key(0)) is x


@pytest.mark.parametrize("generator", ["threefry2x32", "rbg"])
def test_values_are_dropped_independently(generator):
    """Neighbouring values share the word of random bits that they are drawn from, and nothing else."""
    dropped = np.asarray(dropout(jnp.ones((1000, 1000)), 0.3, jax.random.key(1, impl=generator))) == 0
    assert abs(dropped.mean() - 0.3) < 5e-3
    flat, columns = dropped.ravel(), dropped.T.ravel()
    for values, lag in ((flat, 1), (flat, 2), (columns, 1), (flat, 500_000)):
        assert abs(np.corrcoef(values[lag:], values[:-lag])[0, 1]) < 5e-3


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (4, 8), (6, 7), (5, 7, 11)])
def test_random_bits_are_those_of_jax(shape):
    keys = jax.random.split(jax.random.key(2), 3)
    with jax.threefry_partitionable(False):
        expected = np.stack([jax.random.bits(key, shape, jnp.uint16) for key in keys])
    np.testing.assert_array_equal(jax.vmap(lambda key: random_bits(key, shape))(keys), expected)
