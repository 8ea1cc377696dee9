"""Runs the text of docs/EXTENDING.md."""

import json
import re
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest

import spabit_jax as sj
from experiments import predict
from feature_extraction import command, encoders
from spabit_jax.config import Config
from spabit_jax.ensemble import members
from spabit_jax.training import fit, losses
from tests import commands

ROOT = Path(__file__).parents[1]


def block(name: str) -> str:
    """The Python that the page says to save under a name."""
    text = (ROOT / "docs" / "EXTENDING.md").read_text()
    return re.search(rf"`{name}`:\n\n```python\n(.*?)```", text, re.DOTALL)[1]


def preset(name: str, folder: Path):
    """What the page's preset of that name gives, run from a file as ``--config`` does."""
    (folder / name).write_text(block(name))
    return command.run_preset(str(folder / name))["get_config"]()


@pytest.fixture
def tables():
    """What is registered within a test is forgotten after it."""
    known = [(table, dict(table)) for table in (members.MEMBERS, losses.LOSSES, encoders.OWN, fit.CALLBACKS)]
    yield
    for table, before in known:
        table.clear()
        table.update(before)


def test_names_that_cannot_be_registered_are_refused(tables):
    for name in ("kriging", "a,b", "a/b", 5):
        with pytest.raises(sj.InputError, match="register_member"):
            sj.register_member(name, lambda config: None)
    with pytest.raises(sj.InputError, match="register_loss"):
        sj.register_loss("mse", lambda predicted, expression, space: 0.0)
    for name in ("stain", "a+b", "a/b", "timm:x"):
        with pytest.raises(sj.InputError, match="register_encoder"):
            sj.register_encoder(name, lambda patches: patches.mean((1, 2)), dim=3)


def test_an_encoder_of_another_version_is_not_the_one_in_the_cache(tables, simulated, tmp_path):
    def prepare(version):
        sj.register_encoder("mean", lambda patches: patches.mean((1, 2)), dim=3, size=8, version=version)
        return sj.prepare(simulated, encoder="mean", cache_dir=tmp_path)

    assert prepare("1").describe()["weights_hash"] == prepare("1").describe()["weights_hash"] == "1"
    with pytest.raises(sj.InputError, match="made by version 1 of mean, 2 is asked for: delete tiny.mean"):
        prepare("2")


# of networks that are trained: what takes time is to compile them
FEW_WEIGHTS = [f"--config.{field}" for field in ("model.width=16", "model.mlp_width=16", "model.cross_heads=2",
               "model.n_context=4", "model.depth=0", "gat.heads=2", "gat.head_width=4")]  # fmt: skip


@pytest.mark.slow
def test_the_walkthrough_runs_as_written(simulated, tmp_path):
    """The two commands, and the number that the text says is the model's: it changes with the model."""
    text = (ROOT / "docs" / "EXTENDING.md").read_text()
    code = block("gated.py")
    assert 15 <= len([line for line in code.split("MODELS[")[0].splitlines() if line.strip()]) <= 25
    (tmp_path / "gated.py").write_text(code)
    small = ["--config.train.epochs=6", "--config.data.n_genes=20", "--config.model.members=spabit"]
    small += ["--patch_px=48", f"--cache_dir={tmp_path / 'cache'}", *FEW_WEIGHTS]
    alone = {}
    for line in re.findall(r"^python (-m experiments\.run .*)$", text, re.MULTILINE)[:2]:
        name = re.search(r"--out=runs/(\w+)", line).group(1)
        places = {"--section": simulated, "--out": tmp_path / name}
        places |= {"--config": tmp_path / "gated.py"} if name == "gated" else {}
        command = [f"{a.split('=')[0]}={places[a.split('=')[0]]}" if a.split("=")[0] in places else a
                   for a in shlex.split(line)]  # fmt: skip
        done = commands.run(*command[1:], *small, folder=ROOT)
        assert done.returncode == 0, done.stderr
        assert name in done.stdout and "SpaBiT alone" in done.stdout
        alone[name] = json.loads((tmp_path / name / "metrics.json").read_text())["members"]["spabit"]["pcc"]
    assert set(alone) == {"gated", "trained"} and abs(alone["gated"] - alone["trained"]) > 1e-5
    predictions = anndata.read_h5ad(tmp_path / "gated" / "predictions.h5ad")
    assert predictions.uns["spabit"]["method"] == "gated"


