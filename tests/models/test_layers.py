import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spabit_jax.models.layers import merged
from spabit_jax.models.spabit import SpaBiT, Tokens


@pytest.fixture
def split(tiny_config):
    """A model with dropout of every kind, split; and tokens of 3 spots."""
    tiny_config.gat.dropout = tiny_config.model.cross_dropout = 0.4
    graphdef, params = nnx.split(SpaBiT(6, 4, tiny_config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    shapes = ((3, 5, 4), (3, 5, 6), (3, 5, 2))
    return graphdef, params, Tokens(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes))


def hidden(graphdef, params, tokens, key=None, training=False):
    """Tokens after the GAT and the cross-attention: the head of a new model is zero."""
    model = merged(graphdef, params, training=training)
    model.head = lambda x: x
    model.mix = None
    return np.asarray(model(tokens, key=key))


def test_dropout_is_of_training_alone(split):
    quiet = hidden(*split)
    np.testing.assert_array_equal(quiet, hidden(*split))
    np.testing.assert_array_equal(quiet, hidden(*split, key=jax.random.key(0)))
    one, same, other = (hidden(*split, key=jax.random.key(i), training=True) for i in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3 < np.abs(one - quiet).max()


def test_training_without_a_key_is_refused(split):
    """Or a layer that nobody gave one would drop nothing, in silence."""
    with pytest.raises(ValueError, match="no `rngs` argument was provided to Dropout"):
        hidden(*split, training=True)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_keeps_the_mean(rate):
    n = 10**6
    out = np.asarray(nnx.Dropout(rate)(jnp.ones(n), rngs=jax.random.key(0)))
    assert (out == 0).mean() == pytest.approx(rate, abs=5 * (rate * (1 - rate) / n) ** 0.5)
    np.testing.assert_allclose(out[out > 0], 1 / (1 - rate), rtol=1e-4)
