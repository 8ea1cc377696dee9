import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spabit_jax.errors import InputError
from spabit_jax.kriging.bank import draw_bank, second_pass
from spabit_jax.kriging.solved import Answers
from spabit_jax.models.in_context import load_weights, make_query, new_network, pad, save_weights
from spabit_jax.models.layers import merged

M, S, P, N = 5, 6, 2, 40


@pytest.fixture(scope="module")
def network():
    """A network that says something: a new one adds nothing to the bank."""
    graphdef, params = new_network(0)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    noisy = [leaf + 0.2 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.jit(merged(graphdef, jax.tree.unflatten(tree, noisy), training=False), static_argnames="strength")


@pytest.fixture
def world():
    rng = np.random.default_rng(0)
    xy, image, scores = (rng.standard_normal((N, width)).astype(np.float32) for width in (2, 7, P))
    bank = draw_bank(rng, S)
    weight = rng.standard_normal((S, P))
    answers = Answers(
        rng.standard_normal((S, M, P)).astype(np.float32),
        rng.uniform(0.1, 1, (S, M)).astype(np.float32),
        weight - np.log(np.exp(weight).sum(axis=0)),
    )
    near = rng.permutation(N)[: M * 8].reshape(M, 8)
    return bank, xy, image, scores, near, answers


def query(world, xy=None, scores=None, answers=None):
    bank, places, image, known, near, said = world
    xy = places if xy is None else xy
    scores, answers = known if scores is None else scores, said if answers is None else answers
    return jax.tree.map(jnp.asarray, make_query((xy, image, scores), near, xy[:M], image[:M], answers, bank))


def test_a_new_network_says_what_the_bank_says(world):
    score = merged(*new_network(0), training=False)(query(world))
    mean, variance = world[-1].mixed()
    np.testing.assert_allclose(score.mean, mean.ravel(), atol=1e-5)
    np.testing.assert_allclose(score.variance, variance.ravel(), rtol=1e-4)


def test_the_strength_of_what_is_said_of_processes(network, world):
    """A factor on the logits: the larger it is, the further the prediction is from where it is 0."""
    asked = query(world)
    none, one, three = (np.asarray(network(asked, strength=strength).mean) for strength in (0.0, 1.0, 3.0))
    np.testing.assert_allclose(network(asked).mean, one, atol=1e-6)
    assert 0 < np.abs(one - none).mean() < np.abs(three - none).mean()


def test_turned_and_mirrored_sections_have_the_same_prediction(network, world):
    turned = world[1] @ np.array([[0.6, 0.8], [0.8, -0.6]], np.float32) + 100
    for mine, other in zip(network(query(world)), network(query(world, xy=turned)), strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-4)
    wider = network(query(world, xy=1.5 * world[1])).mean
    assert np.abs(wider - network(query(world)).mean).max() > 1e-3


def test_negated_scores_have_the_negated_prediction(network, world):
    negated = world[-1]._replace(mean=-world[-1].mean)
    one, other = network(query(world)), network(query(world, scores=-world[3], answers=negated))
    np.testing.assert_allclose(one.mean, -other.mean, atol=1e-5)
    np.testing.assert_allclose(one.variance, other.variance, rtol=1e-5)


def test_the_order_of_context_and_processes_does_not_matter_and_padding_has_no_part(network, world):
    bank, xy, image, scores, near, said = world
    expected = network(query(world))
    order = np.array([3, 0, 5, 1, 4, 2])
    shuffled = Answers(said.mean[order], said.variance[order], said.log_weight[order])
    other = make_query((xy, image, scores), near[:, ::-1], xy[:M], image[:M], shuffled, bank.at(order))
    other, padded = (jax.tree.map(jnp.asarray, asked) for asked in (other, pad(query(world), 16, 40)))
    for found in (network(other), network(padded)):
        for mine, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(mine[: len(wanted)], wanted, rtol=1e-4, atol=1e-5)


def test_a_score_does_not_depend_on_the_others_in_its_batch(network, world):
    whole, asked = network(query(world)), query(world)
    part = asked._replace(**{name: getattr(asked, name)[3:4] for name in asked._fields[:-1]})
    np.testing.assert_allclose(network(part).mean, whole.mean[3:4], atol=1e-5)


def test_every_part_learns(network, world):
    graphdef, params = nnx.split(network.__wrapped__)

    def loss(params):
        score = merged(graphdef, params, training=True)(query(world))
        return jnp.mean(score.mean**2 + score.variance + score.noise)

    gradient = jax.jit(jax.grad(loss))(params)
    silent = {"/".join(map(str, path)) for path, leaf in nnx.to_flat_state(gradient) if np.abs(leaf[...]).max() == 0}
    assert not silent


def test_weights_are_saved_and_refused(tmp_path):
    bank, (_, params) = draw_bank(np.random.default_rng(0), S), new_network(3)
    path = tmp_path / "weights.npz"
    banks = bank, second_pass(np.random.default_rng(1), bank)
    save_weights(path, banks, params)
    found, _, again = load_weights(path)
    jax.tree.map(np.testing.assert_array_equal, found, banks)
    for mine, other in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-4)
    assert path.stat().st_size < 4e6
    whole = path.read_bytes()
    for content in (whole[:999], b"", b"weights"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"weights\.npz: no weights of a pretrained SpaBiT"):
            load_weights(path)
    np.savez(path, version=2, space0=bank.space)
    with pytest.raises(InputError, match="no weights of a pretrained SpaBiT"):
        load_weights(path)
    np.savez(path, version=99)
    with pytest.raises(InputError, match=r"weights\.npz: weights of version 99, and this is 2"):
        load_weights(path)
    with pytest.raises(InputError, match="nowhere"):
        load_weights(tmp_path / "nowhere.npz")


def test_a_layer_gives_the_tokens_that_are_wanted(network):
    layer, x = network.layers[0], jnp.asarray(np.random.default_rng(2).standard_normal((3, 5, 32)), jnp.float32)
    np.testing.assert_allclose(layer(x, wanted=2), layer(x)[:, :2], atol=1e-5)
