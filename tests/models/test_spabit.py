import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spabit_jax.config import Faults
from spabit_jax.errors import InputError
from spabit_jax.models.spabit import SpaBiT, Tokens

G, D, B, M = 13, 7, 5, 6


@nnx.jit
def apply(model, x, valid=None):
    return model(x, valid)


@nnx.jit
def squared_gradient(model, x):
    return nnx.grad(lambda m: (m(x) ** 2).mean())(model)


def new(config, d=D, seed=0):
    """A model of this configuration for evaluation, compiled as one program."""
    model = nnx.jit(lambda: SpaBiT(G, d, config, rngs=nnx.Rngs(seed)))()
    model.eval()
    return model


def tokens(m=M, d=D, b=B, seed=0):
    rng = np.random.default_rng(seed)
    offset = rng.normal(size=(b, m, 2))
    offset[:, 0] = 0
    return Tokens(
        *(jnp.asarray(a, jnp.float32) for a in (rng.normal(size=(b, m, d)), rng.normal(size=(b, m, G)), offset))
    )


def randomised(model):
    """The residual head starts at 0; make it say something."""
    state = nnx.state(model, nnx.Param)
    leaves, tree = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    noise = [leaf + 0.3 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    nnx.update(model, jax.tree.unflatten(tree, noise))
    return model


def reference(config, **faults):
    config.faults = Faults(single_key=True, **faults)
    config.model.residual = config.gat.joint = False
    config.data.image_transform = "reference"
    config.model.n_components, config.model.members = 0, "spabit"
    return config.validate()


def test_a_spot_does_not_depend_on_the_others_in_its_batch(tiny_config):
    model = randomised(new(tiny_config))
    x = tokens()
    whole = apply(model, x)
    assert whole.shape == (B, G)
    for spot in (0, 3):
        alone = apply(model, jax.tree.map(lambda a, i=spot: a[i : i + 1], x))
        np.testing.assert_allclose(whole[spot], alone[0], rtol=1e-4, atol=1e-5)


def test_the_order_of_the_context_does_not_matter_but_its_content_and_place_do(tiny_config):
    model = randomised(new(tiny_config))
    x = tokens()
    order = np.array([0, 3, 1, 5, 2, 4])
    reordered = apply(model, jax.tree.map(lambda a: a[:, order], x))
    np.testing.assert_allclose(apply(model, x), reordered, rtol=1e-4, atol=1e-5)
    for part in range(3):
        changed = list(x)
        changed[part] = x[part].at[:, 4].add(1.0)
        assert np.abs(np.asarray(apply(model, Tokens(*changed)) - apply(model, x))).max() > 1e-3


def test_every_parameter_gets_a_gradient_when_there_is_more_than_one_key(tiny_config):
    model = randomised(new(tiny_config))
    gradient = squared_gradient(model, tokens())
    silent = [path for path, leaf in jax.tree.leaves_with_path(gradient) if not np.abs(np.asarray(leaf)).max() > 0]
    # a key's bias adds the same to every score of a query, which a softmax does not see
    assert all("key" in jax.tree_util.keystr(path) and "bias" in jax.tree_util.keystr(path) for path in silent), silent


def test_with_a_single_key_queries_and_keys_get_no_gradient(tiny_config):
    model = new(reference(tiny_config), 12)
    gradient = squared_gradient(model, tokens(m=1, d=12))
    for attention in (gradient.image_to_gene, gradient.gene_to_image):
        assert np.abs(np.asarray(attention.query.kernel[...])).max() < 1e-9
        assert np.abs(np.asarray(attention.key.kernel[...])).max() < 1e-9
        assert np.abs(np.asarray(attention.value.kernel[...])).max() > 1e-6


def test_batch_attention_sees_the_batch_but_not_its_padding(tiny_config):
    model = new(reference(tiny_config, batch_attention=True), 12)
    x = tokens(m=1, d=12)
    short = jax.tree.map(lambda a: a[:3], x)
    assert np.abs(np.asarray(apply(model, x)[:3] - apply(model, short))).max() > 1e-4
    padded = apply(model, x, jnp.arange(B) < 3)
    np.testing.assert_allclose(padded[:3], apply(model, short), rtol=1e-4, atol=1e-6)


def test_relu_output(tiny_config):
    x = tokens(m=1, d=12)
    plain, cut = (apply(new(reference(tiny_config, relu_output=on), 12), x) for on in (False, True))
    assert (np.asarray(plain) < 0).any()
    np.testing.assert_array_equal(cut, np.maximum(plain, 0))


def test_without_an_image(tiny_config):
    model = randomised(new(tiny_config, 0))
    assert np.isfinite(np.asarray(apply(model, tokens(d=0)))).all()


def test_an_untrained_residual_model_predicts_a_mean_of_the_neighbours(tiny_config):
    x = tokens()
    x = x._replace(genes=x.genes.at[:, 1:].set(jnp.arange(G)))
    np.testing.assert_allclose(apply(new(tiny_config), x), np.tile(np.arange(G), (B, 1)), rtol=1e-5)


def test_a_configuration_that_makes_no_sense_is_refused(tiny_config):
    tiny_config.faults.single_key = True
    with pytest.raises(InputError, match="model.residual"):
        tiny_config.validate()
    tiny_config.model.residual = False
    with pytest.raises(InputError, match="gat.joint"):
        tiny_config.validate()
    tiny_config.gat.joint = False
    tiny_config.model.cross_heads = 5
    with pytest.raises(InputError, match="multiple of model.cross_heads"):
        tiny_config.validate()
