"""Checkpoints of another network than the one that goes on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spabit_jax.errors import InputError
from spabit_jax.models.layers import linear, untrained
from spabit_jax.training.fit import FitState, going_on, save_state


def state(params):
    zero = jnp.float32(0)
    return FitState(params, None, None, jnp.zeros((3, 2)), jnp.int32(2), jnp.bool_(False), zero)


def test_a_state_is_found_again(tmp_path):
    there = state({"w": jnp.arange(6.0).reshape(2, 3)})
    save_state(there, tmp_path / "s")
    found = going_on(state({"w": jnp.zeros((2, 3))}), tmp_path / "s")
    jax.tree.map(np.testing.assert_array_equal, found, there)


@pytest.mark.parametrize("params", [{"w": jnp.zeros((2, 4))}, {"w": jnp.zeros((2, 3)), "more": jnp.zeros(2)}])
def test_one_of_another_network_is_refused_and_kept(tmp_path, params):
    save_state(state({"w": jnp.ones((2, 3))}), tmp_path / "s")
    with pytest.raises(InputError, match="is of another network.*give another --out"):
        going_on(state(params), tmp_path / "s")
    assert (tmp_path / "s" / "2").exists()


def test_a_model_with_state_that_would_not_be_kept_is_refused():
    class Normalised(nnx.Module):
        def __init__(self, rngs):
            self.first, self.norm = linear(3, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)

    with pytest.raises(InputError, match="the model keeps norm.mean, which is no nnx.Param"):
        untrained(Normalised)
    untrained(lambda rngs: linear(3, 4, rngs=rngs))
