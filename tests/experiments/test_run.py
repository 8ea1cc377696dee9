"""The command itself, on a small simulated section."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
from small_run import command, run

from experiments import run as run_module
from spabit_jax.errors import InputError
from spabit_jax.run.workflow import Workflow
from tests import commands


def metrics(folder):
    content = json.loads((folder / "run" / "metrics.json").read_text())
    del content["seconds"]
    return content


def test_the_run_folder_is_as_designed(finished):
    out = finished[0] / "run"
    names = {"config.json", "metrics.json", "history.csv", "checkpoints", "genes.csv", "predictions.h5ad", "figures"}
    assert names | {"report.html"} <= {path.name for path in out.iterdir()}
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"seed_0", "seed_1"}
    content = metrics(finished[0])
    assert content["section"] == "tiny" and content["encoder"] == "stain" and content["seeds"] == [0, 1]
    assert content["protocol"]["split"] == "lattice" and content["protocol"]["n_genes"] == 23
    config = json.loads((out / "config.json").read_text())
    assert config["config"]["model"]["width"] == 16 and config["versions"]["jax"]
    history = pd.read_csv(out / "history.csv")
    assert set(history["seed"]) == {0, 1} and history["train_loss"].notna().all()
    report = (out / "report.html").read_text()
    assert report.count("data:image/png;base64,") == 4
    figures = {path.name for path in (out / "figures").iterdir()}
    assert figures == {f"{path.stem}.{suffix}" for path in (out / "figures").iterdir() for suffix in ("png", "svg")}


def test_metrics_follow_from_the_predictions(finished):
    from scipy.stats import pearsonr

    out = finished[0] / "run"
    adata = anndata.read_h5ad(out / "predictions.h5ad")
    test = (adata.obs["split"] == "test").to_numpy()
    truth, predicted = adata.layers["truth"][test], adata.X[test]
    assert test.sum() == metrics(finished[0])["protocol"]["n_test"]
    pcc = np.array([pearsonr(t, p)[0] if np.ptp(t) else np.nan for t, p in zip(truth.T, predicted.T, strict=True)])
    content = metrics(finished[0])
    assert content["ensemble"]["pcc"] == pytest.approx(np.nanmean(pcc), abs=1e-5)
    assert content["ensemble"]["mse"] == pytest.approx(((truth - predicted) ** 2).mean(), rel=1e-5)
    inside = np.abs(truth - predicted) <= 1.645 * adata.layers["sd"][test]
    assert content["ensemble"]["coverage90"] == pytest.approx(inside.mean(), abs=2e-3)
    genes = pd.read_csv(out / "genes.csv")
    mine = genes[(genes["method"] == "demo") & (genes["seed"] == "ensemble")].set_index("gene")["pcc"]
    np.testing.assert_allclose(mine[adata.var_names], pcc, atol=1e-5)
    named = {"demo", *(f"demo:{member}" for member in ("spabit", "kriging", "ridge"))}
    assert set(genes["method"]) == named | {"knn_mean", "ridge_neighbours", "kriging", "kriging_learned"}
    assert adata.obsm["spatial"].shape == (adata.n_obs, 2) and (adata.layers["sd"] > 0).all()
    assert "images" in adata.uns["spatial"]["tiny"]


def test_the_prediction_is_the_weighted_mean_of_its_members(finished):
    out = finished[0] / "run"
    adata, content = anndata.read_h5ad(out / "predictions.h5ad"), metrics(finished[0])
    members, train = np.load(out / "members.npz"), (adata.obs["split"] == "train").to_numpy()
    centre = adata.layers["truth"][train].mean(axis=0)
    assert set(content["weights"]) == set(content["members"]) == set(members) == {"spabit", "kriging", "ridge"}
    mean = centre + sum(weight * (members[name] - centre) for name, weight in content["weights"].items())
    inside = (adata.X > 0) & np.all([members[name] > 0 for name in members], axis=0)  # nothing was cut off at 0
    np.testing.assert_allclose(adata.X[inside], mean[inside], atol=1e-4)
    assert (adata.X >= 0).all() and inside.mean() > 0.5
    for name, scores in content["members"].items():
        assert scores["mse"] == pytest.approx(((members[name] - adata.layers["truth"])[~train] ** 2).mean(), rel=1e-4)


def test_labels_that_come_later_are_kept_with_the_predictions(finished, tmp_path):
    predictions = anndata.read_h5ad(finished[0] / "run" / "predictions.h5ad")
    section = predictions.copy()
    section.obs["label"] = pd.Categorical(np.where(np.arange(len(section)) % 2, "a", None))
    Workflow._renew_labels(SimpleNamespace(out=tmp_path, prepared=SimpleNamespace(adata=section)), predictions)
    kept = anndata.read_h5ad(tmp_path / "predictions.h5ad")
    pd.testing.assert_series_equal(kept.obs["label"], section.obs["label"])
    np.testing.assert_array_equal(kept.X, predictions.X)


def test_what_the_numbers_mean_is_said(finished):
    content, (folder, result) = metrics(finished[0]), finished
    assert content["protocol"]["scale"] == "log1p_normalised" and content["protocol"]["panel"] == "informative"
    assert 0 < content["ceiling"] <= 1 and -1 <= content["depth_only"] <= 1
    for words in ("SpaBiT alone", "learned kriging", "plain kriging", "noise ceiling", "depth only", "weight"):
        assert words in result.stdout
    missing = [name for name, weight in content["weights"].items() if weight < 0.01]
    assert result.stdout.count("it is not in these numbers") == len(missing)
    info = anndata.read_h5ad(folder / "run" / "predictions.h5ad").uns["spabit"]
    assert info["scale"] == "log1p_normalised" and info["scale_target"] > 0


def test_help_lists_every_flag():
    for module in ("run", "benchmark", "predict", "sweep", "simulate", "downstream", "download", "superresolution"):
        shown = commands.run(f"experiments.{module}", "--help").stdout
        unknown = commands.run(f"experiments.{module}", "--no_such_flag").stderr
        flags = unknown.partition("known flags: ")[2].strip().split(", ")
        assert len(flags) > 1 and all(f"{flag}:" in shown.replace("[no]", "") for flag in flags), module


def test_without_flags_it_says_what_to_begin_with(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run"])
    with pytest.raises(InputError, match=r"--section and --out are missing") as error:
        run_module.main()
    commands = re.findall(r"^  python -m (experiments\.\w+) --", str(error.value), re.MULTILINE)
    assert len(commands) == 3 and all(find_spec(name) for name in commands)


def test_genes_are_added_to_the_panel(simulated, tmp_path):
    adata = anndata.read_h5ad(simulated)
    less = ["--config.model.members=ridge", "--config.data.n_genes=5"]
    genes = f"--genes=+{adata.var_names[-1]},{adata.var_names[0]}"
    result = run(simulated, tmp_path, "--stages=features,train,predict", genes, *less)
    assert result.returncode == 0, result.stderr
    assert re.findall(r"^(\w+): \d+\.\d s(?:; next: (\w+) \(.+\))?$", result.stderr, re.MULTILINE) == [
        ("features", "train"), ("train", "predict"), ("predict", "")
    ]  # fmt: skip
    predicted = anndata.read_h5ad(tmp_path / "run" / "predictions.h5ad")
    assert {adata.var_names[-1], adata.var_names[0]} <= set(predicted.var_names) and 5 <= predicted.n_vars <= 7


def test_the_predictions_open_in_scanpy(finished, tmp_path):
    import warnings

    import matplotlib

    matplotlib.use("Agg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scanpy's own
        import scanpy as sc

        adata = sc.read_h5ad(finished[0] / "run" / "predictions.h5ad")
        sc.pl.embedding(adata, basis="spatial", color=adata.var_names[0], show=False)
        (axes,) = sc.pl.spatial(adata, color=adata.var_names[0], show=False)
    (image,) = axes.get_images()
    height, width = image.get_array().shape[:2]
    scale = adata.uns["spatial"]["tiny"]["scalefactors"]["tissue_hires_scalef"]
    spots = adata.obsm["spatial"] * scale
    assert (spots > 0).all() and (spots < [width, height]).all()
    bottom, top = axes.get_ylim()
    assert bottom > top  # y points down, as in the image
    # the tissue is darker than the background that surrounds it
    shade = np.asarray(image.get_array(), float).mean(axis=-1)
    x, y = spots.astype(int).T
    assert shade[y, x].mean() < shade[:3].mean() - 10


def test_what_is_done_is_not_done_again(finished, simulated):
    out = finished[0] / "run"
    before = {path: path.stat().st_mtime_ns for path in [*out.glob("checkpoints/*/*"), out / "predictions.h5ad"]}
    result = run(simulated, finished[0])
    assert result.returncode == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert result.stdout == finished[1].stdout


def test_another_configuration_in_the_same_folder_is_refused(finished, simulated):
    result = run(simulated, finished[0], "--config.model.depth=2")
    assert result.returncode == 2
    assert "config.model.depth was 1 and is now 2" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_killed_in_training_and_started_again_it_gives_the_same_metrics(finished, simulated, tmp_path):
    eager = (
        "import runpy, spabit_jax.training.fit as fit; fit.SECONDS_BETWEEN_CHECKPOINTS = 0; "
        "runpy.run_module('experiments.run', run_name='__main__', alter_sys=True)"
    )
    python, _, _, *flags = command(simulated, tmp_path)
    process = subprocess.Popen([python, "-c", eager, *flags], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    seed = tmp_path / "run" / "checkpoints" / "seed_0"

    def steps():
        return [int(folder.name) for folder in seed.glob("*") if folder.name.isdigit()]

    while not steps() and process.poll() is None:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = pd.read_csv(finished[0] / "run" / "history.csv").query("seed == 0")["epoch"].max() + 1
    assert 0 < max(steps()) < done
    assert not (tmp_path / "run" / "predictions.h5ad").exists()
    result = run(simulated, tmp_path)
    assert result.returncode == 0, result.stderr
    assert metrics(tmp_path) == metrics(finished[0])


@pytest.mark.slow
def test_test_spots_reach_nothing_before_the_metrics(finished, simulated, tmp_path):
    """With the counts of test spots shuffled, the predictions are the same to the bit."""
    out = finished[0] / "run"
    split = anndata.read_h5ad(out / "predictions.h5ad").obs["split"]
    adata = anndata.read_h5ad(simulated)
    test = np.flatnonzero((split == "test").to_numpy())
    x = adata.X.toarray()
    x[test] = x[np.random.default_rng(0).permutation(test)]
    adata.X = type(adata.X)(x)
    adata.write_h5ad(tmp_path / "tiny.h5ad")
    (tmp_path / "tiny.png").write_bytes(simulated.with_suffix(".png").read_bytes())
    # a process of its own, whose sets have another order
    result = subprocess.run(command(tmp_path / "tiny.h5ad", tmp_path), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    configs = [json.loads((folder / "run" / "config.json").read_text()) for folder in (tmp_path, finished[0])]
    assert configs[0]["inputs"]["genes"] == configs[1]["inputs"]["genes"]
    seeds = "run/predictions_per_seed.npy"
    np.testing.assert_array_equal(np.load(tmp_path / seeds), np.load(finished[0] / seeds))
    assert metrics(tmp_path)["ensemble"]["pcc"] != metrics(finished[0])["ensemble"]["pcc"]


def test_a_section_without_an_image_runs_with_one_warning(simulated, tmp_path):
    (tmp_path / "bare.h5ad").write_bytes(simulated.read_bytes())
    adata = anndata.read_h5ad(tmp_path / "bare.h5ad")
    adata.uns.pop("spatial")
    adata.write_h5ad(tmp_path / "bare.h5ad")
    result = run(tmp_path / "bare.h5ad", tmp_path, "--config.model.members=pretrained")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("has no image") == 1
    assert metrics(tmp_path)["encoder"] == "none"


def test_every_spot_can_be_a_train_spot(simulated, tmp_path):
    result = run(simulated, tmp_path, "--config.data.split=none", "--config.model.members=pretrained,ridge")
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    assert "nothing to evaluate by" in result.stdout
    assert "no spot is left to say how good it is" in (tmp_path / "run" / "report.html").read_text()
    assert (tmp_path / "run" / "figures" / "gene_maps.png").exists()
    adata = anndata.read_h5ad(tmp_path / "run" / "predictions.h5ad")
    assert (adata.obs["split"] == "train").all() and np.isfinite(adata.X).all()
    assert adata.uns["spabit"]["split_rule"] == "none"


def test_a_run_is_not_continued_with_another_image(finished, simulated, tmp_path):
    from PIL import Image

    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    (tmp_path / "tiny.h5ad").write_bytes(simulated.read_bytes())
    with Image.open(simulated.with_suffix(".png")) as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "tiny.png")
    result = run(tmp_path / "tiny.h5ad", folder)
    assert result.returncode == 2 and "made from another image" in result.stderr
    shutil.rmtree(folder / "cache")
    result = run(tmp_path / "tiny.h5ad", folder)
    assert result.returncode == 2 and "image_sha256" in result.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--encoder=unii"], "uni2h"),
        (["--colour=red"], "--patch_px"),
        (["--config.model.dpth=3"], "config.model.depth"),
        (["--config=nowhere.py"], "get_config"),
        (["--config.data.split=half"], "lattice, random, block, none"),
        (["--config.data.split=random", "--config.data.train_fraction=0.9999"], "no test spot"),
        (["--stages=train,dance"], "features, gat, train, predict, evaluate"),
        (["--stages=predict"], "feature_extraction.extract"),
        (["--patch_px=0"], "an image window of 0 full-resolution pixels"),
        (["--section=/nowhere/at/all"], "/nowhere/at/all"),
        (["--num_seeds=0"], "num_seeds"),
        (["--config.model.name=spabitt"], "known models are spabit"),
        (["--config.data.split_seed=-1"], "config.data.split_seed"),
        (["--patch_px=inf"], "image windows 'infpx'"),
        (["--genes=ERBB2"], "give +A,B"),
        (["--genes=+gene_1"], "is not measured in section tiny"),
        (["--config.data.scale=log"], "log2_count, log1p_normalised"),
    ],
)
def test_bad_input_gives_one_line_and_status_2(simulated, tmp_path, flags, message):
    result = run(simulated, tmp_path, *flags)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
