"""Expression anywhere, from the folder of a run and from a model in memory."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.spatial import KDTree

from experiments import predict
from feature_extraction import command
from spabit_jax.config import Config
from spabit_jax.data import prepared
from spabit_jax.data.locations import Locations
from spabit_jax.data.prepared import Prepared
from spabit_jax.ensemble import predictor as model
from spabit_jax.errors import InputError
from spabit_jax.models import MODELS
from tests import commands


@pytest.fixture(scope="module")
def trained(finished):
    return model.load(finished[0] / "run")


def places(xy):
    return Locations(np.array([f"p{i}" for i in range(len(xy))]), np.asarray(xy), np.zeros((len(xy), 2)))


def test_a_denser_lattice_from_the_run_folder_alone(finished, tmp_path):
    run, out = finished[0] / "run", tmp_path / "dense.h5ad"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    command = [sys.executable, "-m", "experiments.predict", f"--run={run}", "--locations=grid:2x", f"--out={out}"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=300)[1] for process in both]  # two at once wait for each other
    assert [process.returncode for process in both] == [0, 0], said
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    dense, spots = anndata.read_h5ad(out), anndata.read_h5ad(run / "predictions.h5ad")
    assert list(dense.obs_names) == [f"grid_{i}" for i in range(len(dense))]
    assert list(dense.var_names) == list(spots.var_names)
    assert 3.5 < len(dense) / len(spots) < 5  # four times, and the rim
    assert np.isfinite(dense.X).all() and (dense.layers["sd"] > 0).all()
    distance, spot = KDTree(spots.obsm["spatial"]).query(dense.obsm["spatial"])
    measured = distance < 1e-6
    assert measured.sum() == len(spots)
    assert ((dense.obs["split"] != "new") == measured).all()
    np.testing.assert_array_equal(np.isnan(dense.layers["truth"]).all(axis=1), ~measured)
    np.testing.assert_array_equal(dense.layers["truth"][measured], spots.layers["truth"][spot[measured]])
    for column in ("array_row", "array_col"):
        np.testing.assert_allclose(dense.obs[column][measured], spots.obs[column].iloc[spot[measured]], atol=1e-6)
    # at a test spot, the run's prediction of it
    test = (dense.obs["split"] == "test").to_numpy()
    np.testing.assert_allclose(dense.X[test], spots.X[spot[test]], atol=1e-4)
    np.testing.assert_allclose(dense.layers["sd"][test], spots.layers["sd"][spot[test]], atol=1e-4)
    info = dense.uns["spabit"]
    n_train = (spots.obs["split"] == "train").sum()
    assert info["trained_on"] == f"{n_train} of {len(spots)} spots (split lattice)" == spots.uns["spabit"]["trained_on"]
    assert info["locations"] == "grid:2x" and info["method"] == "demo" and info["num_seeds"] == 2
    assert "images" in dense.uns["spatial"]["tiny"]
    with Image.open(tmp_path / "figures" / "dense.png") as image:
        assert np.asarray(image.convert("L")).std() > 5


def test_a_location_does_not_depend_on_the_others(trained, monkeypatch):
    xy = trained.prepared.adata.obsm["spatial"][:15] + np.random.default_rng(0).uniform(-20, 20, (15, 2))
    together = trained.predict_at(places(xy[:9]))
    order = [7, 2, 4]
    monkeypatch.setattr(model, "CHUNK", 4)
    others = trained.predict_at(places(xy[[*order, *range(9, 15)]]))  # nine again: one compilation
    np.testing.assert_allclose(others.X[:3], together.X[order], atol=1e-4)
    np.testing.assert_allclose(others.layers["sd"][:3], together.layers["sd"][order], atol=1e-4)
    assert np.ptp(together.X, axis=0).max() > 0.05
    assert (together.obs["split"] == "new").all() and np.isnan(together.layers["truth"]).all()


def test_test_spots_measurements_reach_no_location(finished, trained):
    prepared = trained.prepared
    xy = prepared.adata.obsm["spatial"][~prepared.is_train][:9] + 5
    before = trained.predict_at(places(xy))
    changed = prepared.adata.copy()
    x = changed.X.toarray()
    x[~prepared.is_train] += 7
    changed.X = x
    others = Prepared(changed, prepared.config, prepared.encoder, str(finished[0] / "cache"))
    assert others.genes == prepared.genes
    after = model.restore(others, trained.seeds, finished[0] / "run").predict_at(places(xy))
    np.testing.assert_array_equal(after.X, before.X)
    np.testing.assert_array_equal(after.layers["sd"], before.layers["sd"])


def test_the_spots_are_those_of_the_run(finished):
    run = finished[0] / "run"
    predictions, _ = predict.predict(run, "spots")
    spots = anndata.read_h5ad(run / "predictions.h5ad")
    np.testing.assert_array_equal(predictions.X, spots.X)
    assert list(predictions.obs_names) == list(spots.obs_names)
    assert predictions.uns["spabit"]["locations"] == "spots"
    # shown are the genes that it predicts best
    test = (spots.obs["split"] == "test").to_numpy()
    pcc = [np.corrcoef(t, p)[0, 1] for t, p in zip(spots.layers["truth"][test].T, spots.X[test].T, strict=True)]
    assert set(predict.default_genes(spots)) == set(spots.var_names[np.argsort(pcc)[-3:]])


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run, and a way to change its config.json."""
    run = tmp_path / "run"
    shutil.copytree(finished[0] / "run", run)

    def change(edit):
        content = json.loads((run / "config.json").read_text())
        edit(content)
        (run / "config.json").write_text(json.dumps(content))

    return run, change


