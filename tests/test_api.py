"""The face: what ``import spabit_jax as sj`` gives, on a small section and with a small model."""

import copy
import json
import re

import anndata
import jax
import matplotlib
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import spabit_jax as sj
from spabit_jax.ensemble.pretrained import WEIGHTS
from tests import commands

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def config():
    config = sj.presets.demo()
    config.data.n_genes, config.model.width, config.model.mlp_width, config.gat.head_width = 12, 16, 16, 4
    config.train.epochs, config.train.chunk_epochs, config.model.n_context = 6, 3, 4
    return config


@pytest.fixture(scope="module")
def section(simulated, config, tmp_path_factory):
    return sj.prepare(simulated, config, cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def model(section):
    return sj.fit(section, seeds=[3])


def test_the_face_names_what_there_is():
    assert {"read_section", "prepare", "fit", "load", "evaluate", "Config", "__version__"} <= set(dir(sj))
    for name in sj.__all__:
        assert getattr(sj, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        sj.fitt  # noqa: B018


def test_objects_say_in_a_few_lines_what_they_are(section, model):
    assert repr(sj.Config()) == "Config()" and repr(sj.Config(name="mine")) == "Config(name='mine')"
    assert re.fullmatch(r"\d+ locations", repr(sj.grid(section, 2)))
    assert "12 genes (panel informative)" in repr(section) and len(repr(section).splitlines()) == 2
    new = type(model)(section, model.seeds, model.fitted)  # of which nobody has asked the weights
    assert repr(new).endswith("12 genes, 1 seeds\nmembers: spabit, kriging, ridge")
    assert model.weights is not None
    assert "expression (224, 12)" in repr(section.section()) and len(repr(section.section())) < 200
    assert repr(model).startswith("Model of tiny: 12 genes, 1 seeds") and len(repr(model)) < 200
    assert list(model.weights) == ["spabit", "kriging", "ridge"] and min(model.weights.values()) >= 0
    assert all(f"{name} {weight:.3f}" in repr(model) for name, weight in model.weights.items())
    assert list(model.history) == ["stage", "seed", "epoch", "train_loss", "valid_loss"]
    assert set(model.history["seed"]) == {3} and len(model.history) == 6


def test_settings_of_jax_for_other_work_change_nothing(section, model):
    others = jax.enable_x64(True), jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict")
    with others[0], others[1], others[2], jax.debug_nans(True):
        predictions = sj.fit(section, seeds=[3]).predict()
        scores = sj.evaluate(predictions)
    np.testing.assert_array_equal(predictions.X, model.predict().X)
    pd.testing.assert_frame_equal(scores, sj.evaluate(model.predict()))


def test_a_model_from_memory_is_saved_and_loaded_whole(model, tmp_path):
    model.save(str(tmp_path / "run"))
    again = sj.load(str(tmp_path / "run"))
    np.testing.assert_array_equal(again.predict().X, model.predict().X)
    assert again.weights == model.weights
    dense = again.predict("grid:2x")
    np.testing.assert_array_equal(dense.X, model.predict(sj.grid(model.prepared, 2)).X)


def test_scores_follow_from_predictions_alone(model, tmp_path):
    predictions = model.predict()
    scores = sj.evaluate(predictions)
    assert isinstance(scores, pd.DataFrame) and set(scores["method"]) == {
        "demo", "knn_mean", "ridge_neighbours", "kriging", "kriging_learned"
    }  # fmt: skip
    test = (predictions.obs["split"] == "test").to_numpy()
    error = (predictions.X - predictions.layers["truth"])[test] ** 2
    assert scores.attrs["summary"]["ensemble"]["mse"] == pytest.approx(error.mean(), rel=1e-5)
    scores_of_parts = sj.evaluate(predictions, model)
    assert set(scores_of_parts["seed"]) == {3, "ensemble", ""}
    more = scores_of_parts.attrs["summary"]
    assert set(more["members"]) == {"spabit", "kriging", "ridge"}
    assert more["baselines"] == scores.attrs["summary"]["baselines"]  # those of no model
    assert more["ceiling"] == scores.attrs["summary"]["ceiling"]
    for of, said in ((scores, "Method demo, image features"), (scores_of_parts, "Method demo, 1 network, image")):
        sj.report(predictions, of, tmp_path / "report.html")
        assert said in (tmp_path / "report.html").read_text()


def test_train_spots_may_not_be_left_out_of_an_evaluation(model):
    """What the model is compared with would learn from fewer."""
    predictions = model.predict()
    is_train = (predictions.obs["split"] == "train").to_numpy()
    some = np.random.default_rng(0).random(len(predictions)) < 0.5
    sj.evaluate(predictions[is_train | some].copy(), model)
    with pytest.raises(sj.InputError, match=r"of the \d+ train spots are missing"):
        sj.evaluate(predictions[~is_train | some].copy(), model)


def test_a_run_without_the_network_says_nothing_of_it(simulated, config, tmp_path):
    from spabit_jax.run.workflow import Workflow

    config = sj.Config.from_dict(config.to_dict())
    config.model.members = "kriging,ridge"
    prepared, out = sj.prepare(simulated, config, cache_dir=tmp_path), tmp_path / "run"
    Workflow(out, prepared, [0, 1]).run()
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["members"]) == set(metrics["weights"]) == {"kriging", "ridge"}
    assert "SpaBiT alone" not in (out / "report.html").read_text() and not (out / "history.csv").exists()
    again = sj.load(out)
    assert again.history.empty and "train_loss" in again.history
    np.testing.assert_array_equal(again.predict().X, anndata.read_h5ad(out / "predictions.h5ad").X)
    sj.report(again.predict(), sj.evaluate(again.predict(), again), tmp_path / "report.html")
    assert "learned kriging" in (tmp_path / "report.html").read_text()


def test_plots_return_axes_and_draw_into_those_given(model):
    from matplotlib import pyplot

    predictions = model.predict()
    _, (left, right) = pyplot.subplots(1, 2)
    gene = predictions.var_names[0]
    assert sj.plot_gene(predictions, gene, ax=right) is right and right.get_title() == f"{gene}, predicted"
    assert not left.collections and right.collections
    bottom, top = right.get_ylim()
    assert bottom > top
    with pytest.raises(sj.InputError, match="NOPE is not among these predictions"):
        sj.plot_gene(predictions, "NOPE")
    scores = sj.evaluate(predictions, model)
    for draw in (sj.plot_scores, sj.plot_calibration):
        left.clear()
        assert draw(scores, ax=left) is left and left.get_xlabel() and left.get_ylabel()
        assert draw(scores).figure is not left.figure
    pyplot.close("all")


def test_a_gene_is_drawn_beside_the_best_rival(model):
    from spabit_jax.evaluation.evaluate import RIVALS, beside_best_rival

    scores = sj.evaluate(model.predict(), model)
    rival, own, rival_name, name = beside_best_rival(scores)
    summary = scores.attrs["summary"]
    assert name == "demo" and own.shape == rival.shape == (len(set(scores["gene"])),)
    assert np.nan_to_num(own).mean() == pytest.approx(summary["ensemble"]["pcc"], abs=1e-6)
    best = max(of["pcc"] for of in summary["baselines"].values())
    assert np.nan_to_num(rival).mean() == pytest.approx(best, abs=1e-6) and rival_name in RIVALS.values()


def test_an_anndata_of_ones_own_is_a_section(section, config, tmp_path):
    from anndata import AnnData

    adata = section.adata
    mine = AnnData(adata.X.copy(), obs=adata.obs[[]].copy(), var=adata.var[[]].copy())
    mine.obsm["spatial"] = adata.obsm["spatial"]
    found = sj.prepare(sj.read_section(mine, name="mine"), config, cache_dir=tmp_path)
    assert found.name == "mine" and found.encoder == "none" and found.adata.n_obs == adata.n_obs
    with pytest.raises(sj.InputError, match="raw counts are needed"):
        mine.X = mine.X * 0.5
        sj.read_section(mine)


@pytest.mark.parametrize("path", ["nowhere", "nowhere/at/all.h5ad"])
def test_a_wrong_path_is_one_line(path):
    with pytest.raises(sj.InputError, match="no such file or folder"):
        sj.prepare(path)
    with pytest.raises(sj.InputError, match="no such file"):
        sj.load(path)


@pytest.fixture(scope="module")
def quick(simulated, tmp_path_factory):
    """A section, and what ``prepare`` makes of it for the default model, which is not trained."""
    adata, folder = sj.read_section(simulated, image="none"), tmp_path_factory.mktemp("cache")
    adata.obs["batch"] = np.where(np.arange(adata.n_obs) % 3, "test", "train")  # a word that sections are told apart by
    adata.obs[adata.var_names[0]] = 1.0  # named like a gene
    config = sj.Config()
    config.data.n_genes = 12
    return adata, lambda adata=adata, **data: sj.prepare(adata, config.with_data(**data), cache_dir=folder)


def test_a_fit_that_is_refused_leaves_nothing(quick, tmp_path):
    adata, prepare = quick
    section = prepare()
    section.config = copy.deepcopy(section.config)
    section.config.model.members = "nope"
    with pytest.raises(sj.InputError, match="names 'nope'"):
        sj.fit(section, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    sj.fit(prepare(adata[:100].copy(), split="random"), out=tmp_path / "run")
    kept = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(sj.InputError, match="is of another run"):
        sj.fit(prepare(), out=tmp_path / "run")
    with pytest.raises(sj.InputError, match="is of another run"):
        sj.fit(prepare()).save(tmp_path / "run")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == kept
    (tmp_path / "run" / "config.json").unlink()  # killed between the section and it
    sj.fit(prepare(), out=tmp_path / "run")
    assert sj.load(tmp_path / "run").prepared.adata.n_obs == adata.n_obs
    sister = adata[1:].copy()
    sister.X.data += 1  # it is no copy
    sister.uns["spabit"] = adata.uns["spabit"] | {"name": "sister"}
    model = sj.fit(sj.prepare(adata, prepare().config, related=[sister], cache_dir=tmp_path))
    for keep in (model.save, lambda out: sj.fit(model.prepared, out=out)):
        with pytest.raises(sj.InputError, match="related sections is not kept from memory"):
            keep(tmp_path / "related")
    assert not (tmp_path / "related").exists()
    (tmp_path / "file").touch()
    for write in (lambda out: sj.fit(prepare(), out=out), sj.load(tmp_path / "run").save):
        with pytest.raises(sj.InputError, match="file is a file: give a folder"):
            write(tmp_path / "file")


def test_what_the_user_does_with_his_own_changes_nothing(quick, tmp_path):
    adata, prepare = quick
    mine, config = adata.copy(), sj.Config()
    config.data.n_genes = 12
    section = sj.prepare(mine, config, cache_dir=tmp_path)
    config.data.split, config.model.members = "none", "ridge"
    mine.X = mine.X.log1p()
    mine.obsm["spatial"] *= 3
    model, expected = sj.fit(section), sj.fit(prepare()).predict()
    found = model.predict()
    np.testing.assert_array_equal(found.X, expected.X)
    np.testing.assert_array_equal(found.layers["truth"], expected.layers["truth"])
    assert found.uns["spabit"]["split_rule"] == "lattice"
    found.obsm["spatial"] *= 2
    dense = sj.grid(section, 2)
    again = model.predict(dense)
    again.obsm["spatial"] *= 2
    np.testing.assert_array_equal(model.predict().obsm["spatial"], adata.obsm["spatial"])
    np.testing.assert_array_equal(sj.grid(prepare(), 2).xy, dense.xy)


@pytest.mark.parametrize("change", ["genes", "csc", "dense", "counts"])
def test_counts_however_they_lie_are_saved_and_loaded(quick, tmp_path, change):
    adata, prepare = quick
    mine = adata[:, sorted(adata.var_names)].copy() if change == "genes" else adata.copy()
    if change == "counts":
        mine.layers["counts"] = mine.X.copy()
        mine.X = mine.X.log1p()
    elif change != "genes":
        mine.X = mine.X.tocsc() if change == "csc" else mine.X.toarray()
    model = sj.fit(prepare(mine), out=tmp_path / "run")
    np.testing.assert_array_equal(sj.load(tmp_path / "run").predict().X, model.predict().X)
    assert sorted(model.prepared.genes) == sorted(prepare().genes)


def test_a_section_in_a_file_that_is_left_there_is_one_in_memory(quick, tmp_path):
    adata, prepare = quick
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = prepare(anndata.read_h5ad(tmp_path / "a.h5ad", backed="r"))
    assert backed.describe()["counts_and_positions"] == prepare().describe()["counts_and_positions"]


def test_scores_are_of_the_spots_and_genes_that_are_there(model):
    predictions = model.predict()

    def scores(of):
        table = sj.evaluate(of, model)
        return table[table["method"].str.startswith("demo")].set_index(["gene", "method", "seed"]).sort_index()

    expected = scores(predictions)
    assert expected.index.get_level_values("seed").nunique() == 2 and expected.index.is_unique
    pd.testing.assert_frame_equal(scores(predictions[::-1, ::-1].copy()), expected, atol=1e-5)
    few = scores(predictions[:, :3].copy())
    pd.testing.assert_frame_equal(few, expected.loc[few.index], atol=1e-5)
    next(iter(predictions.uns["spatial"].values()))["images"].clear()
    assert next(iter(model.predict().uns["spatial"].values()))["images"]
    predictions.obs_names = [f"x{name}" for name in predictions.obs_names]
    with pytest.raises(sj.InputError, match="spot x.* is none of the model's"):
        sj.evaluate(predictions, model)


def test_a_name_that_a_rival_has_is_refused(quick, tmp_path):
    _, prepare = quick
    section = prepare()
    section.config = copy.deepcopy(section.config)
    section.config.name = "kriging"
    with pytest.raises(sj.InputError, match="config.name is 'kriging', which is a method's name"):
        sj.fit(section, out=tmp_path / "run")
    model = sj.fit(section)
    with pytest.raises(sj.InputError, match="config.name is 'kriging'"):
        sj.evaluate(model.predict(), model)
    assert not (tmp_path / "run").exists()


def test_a_run_is_found_from_any_folder_with_what_it_was_made_from(quick, tmp_path, monkeypatch):
    adata, prepare = quick
    monkeypatch.chdir(tmp_path)
    (tmp_path / "genes.txt").write_text("\n".join(adata.var_names[:5]))
    adata.obs["batch"].to_csv("split.csv")
    (tmp_path / "weights.npz").write_bytes(WEIGHTS.read_bytes())
    section = prepare(panel="genes.txt", split="split.csv")
    config = copy.deepcopy(section.config)
    config.model.pretrained = "weights.npz"
    model = sj.fit(sj.prepare(adata, config, cache_dir="cache"), out="run")
    assert (model.prepared.is_train == prepare(split="obs:batch").is_train).all()
    (tmp_path / "genes.txt").unlink()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    again = sj.load("../run")
    assert again.prepared.genes == list(adata.var_names[:5])
    np.testing.assert_array_equal(again.predict().X, model.predict().X)
    (tmp_path / "places.csv").write_text("x,y\n100,100\n")
    gene = again.prepared.genes[0]
    sparse_ones = again.predict()
    sparse_ones.X = sparse.csr_matrix(sparse_ones.X)
    assert sj.plot_gene(sparse_ones, gene).get_title() == f"{gene}, predicted"
    asked = ["--run=../run", "--locations=../places.csv", f"--genes={gene}", "--out=p.h5ad"]
    result = commands.run("experiments.predict", *asked, folder=tmp_path / "other")
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(anndata.read_h5ad("p.h5ad").X, again.predict(tmp_path / "places.csv").X, atol=1e-5)
    assert gene in adata.obs and sj.plot_gene(again.predict(), gene).get_title() == f"{gene}, predicted"


def test_what_is_no_input_is_one_line(quick):
    adata, prepare = quick
    changed = adata.copy()
    changed.X = changed.X.log1p()
    with pytest.raises(sj.InputError, match="raw counts are needed"):
        prepare(changed)
    with pytest.raises(sj.InputError, match="config is 'default': give a Config"):
        sj.prepare(adata, "default")
    model = sj.fit(prepare(), seeds=np.int64(1))
    with pytest.raises(sj.InputError, match="predictions at new places cannot be evaluated"):
        sj.evaluate(model.predict("grid:2x"))
    for of_a_file in (lambda scores: sj.report(None, scores, "r.html"), sj.plot_scores, sj.plot_calibration):
        with pytest.raises(sj.InputError, match="lost their summary"):
            of_a_file(pd.DataFrame())
    for times in (0, 2.5, "2"):
        with pytest.raises(sj.InputError, match="how many times as dense, a number from 1 to 1000"):
            sj.grid(adata, times)
    own = anndata.AnnData(adata.X, obsm={"spatial": adata.obsm["spatial"]})  # its lattice is found as sections' are
    assert len(sj.grid(own, 2).xy) == len(sj.grid(adata, 2).xy)
    np.testing.assert_array_equal(model.predict("spots").X, model.predict().X)
    for at, message in ((3, "not a int"), (sj.grid(adata, 2)[:2], "not a tuple")):
        with pytest.raises(sj.InputError, match=message):
            model.predict(at)
    places = sj.grid(adata, 2)
    for field, value, message in (
        ("xy", places.xy - 1e4, "spot pitches from the nearest"),
        ("xy", places.xy * np.nan, "not a number"),
        ("names", np.repeat("a", len(places.names)), "occurs twice"),
        ("names", places.names[1:], r"\(M,\)"),
        ("array", "text", "must be numbers"),
    ):
        with pytest.raises(sj.InputError, match=message):
            model.predict(places._replace(**{field: value}))
    for wrong in (adata, "path"):
        with pytest.raises(sj.InputError, match="takes what sj.prepare gives"):
            sj.fit(wrong)
    assert len(sj.plot_gene(adata, adata.var_names[1]).collections)
    predictions = model.predict()
    with pytest.raises(sj.InputError, match="no layer 'nope' among truth, sd"):
        sj.plot_gene(predictions, predictions.var_names[0], layer="nope")
    predictions.obs["split"] = "test"
    with pytest.raises(sj.InputError, match="no spot is a train spot"):
        sj.evaluate(predictions)
