"""The counts of the speed table against those of XLA, and its small stages as a command."""

from contextlib import nullcontext

import jax
import numpy as np
import pandas as pd
import pytest

from experiments.studies import speed, speed_large, speed_sides
from tests import commands


def small():
    rng = np.random.default_rng(0)
    xy = np.stack(np.mgrid[0:7, 0:6], axis=-1).reshape(-1, 2).astype(float)
    return {
        "expression": rng.poisson(2, (42, 300)).astype(np.float32),
        "features": rng.standard_normal((42, 1024), np.float32),
        "xy": xy,
        "train": np.arange(0, 42, 2),
    }


def counted(monkeypatch, stage, **changes):
    """The matrix products of a stage at other sizes, as the table counts them."""
    bench = object.__new__(speed.Bench)
    bench.arrays = small() | changes
    monkeypatch.setattr(bench, "_training", lambda stage, flops: flops, raising=False)
    return getattr(bench, stage)()


def test_products_are_those_that_xla_does(monkeypatch):
    """XLA counts the sums over neighbours and what is done value by value too: a few in a hundred."""
    from experiments.configs import reference
    from spabit_jax.training.network import spabit_loss

    trainer = speed_sides.port_trainer(small() | {"train": np.arange(42)})
    params = jax.eval_shape(lambda: trainer.initial_state(0).params)
    batch = np.zeros(128, np.int32)

    def loss(params, batch):
        return spabit_loss(trainer.graphdef, reference.get_config(), params, trainer.data, batch, jax.random.key(0))

    cost = jax.jit(jax.grad(loss)).lower(params, batch).compile().cost_analysis()
    assert counted(monkeypatch, "spabit_epoch", train=np.arange(128)) == pytest.approx(cost["flops"], rel=0.02)


def test_products_of_two_matrices():
    """(7, 2) @ (2, 3) @ (3, 5): forward, both gradients of the second, that of the first's matrix."""
    by_hand = 2 * 7 * (2 * 3 + 3 * 5) + 2 * 7 * (3 * 5 + 3 * 5) + 2 * 7 * 2 * 3
    assert speed.products(7, [(2, 3), (3, 5)], first=[2 * 3]) == by_hand


def test_command(tmp_path):
    result = commands.run("experiments.speed", f"--out={tmp_path}", "--stages=import")
    assert result.returncode == 0, result.stderr
    table = pd.read_csv(tmp_path / "speed.csv")
    assert list(table.columns) == list(speed.COLUMNS)
    assert list(table["size"]) == list(speed.STARTS) and (table["seconds"] > 0).all()
    assert result.stdout.count("| import |") == len(table)
    result = commands.run("experiments.speed", f"--out={tmp_path}", "--stages=nope")
    assert result.returncode == 2 and "gat_epoch" in result.stderr


def test_large_sections_are_predicted(tmp_path):
    speed_large.simulate(400, str(tmp_path))
    assert np.load(tmp_path / "features.npy", mmap_mode="r").shape == (400, speed_large.N_FEATURES)
    seconds = speed_large.train_and_predict(str(tmp_path))
    assert set(seconds) == {"default_fit", "predict"} and min(seconds.values()) > 0


def test_default_fit_of_the_table(tmp_path, simulated):
    section = {"path": str(simulated), "how": {}, "encoder": "stain", "windows": "48px", "cache_dir": str(tmp_path)}
    assert speed_sides.port_default_fit(section) > 0
    arrays = speed_sides.of_section(section)
    assert len(arrays["features"]) == len(arrays["expression"]) == len(arrays["xy"]) > len(arrays["train"])


def test_the_published_table_is_projected(monkeypatch):
    bench = object.__new__(speed.Bench)
    bench.device, bench.oracle_device, bench.arrays = "gpu", "gpu", small()
    here = nullcontext(lambda function, *args: function(*args))  # instead of a process of its own
    monkeypatch.setattr(speed, "Side", lambda: here)
    monkeypatch.setattr(speed_sides, "prepare", lambda *args: None)
    monkeypatch.setattr(speed_sides, "again", lambda: 2.0)  # 100 epochs of the GAT, 20 of SpaBiT
    monkeypatch.setattr(speed_sides, "peak_gib", lambda *args: 1.0)
    monkeypatch.setattr(speed_sides, "port_protocol", lambda arrays, epochs, n: {1: 10.0, 10: 25.0}[n])
    rows = bench.protocol()
    assert [row["seconds"] for row in rows] == [60 + 100, 10, 60 + 1000, 25, 12 * 1060, 12 * 25]
    assert [row["ratio"] for row in rows[1::2]] == [16, 42.4, 42.4]
    bench.device = "cpu"
    assert bench.protocol() == []


def test_the_protocol_is_run(monkeypatch):
    from experiments.configs import reference
    from spabit_jax.training.network import Trainer

    config = reference.get_config()
    config.gat.heads, config.gat.head_width, config.gat.out_width, config.gat.mlp_width = 1, 2, 3, 4
    config.model.width, config.model.mlp_width, config.model.depth, config.model.feedforward_width = 8, 4, 1, 4
    monkeypatch.setattr(reference, "get_config", lambda: config)
    arrays = small()
    arrays["expression"], arrays["features"] = arrays["expression"][:, :5], arrays["features"][:, :8]
    fitted, predicted = [], []
    fit, predict = Trainer.fit_seeds, Trainer.predict
    monkeypatch.setattr(Trainer, "fit_seeds", lambda self, seeds: fitted.extend(fit(self, seeds)) or fitted)
    monkeypatch.setattr(Trainer, "predict", lambda self, *args: predicted.append(predict(self, *args)))
    assert speed_sides.port_protocol(arrays, {"gat_epoch": 2, "spabit_epoch": 3}, 2) > 0
    assert [int(state.epoch) for state in fitted] == [3, 3] and config.gat.epochs == 2
    assert [len(p) for p in predicted] == [21, 21] and np.abs(predicted[0] - predicted[1]).max() > 0