def test_the_network_alone(copied):
    run, change = copied
    change(lambda content: content["config"]["model"].update(members="spabit"))
    trained = model.load(run)
    test = trained.prepared.test_spots[:9]
    found = trained.predict_at(places(trained.prepared.adata.obsm["spatial"][test]))
    expected = trained.predict_spots()
    np.testing.assert_allclose(found.X, expected.mean[test], atol=1e-4)
    np.testing.assert_allclose(found.layers["sd"], expected.sd[test], atol=1e-4)
    assert (found.obs["split"] == "test").all() and found.uns["spabit"]["weights"] == {"spabit": 1}


def test_run_folders_from_before_there_were_scales_windows_and_members_are_read(copied):
    run, change = copied
    now = json.loads((run / "config.json").read_text())

    def age(content):
        config = content["config"]
        config["model"]["companions"] = "kriging" in config["model"].pop("members")
        del config["data"]["scale"], config["data"]["windows"]
        content["inputs"]["patch_px"] = content["inputs"]["patch_px"][0]

    change(age)
    config = model.load(run).prepared.config
    assert config.data.scale == "log2_count" and config.data.windows == "48px"
    assert config.model.members == now["config"]["model"]["members"]


def test_a_section_that_has_changed_is_refused(copied, simulated, tmp_path):
    run, change = copied
    adata = anndata.read_h5ad(simulated)
    adata.X = adata.X * 2
    adata.write_h5ad(tmp_path / "tiny.h5ad")
    (tmp_path / "tiny.png").write_bytes(simulated.with_suffix(".png").read_bytes())
    change(lambda content: content["section"].update(path=str(tmp_path / "tiny.h5ad")))
    with pytest.raises(InputError, match=r"not what .* was trained on, inputs.counts_and_positions"):
        model.load(run)


def test_a_cache_of_other_weights_is_refused(trained, monkeypatch):
    """One that tells the weights at new places from those at the spots, and one window from the next."""
    (window,) = trained.prepared.windows
    made_from, there = type(window).made_from, places(trained.prepared.adata.obsm["spatial"][:2])
    numbers = iter(range(9))
    changing = lambda self: made_from(self) | {"weights_hash": str(next(numbers))}  # noqa: E731
    monkeypatch.setattr(type(window), "made_from", changing)
    with pytest.raises(InputError, match="other weights or another image than those at the spots"):
        model.features_at(trained.prepared, there)
    with pytest.raises(InputError, match="tiny in .* come from several versions of the weights of stain"):
        prepared.made_from([window, window])