def of_page(out: str) -> list[list[str]]:
    """The page's commands ``experiments.run`` and ``experiments.predict`` of the run folder ``runs/<out>``."""
    text = (ROOT / "docs" / "EXTENDING.md").read_text()
    lines = re.findall(r"^python (-m experiments\.(?:run|predict) .*)$", text, re.MULTILINE)
    return [shlex.split(line) for line in lines if re.search(rf"--(out|run)=runs/{out}\b", line)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("out", "file"),
    [("with_nearest", "nearest.py"), ("colours", "colours.py"), ("counts", "counts.py"), ("features", None),
     ("split", None)],
)  # fmt: skip
def test_the_commands_as_written(simulated, tmp_path, out, file):
    """Each in a folder of its own, where files lie as the page has them; the run is predicted by another process."""
    adata = sj.read_section(simulated)
    adata.obs["fold"] = np.where(np.arange(adata.n_obs) % 3 == 0, "train", "test")
    if file:
        (tmp_path / file).write_text(block(file))
    elif out == "features":
        with h5py.File(tmp_path / "C2_features.h5", "w") as h5:
            h5["features"] = np.asarray(adata.obsm["spatial"]) @ np.ones((2, 8)) / 500
            h5["barcodes"] = np.array(adata.obs_names, "S")
    adata.obs["fold"].to_csv(tmp_path / "C2_split.csv")
    adata.write_h5ad(tmp_path / "mine.h5ad")
    small = ["--config.data.n_genes=12", "--num_seeds=1", *["--patch_px=48"] * (out != "features")]
    small += ["--stages=features,train,predict"]
    if out == "counts":
        small += ["--config.model.members=spabit", "--config.train.epochs=2", "--config.train.chunk_epochs=2"]
        small += FEW_WEIGHTS
    found = of_page(out)
    assert [line[1] for line in found] == ["experiments.run", "experiments.predict"]
    for line in found:
        line = [f"--section={tmp_path / 'mine.h5ad'}" if a.startswith("--section=") else a for a in line]
        done = commands.run(*line[1:], *small * (line[1] == "experiments.run"), folder=tmp_path)
        assert done.returncode == 0, done.stderr
        assert all((tmp_path / a.removeprefix("--out=")).exists() for a in line if a.startswith("--out="))
    if file:
        done = commands.run(*(a for a in found[1][1:] if not a.startswith("--config=")), folder=tmp_path)
        assert done.returncode == 2 and "--config=FILE" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_member_of_ones_own_as_written(simulated, tables, tmp_path):
    config = preset("nearest.py", tmp_path)
    config.data.n_genes = 12
    model = sj.fit(sj.prepare(simulated, config, cache_dir=tmp_path), seeds=1)
    assert list(model.weights) == ["pretrained", "nearest"]
    dense = model.predict("grid:2x")
    assert np.isfinite(dense.X).all() and dense.uns["spabit"]["method"] == "with_nearest"
    alone = sj.evaluate(model.predict(), model).attrs["summary"]
    baseline = alone["baselines"]["knn_mean"]["pcc"]  # the same but for ties
    assert alone["members"]["nearest"]["pcc"] == pytest.approx(baseline, abs=0.01)


def small(config):
    config.data.n_genes, config.data.windows = 12, "1d"
    return config


def test_an_encoder_of_ones_own_as_written(simulated, tables, tmp_path):
    config = small(preset("colours.py", tmp_path))
    section = sj.prepare(simulated, config, encoder="colours", cache_dir=tmp_path / "cache")
    features = section.windows[0].read()
    assert features.shape == (section.adata.n_obs, 6) and 0 < features.min() < features.max() <= 1


