"""Seeds at once, and several devices: the same numbers as one by one, on one device."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spabit_jax.training import devices
from spabit_jax.training.fit import FitState, fit, fit_seeds, initial_state, make_chunk, seed_keys
from spabit_jax.training.network import Trainer

SEEDS = [0, 1, 2]


class Line(NamedTuple):
    x: jax.Array
    y: jax.Array


def line_epoch(traces):
    """Least squares with a noisy gradient; a seed's validation loss falls until its parameters pass its own target."""

    def epoch(data, params, state, key):
        traces.append(1)
        loss, gradient = jax.value_and_grad(lambda w: jnp.mean((data.x @ w - data.y) ** 2))(params)
        noisy = gradient + 0.01 * jax.random.normal(key, params.shape)
        update, state = optax.adam(0.1).update(noisy, state)
        params = optax.apply_updates(params, update)
        return params, state, loss, jnp.sum((params - data.y[0]) ** 2)

    return epoch


@pytest.fixture
def lines():
    """The states, data and keys of four seeds; their targets are at different distances."""
    x = np.random.default_rng(0).standard_normal((9, 3)).astype(np.float32)
    x[0] = 1
    own = [{"y": (x @ np.full(3, target, np.float32))} for target in (0.2, 0.5, 1.0, 5.0)]
    keys = [seed_keys(seed)[1] for seed in range(4)]
    return lambda: [initial_state(jnp.zeros(3), optax.adam(0.1), 31, validated=True) for _ in own], x, own, keys


def close(a, b):
    for name in ("params", "optimizer", "best_params", "losses", "epoch", "stopped"):
        pairs = zip(jax.tree.leaves(getattr(a, name)), jax.tree.leaves(getattr(b, name)), strict=True)
        for left, right in pairs:
            np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6, err_msg=name)


def test_seeds_at_once_equal_seeds_one_by_one(lines, tmp_path):
    """Each stops at its own epoch, one was finished before, one interrupted; compiled once for each chunk."""
    new, x, own, keys = lines
    traces, options = [], {"chunk_epochs": 4, "patience": 5}
    one = make_chunk(line_epoch([]))
    alone = [fit(s, one, Line(x, **y), k, **options) for s, y, k in zip(new(), own, keys, strict=True)]
    ended = [int(state.epoch) for state in alone]
    assert len(set(ended)) >= 3 and max(ended) == 31 and sum(bool(state.stopped) for state in alone) == 3

    folders = [tmp_path / str(seed) for seed in range(4)]
    fit(new()[1], one, Line(x, **own[1]), keys[1], folder=folders[1], **options)

    killed = iter([one, one])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StopIteration):
        patch.setattr("spabit_jax.training.fit.SECONDS_BETWEEN_CHECKPOINTS", 0)
        fit(new()[2], lambda *args: next(killed)(*args), Line(x, **own[2]), keys[2], folder=folders[2], **options)

    mesh = devices.make_mesh(4)
    many = devices.make_chunk_of_seeds(line_epoch(traces), mesh)
    data = devices.everywhere((Line(x, None), own), mesh)
    titles = [f"seed {seed}" for seed in range(4)]
    together = fit_seeds(new(), many, data, keys, folders=folders, titles=titles, **options)
    for mine, other in zip(together, alone, strict=True):
        close(mine, other)
    first = len(traces)
    fit_seeds(new(), many, data, keys, folders=[None] * 4, titles=titles, **options)
    assert len(traces) == first


def test_a_seed_that_diverges_is_named(lines):
    new, x, own, keys = lines
    own[2]["y"] = own[2]["y"] * np.nan
    mesh = devices.make_mesh(4)
    many = devices.make_chunk_of_seeds(line_epoch([]), mesh)
    with pytest.raises(FloatingPointError, match="seed 2: the loss of epoch 0"):
        fit_seeds(
            new(),
            many,
            devices.everywhere((Line(x, None), own), mesh),
            keys,
            folders=[None] * 4,
            titles=[f"seed {seed}" for seed in range(4)],
            chunk_epochs=4,
            patience=5,
        )