def test_a_model_that_a_preset_defines_is_found_once_the_user_gives_it(copied, tmp_path):
    run, change = copied
    preset = tmp_path / "mine.py"
    preset.write_text(
        "from spabit_jax.models import MODELS\nfrom spabit_jax.models.spabit import SpaBiT\nMODELS['mine'] = SpaBiT\n"
    )
    change(lambda content: content["config"]["model"].update(name="mine"))
    change(lambda content: content.update(preset=str(preset)))  # is not executed: a folder may be a stranger's
    with pytest.raises(InputError, match=r"the model 'mine', which is not registered: .* --config=FILE"):
        model.load(run)
    assert "mine" not in MODELS
    command.run_preset(str(preset))
    try:
        assert model.load(run).prepared.config.model.name == "mine"
    finally:
        MODELS.pop("mine")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["section"].pop("reading"), "does not say how its section is read"),
        (lambda c: c["config"]["model"].update(dept=2), "another version"),
        (lambda c: c["config"]["gat"].update(joint=False), "gat.joint is off"),
        (lambda c: c["config"]["faults"].update(array_neighbours=True), "faults.array_neighbours is on"),
    ],
)
def test_runs_that_cannot_be_used_are_named(copied, edit, message):
    run, change = copied
    change(edit)
    with pytest.raises(InputError, match=message):
        model.load(run)


def test_bad_input_gives_one_line_and_status_2(finished, tmp_path):
    flags = [f"--run={tmp_path}", "--locations=grid:2x", f"--out={tmp_path / 'a.h5ad'}"]
    done = commands.run("experiments.predict", *flags)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "config.json: no such file" in done.stderr
    assert not list(tmp_path.iterdir())


def test_outputs_that_cannot_be_written_are_named(tmp_path, monkeypatch):
    (tmp_path / "a.h5ad").mkdir()
    (tmp_path / "file").write_text("")
    refused = {"a.csv": "NAME.h5ad", "a.h5ad": "is a folder", "run/section.h5ad": "the run's own section.h5ad"}
    refused |= {"run/../run/predictions.h5ad": "the run's own predictions.h5ad", "file/x.h5ad": "file is a file"}
    for name, message in (refused | {"run/calibration.h5ad": "the run's own figures/calibration.png"}).items():
        with pytest.raises(InputError, match=message):
            predict.check_out(tmp_path / name, tmp_path / "run")
    monkeypatch.setattr(predict, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install spatialdata"):
        predict.check_out(tmp_path / "a.zarr", tmp_path / "run")


def test_a_section_that_the_run_was_made_from_is_not_written_over(finished):
    run = finished[0] / "run"
    section = json.loads((run / "config.json").read_text())["section"]["path"]
    with pytest.raises(InputError, match="is a section that the run was made from"):
        predict.check_out(Path(section), run)


@pytest.mark.filterwarnings("default")  # spatialdata's own, and those of its dependencies
def test_spatialdata_holds_the_same(trained, tmp_path):
    spatialdata = pytest.importorskip("spatialdata")
    predictions = trained.predict_at(places(trained.prepared.adata.obsm["spatial"][:9] + 3))
    out = tmp_path / "dense.zarr"
    predict.check_out(out, tmp_path)
    predict.write(predictions, out)
    found = spatialdata.read_zarr(out)
    np.testing.assert_array_equal(found["predictions"].X, predictions.X)
    np.testing.assert_array_equal(found["predictions"].layers["sd"], predictions.layers["sd"])
    centres = spatialdata.get_centroids(found["locations"], coordinate_system="global").compute()
    np.testing.assert_allclose(centres[["x", "y"]], predictions.obsm["spatial"])
    extent = spatialdata.get_extent(found["image"], coordinate_system="global")
    with Image.open(trained.prepared.adata.uns["spabit"]["image_path"]) as image:
        assert extent["x"][1] == pytest.approx(image.width, rel=0.01)
    with pytest.raises(InputError, match="there already"):
        predict.check_out(out, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["dense.zarr"]


def test_a_configuration_survives_its_file():
    config = Config(name="mine")
    config.model.depth, config.data.split, config.faults.transposed_crop = 3, "none", True
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_list_of_places_by_name(finished, trained, tmp_path):
    names, test = list("abcdefghi"), trained.prepared.test_spots[:9]
    xy = trained.prepared.adata.obsm["spatial"][test]
    pd.DataFrame({"name": names, "x": xy[:, 0], "y": xy[:, 1]}).to_csv(tmp_path / "p.csv", index=False)
    predictions, spots = predict.predict(finished[0] / "run", str(tmp_path / "p.csv"))
    assert list(predictions.obs_names) == names
    np.testing.assert_allclose(predictions.X, spots.X[test], atol=1e-4)
