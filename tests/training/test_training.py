from functools import partial

import jax
import numpy as np
import optax
import pytest
from scipy.spatial import KDTree

from spabit_jax.config import Faults
from spabit_jax.errors import InputError
from spabit_jax.neighbours import Context
from spabit_jax.readers import read_section
from spabit_jax.reference.separate_gat import gene_tokens
from spabit_jax.training import fit as fit_module
from spabit_jax.training.network import Trainer, at_most, gather_tokens, make_spabit_epoch, spabit_loss


def reference(config, **faults):
    config.faults = Faults(**(dict.fromkeys(vars(Faults()), True) | faults))
    config.model.residual = config.gat.joint = False
    config.train.neighbour_dropout = config.train.weight_decay = 0.0
    config.model.n_components, config.model.members = 0, "spabit"
    config.data.image_transform = "reference"
    return config.validate()


def equal(a, b):
    return all(
        np.array_equal(x, y, equal_nan=True) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_training_lowers_the_loss_and_keeps_the_parameters_of_the_lowest_validation_loss(section_data, tiny_config):
    tiny_config.train.epochs, tiny_config.train.learning_rate, tiny_config.train.chunk_epochs = 12, 3e-2, 1
    trainer = Trainer(section_data(tiny_config), tiny_config)
    state = trainer.fit(seed=3)
    losses = np.asarray(state.losses)[: int(state.epoch)]
    assert np.isfinite(losses).all() and losses[-1, 0] < 0.9 * losses[0, 0]
    assert not equal(state.params, state.chosen) or np.argmin(losses[:, 1]) == len(losses) - 1
    valid = trainer.parts(3).valid
    assert np.isin(valid, trainer.train_spots).all()
    predicted = trainer.predict(state.chosen, valid, 3)
    space = trainer.space(3)
    error = (space.encode(predicted) - space.encode(trainer.section.expression[valid])) ** 2
    assert error.mean() == pytest.approx(losses[:, 1].min(), rel=1e-4)


def test_training_stops_when_validation_no_longer_improves(section_data, tiny_config):
    tiny_config.train.epochs, tiny_config.train.patience, tiny_config.train.learning_rate = 60, 4, 0.1
    state = Trainer(section_data(tiny_config), tiny_config).fit(seed=0)
    losses = np.asarray(state.losses)[: int(state.epoch), 1]
    assert bool(state.stopped) and len(losses) < 60
    assert len(losses) - 1 - losses.argmin() >= 4
    assert len(losses) - 1 - losses.argmin() < 4 + tiny_config.train.chunk_epochs


@pytest.mark.parametrize("faulty", [False, True])
def test_an_interrupted_run_goes_on_to_the_same_numbers(section_data, tiny_config, tmp_path, monkeypatch, faulty):
    if faulty:
        tiny_config = reference(tiny_config)
    trainer = Trainer(*with_tokens(section_data(tiny_config), tiny_config))
    whole = trainer.fit(seed=1, folder=tmp_path / "whole")

    monkeypatch.setattr(fit_module, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    chunk, calls = trainer._chunk, []

    def interrupted(*args):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return chunk(*args)

    trainer._chunk = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(seed=1, folder=tmp_path / "parts")
    with pytest.raises(InputError, match="no finished training"):
        trainer.restore(1, tmp_path / "parts")
    trainer._chunk = chunk
    parts = trainer.fit(seed=1, folder=tmp_path / "parts")
    assert int(parts.epoch) == int(whole.epoch) > 2 * tiny_config.train.chunk_epochs
    for name in ("params", "optimizer", "best_params", "losses"):
        assert equal(getattr(whole, name), getattr(parts, name)), name
    assert equal(trainer.restore(1, tmp_path / "whole").params, whole.params)


def with_tokens(section, config):
    if config.gat.joint:
        return section, config
    tokens, part, _ = gene_tokens(section, section.xy, config)
    return section, config, tokens, part


def test_seeds_differ_and_repeat(section_data, tiny_config):
    trainer = Trainer(section_data(tiny_config), tiny_config)
    a, b, c = (trainer.fit(seed).chosen for seed in (0, 0, 1))
    assert equal(a, b) and not equal(a, c)


def test_predictions_do_not_depend_on_batch_order_or_company(section_data, tiny_config):
    section = section_data(tiny_config)
    trainer = Trainer(section, tiny_config)
    params = trainer.fit(seed=0).chosen
    spots = np.arange(len(section.xy))
    whole = trainer.predict(params, spots, 0)
    assert np.isfinite(whole).all()
    order = np.random.default_rng(0).permutation(spots)[:41]
    np.testing.assert_allclose(trainer.predict(params, order, 0), whole[order], rtol=1e-4, atol=1e-5)
    tiny_config.train.batch_size = 7
    other = Trainer(section, tiny_config)
    np.testing.assert_allclose(other.predict(params, spots, 0), whole, rtol=1e-4, atol=1e-5)


def test_no_spot_sees_its_own_expression(section_data, tiny_config):
    section = section_data(tiny_config)
    trainer = Trainer(section, tiny_config)
    params = trainer.fit(seed=0).chosen
    spot = int(trainer.parts(0).unseen[0])
    before = trainer.predict(params, [spot], 0)
    expression = section.expression.copy()
    expression[spot] += 3
    changed = Trainer(section._replace(expression=expression), tiny_config)
    np.testing.assert_array_equal(changed.predict(params, [spot], 0), before)
    others = [t.predict(params, trainer.train_spots, 0) for t in (changed, trainer)]
    assert np.abs(others[0] - others[1]).max() > 1e-3
    tiny_config.faults.self_in_gene_token = True
    faulty = [
        Trainer(s, tiny_config).predict(params, [spot], 0) for s in (section, section._replace(expression=expression))
    ]
    assert np.abs(faulty[0] - faulty[1]).max() > 1e-4


def test_gene_tokens_of_train_spots_are_made_without_their_part(section_data, tiny_config):
    section = section_data(reference(tiny_config, self_in_gene_token=False))
    tokens, part, states = gene_tokens(section, section.xy, tiny_config)
    assert len(tokens) == len(states) == tiny_config.gat.folds + 1
    assert (part[~section.is_train] == tiny_config.gat.folds).all()
    spots = np.flatnonzero(part == 2)
    assert section.is_train[spots].all() and len(spots) > 3
    expression = section.expression.copy()
    expression[spots] += 2.0
    other, _, _ = gene_tokens(section._replace(expression=expression), section.xy, tiny_config)
    np.testing.assert_array_equal(other[2], tokens[2])
    assert np.abs(other[1] - tokens[1]).max() > 1e-3


def test_the_reference_mode_uses_the_separate_network(section_data, tiny_config):
    section = section_data(reference(tiny_config))
    tokens, part, states = gene_tokens(section, section.xy, tiny_config)
    assert tokens.shape == (1, *section.expression.shape) and not part.any()
    losses = np.asarray(states[0].losses)
    assert losses[-1, 0] < losses[0, 0] and np.isnan(losses[:, 1]).all()
    trainer = Trainer(section, tiny_config, tokens, part)
    spots = np.array([4, 9])
    batch = gather_tokens(trainer.data, section.places(spots), tiny_config, spots)
    np.testing.assert_array_equal(batch.genes, tokens[0, [4, 9]][:, None])
    state = trainer.fit(seed=0)
    assert int(state.epoch) == tiny_config.train.epochs and state.best_params is None
    assert (trainer.predict(state.chosen, np.arange(20), 0) >= 0).all()


def test_hidden_context_spots_are_replaced_by_the_next_nearest(section_data, tiny_config):
    section = section_data(tiny_config)
    trainer = Trainer(section, tiny_config)
    spots = trainer.train_spots[:9]
    places = section.places(spots)
    plain = np.asarray(gather_tokens(trainer.data, places, tiny_config).offset)
    drawn = np.asarray(gather_tokens(trainer.data, places, tiny_config, key=jax.random.key(0)).offset)
    assert plain.shape == drawn.shape
    distance = [np.linalg.norm(a[:, 1:], axis=-1) for a in (plain, drawn)]
    assert distance[1].mean() > distance[0].mean()
    allowed = section.xy[section.context[spots]] - section.xy[spots][:, None]
    assert all(any(np.allclose(o, a) for a in allowed[i]) for i in range(9) for o in drawn[i, 1:])


def test_an_epoch_sees_at_most_so_many_spots(section_data, tiny_config):
    tiny_config.train.batch_size = 7
    trainer = Trainer(section_data(tiny_config), tiny_config)
    spots = trainer.parts(0).fitted
    state = trainer.initial_state(0)
    few = trainer.data._replace(space=trainer.space(0), fit_spots=spots, valid_spots=spots[:0])
    steps = {}
    for most in (7, len(spots) + 1):
        tiny_config.train.epoch_spots = most
        epoch = jax.jit(make_spabit_epoch(trainer.graphdef, tiny_config))
        _, optimizer, loss, _ = epoch(few, state.params, state.optimizer, jax.random.key(0))
        steps[most] = int(optax.tree.get(optimizer, "count"))
        assert np.isfinite(loss)
    assert steps == {7: 1, len(spots) + 1: -(-len(spots) // 7)}
    assert [at_most(5, most) for most in (0, 4, 5, 6)] == [5, 4, 5, 5]
    tiny_config.train.epoch_spots, tiny_config.train.validation_fraction = 2, 0.4
    assert len(trainer.parts(0).valid) == 2


def test_a_loss_that_is_not_finite_ends_training(section_data, tiny_config):
    section = section_data(tiny_config)
    broken = section._replace(image=np.full_like(section.image, np.inf))
    with pytest.raises(FloatingPointError, match="epoch 0"):
        Trainer(broken, tiny_config).fit(seed=0)


def test_what_decides_when_to_stop_does_not_decide_on_weights(section_data, tiny_config):
    trainer = Trainer(section_data(tiny_config), tiny_config)
    all_unseen = []
    for seed in range(5):
        fitted, valid, unseen = trainer.parts(seed)
        parts = np.concatenate([fitted, valid, unseen])
        np.testing.assert_array_equal(np.sort(parts), trainer.train_spots)
        assert len(valid) == max(1, round(0.1 * len(parts))) and len(unseen) == len(parts) // 5
        all_unseen.append(unseen)
    assert len(np.unique(np.concatenate(all_unseen))) == 5 * len(unseen)  # another fifth each
    few = trainer.section._replace(is_train=np.isin(np.arange(len(trainer.section.xy)), trainer.train_spots[:5]))
    assert [len(part) for part in Trainer(few, tiny_config).parts(0)] == [3, 1, 1]


def test_epochs_are_traced_once_for_each_length_of_a_chunk():
    """And a second run, of another seed, traces nothing."""
    import jax.numpy as jnp
    import optax

    traces = []

    def epoch(data, params, state, key):
        traces.append(1)
        return params + data, state, params.sum(), jnp.nan

    chunk = fit_module.make_chunk(epoch)

    def run(seed):
        import jax

        state = fit_module.initial_state(jnp.zeros(3), optax.sgd(0.1), 8, validated=False)
        return fit_module.fit(state, chunk, jnp.ones(3), jax.random.key(seed), chunk_epochs=3, patience=0)

    state = run(0)
    assert np.asarray(state.losses)[:, 0].tolist() == [3.0 * i for i in range(8)]
    assert chunk._cache_size() == 2  # chunks of 3 and of 2
    first = len(traces)
    run(1)
    assert len(traces) == first


def test_a_tile_with_a_halo_gives_the_numbers_of_the_whole_section(simulated, section_data, tiny_config, monkeypatch):
    """The halo is as wide as the model sees; whatever a section's size, a step needs no more than its batch's tile."""
    section, near = section_data(tiny_config), np.asarray(read_section(simulated).obsm["spatial"], np.float64)
    whole = Trainer(section, tiny_config)
    params, key = whole.initial_state(0).params, jax.random.key(3)
    data = whole.training_data(0)
    tile = np.flatnonzero(section.xy[:, 0] < np.quantile(section.xy[:, 0], 1 / 3))
    halo = np.linalg.norm(section.xy[section.context[tile]] - section.xy[tile][:, None], axis=-1).max()
    rows = np.flatnonzero(KDTree(section.xy[tile]).query(section.xy)[0] <= halo + 1e-3)
    assert len(tile) < len(rows) < len(section.xy)
    parts = {name: getattr(section, name)[rows] for name in ("expression", "image", "xy", "is_train")}
    context = Context.of(near[rows], parts["is_train"], section.context.shape[1]).of_spots(near[rows])
    at = np.searchsorted(rows, tile)
    cut = Trainer(section._replace(**parts, context=context), tiny_config)
    monkeypatch.setattr(cut, "space", whole.space)  # components are those of the section
    np.testing.assert_allclose(cut.predict(params, at, 0), whole.predict(params, tile, 0), rtol=1e-5, atol=1e-6)

    batch = tile[section.is_train[tile]][: tiny_config.train.batch_size]
    of_tile = cut.data._replace(space=data.space)
    step = jax.jit(jax.value_and_grad(partial(spabit_loss, whole.graphdef, tiny_config)))
    expected = step(params, data, batch, key)
    found = step(params, of_tile, np.searchsorted(rows, batch), key)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), found, expected)