@pytest.mark.parametrize(("gigabytes", "along", "expected"), [(None, 1, 9), (100, 1, 6), (100, 2, 8), (10, 1, 1)])
def test_as_many_seeds_as_memory_holds(gigabytes, along, expected):
    """By hand, in GB: parameters 1, their best 1, Adam's 2, so the state 4; gradient and update 2, residuals 1.

    Of 100 GB 10 are taken, and 72 may be: 6 seeds of 4 + 7; on two devices each holds 2 · 4 for 7, 4 times.
    """
    gb = 10**9
    params = jax.ShapeDtypeStruct((gb // 4,), jnp.float32)
    state = FitState(params, (params, params), params, *[np.zeros(0)] * 4)
    residuals = [jax.ShapeDtypeStruct((gb // 2,), jnp.float16)]
    mesh = jax.sharding.AbstractMesh((along, 1), (devices.SEED, devices.BATCH))
    memory = gigabytes and {"bytes_limit": gigabytes * gb, "bytes_in_use": gigabytes * gb // 10}
    assert devices.seeds_that_fit(9, mesh, state, residuals, memory) == expected


def test_the_estimate_of_memory_knows_the_state_and_the_batch(section_data, tiny_config):
    section, kept = section_data(tiny_config), []
    for size in (8, 16, 32):
        tiny_config.train.batch_size = size
        trainer = Trainer(section, tiny_config)
        state, residuals = trainer._shapes(0)
        kept.append(devices._n_bytes(residuals))
    assert devices._n_bytes(state) == sum(leaf.nbytes for leaf in jax.tree.leaves(trainer.initial_state(0)))
    assert 8 * section.expression.shape[1] * 4 < kept[1] - kept[0] == (kept[2] - kept[1]) / 2


@pytest.mark.slow
def test_four_devices_two_and_one_give_the_same(section_data, tiny_config, tmp_path):
    """Three seeds on 2 x 2 devices, each batch (one, of an odd size) divided too; a seed was begun on one device."""
    tiny_config.train.batch_size, tiny_config.train.epochs = 64, 6
    section = section_data(tiny_config)
    trainer = Trainer(section, tiny_config)
    assert len(trainer.parts(0).fitted) % 2 == 1
    alone = [trainer.fit(seed) for seed in SEEDS]
    (tmp_path / "inputs.pickle").write_bytes(pickle.dumps((section, tiny_config, SEEDS)))
    chunks = iter([trainer._chunk])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StopIteration):
        patch.setattr("spabit_jax.training.fit.SECONDS_BETWEEN_CHECKPOINTS", 0)
        patch.setattr(trainer, "_chunk", lambda *args: next(chunks)(*args))
        trainer.fit(SEEDS[1], tmp_path / f"seed_{SEEDS[1]}")

    four = on_devices(tmp_path, 4)
    np.testing.assert_allclose(four["losses"], [state.losses for state in alone], rtol=1e-5)
    restored = [trainer.restore(seed, tmp_path / f"seed_{seed}") for seed in SEEDS]
    spots = np.arange(len(section.xy))
    one = [trainer.predict(state.chosen, spots, seed) for state, seed in zip(restored, SEEDS, strict=True)]
    two = on_devices(tmp_path, 2)
    for other in (two, four):
        np.testing.assert_allclose(other["predicted"], one, rtol=1e-6, atol=1e-6)
    by_one = [trainer.predict(state.chosen, spots, seed) for state, seed in zip(alone, SEEDS, strict=True)]
    np.testing.assert_allclose(one, by_one, rtol=1e-4, atol=1e-4)


def on_devices(folder, n):
    command = [sys.executable, str(Path(__file__).with_name("on_devices.py")), str(folder), str(n)]
    root = Path(__file__).parents[2]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return np.load(folder / f"on_{n}.npz")