def test_features_of_ones_own_as_written(simulated, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "EXTENDING.md").read_text()
    code = re.search(r"In Python:\n\n```python\n(.*?)```", text, re.DOTALL)[1]
    namespace = {"SECTION": simulated}
    exec(code, namespace)
    adata, new = namespace["adata"], namespace["new"]
    assert namespace["section"].features().shape == (adata.n_obs, 8)
    section = sj.prepare(adata, small(Config()), features="mine.npz")
    (tmp_path / "new.csv").write_text("x,y\n" + "\n".join(f"{x},{y}" for x, y in new))
    monkeypatch.chdir(ROOT)
    model = sj.fit(section, seeds=1)
    model.save(tmp_path / "run")
    found, spots = predict.predict(tmp_path / "run", str(tmp_path / "new.csv"))
    assert len(found) == 5 and np.isfinite(found.X).all() and np.ptp(found.X, axis=0).max() > 0
    np.testing.assert_array_equal(spots.X, model.predict().X)
    with pytest.raises(sj.InputError, match="no features at"):
        predict.predict(tmp_path / "run", "grid:2x")
    assert len(predict.predict(tmp_path / "run", "spots")[0]) == adata.n_obs


def test_a_split_of_ones_own_is_known_to_the_run(simulated, tmp_path, monkeypatch):
    adata = sj.read_section(simulated)
    fold = np.where(np.arange(adata.n_obs) % 3 == 0, "train", "test")
    adata.obs["fold"] = fold
    adata.obs["fold"].to_csv(tmp_path / "split.csv")
    monkeypatch.chdir(tmp_path)
    for split in ("obs:fold", "split.csv"):
        section = sj.prepare(adata, small(Config()).with_data(split=split), cache_dir=tmp_path / "cache")
        np.testing.assert_array_equal(section.is_train, fold == "train")


def test_a_loss_of_ones_own_as_written(simulated, tables, tmp_path):
    from scipy.stats import nbinom

    from spabit_jax.data.components import Space

    preset("counts.py", tmp_path)
    loss, rng = losses.find_loss("negative_binomial"), np.random.default_rng(0)
    count, mean = rng.poisson(6, (4, 3)), rng.uniform(1, 9, (4, 3))
    genes = Space(np.zeros(3, np.float32), np.ones(3, np.float32))
    wanted = -nbinom.logpmf(count, 5, 5 / (5 + mean)).mean()
    assert float(loss(np.log2(mean + 1), np.log2(count + 1), genes)) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.slow
def test_losses_are_followed_as_written(simulated, tables, tmp_path, monkeypatch):
    """In chunks, each epoch once, as the history has them; with a stand-in for the package, which tests do without."""
    written = []

    class SummaryWriter(nullcontext):
        def __init__(self, folder):
            super().__init__(self)
            self.folder = folder

        def add_scalar(self, *values):
            written.append((self.folder, *values))

    monkeypatch.setitem(sys.modules, "tensorboardX", SimpleNamespace(SummaryWriter=SummaryWriter))
    config = small(preset("follow.py", tmp_path))
    monkeypatch.chdir(tmp_path)
    config.model.members, config.train.epochs, config.train.chunk_epochs = "spabit", 5, 2
    config.model.width = config.model.mlp_width = 16
    config.model.n_context, config.model.depth, config.gat.heads, config.gat.head_width = 4, 0, 2, 4
    section = sj.prepare(simulated, config, cache_dir=tmp_path / "cache")
    history = sj.fit(section, seeds=2).history
    table = pd.read_csv("losses.csv")
    for seed in (0, 1):
        wanted = history[history["seed"] == seed].reset_index(drop=True)
        found = table[table["training"] == f"trained, seed {seed}"].reset_index(drop=True)
        columns = ["epoch", "train_loss", "valid_loss"]
        pd.testing.assert_frame_equal(found[columns], wanted[columns], rtol=1e-4, check_dtype=False)
        steps = [step for folder, name, _, step in written if folder.endswith(f"seed {seed}") and name == "train_loss"]
        assert steps == list(range(len(wanted)))


def test_settings_of_ones_own_as_written(tmp_path):
    config = preset("settings.py", tmp_path)
    config.model.gate = 0.2
    again = type(config).from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config.validate() and again.model.gate == 0.2 and again.name == "settings"
