"""What the figures show: values, scales, orientation; and that they leave no state behind."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.collections import EllipseCollection
from PIL import Image
from scipy.stats import pearsonr

from spabit_jax import plots


@pytest.fixture
def predictions() -> AnnData:
    rng = np.random.default_rng(0)
    x, y = (axis.ravel() * 30.0 + 50 for axis in np.meshgrid(np.arange(9), np.arange(7)))
    truth = np.log2(rng.poisson(4, (63, 3)) + 1.0)
    split = np.resize(["train", "test", "test", "new"], 63)
    adata = AnnData(
        X=truth + rng.normal(0, 1, truth.shape),
        obs=pd.DataFrame({"split": split}, index=[f"s{i}" for i in range(63)]),
        var=pd.DataFrame(index=["A", "B", "C"]),
        obsm={"spatial": np.stack([x, y], axis=1)},
        layers={"truth": np.where((split == "new")[:, None], np.nan, truth)},
    )
    image = rng.integers(0, 255, (140, 180, 3), dtype=np.uint8)
    adata.uns["spatial"] = {"S": {"images": {"lowres": image}, "scalefactors": {"tissue_lowres_scalef": 0.5}}}
    return adata


@pytest.fixture
def figures(monkeypatch) -> list:
    """The figures that are made, instead of files."""
    made = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: made.append(figure))
    return made


def _spots(ax) -> EllipseCollection:
    return next(c for c in ax.collections if isinstance(c, EllipseCollection))


def test_gene_maps_show_truth_beside_prediction(predictions, figures):
    plots.plot_gene_maps(predictions, {"best": "B", "worst": "C"}, "unused.png")
    axes = [ax for ax in figures[0].axes if ax.get_label() != "<colorbar>"]
    assert len(axes) == 4
    known = (predictions.obs["split"] != "new").to_numpy()
    test = (predictions.obs["split"] == "test").to_numpy()
    for i, (gene, label) in enumerate([("B", "best"), ("C", "worst")]):
        measured, predicted = axes[2 * i : 2 * i + 2]
        truth, prediction = predictions.obs_vector(gene, layer="truth"), predictions.obs_vector(gene)
        np.testing.assert_array_equal(_spots(measured).get_array(), truth[known])
        np.testing.assert_array_equal(_spots(predicted).get_array(), prediction)
        np.testing.assert_array_equal(_spots(measured).get_offsets(), predictions.obsm["spatial"][known])
        assert _spots(measured).get_clim() == _spots(predicted).get_clim()
        assert measured.get_title() == f"{gene} ({label}), measured"
        pcc = pearsonr(truth[test], prediction[test]).statistic
        assert predicted.get_title() == f"predicted, PCC {pcc:.2f}"


def test_gene_maps_are_the_right_way_up_and_lie_on_the_image(predictions, figures):
    plots.plot_gene_maps(predictions, {"best": "A"}, "unused.png")
    ax = figures[0].axes[0]
    bottom, top = ax.get_ylim()
    left, right = ax.get_xlim()
    assert top < 50 < 230 < bottom
    assert left < 50 < 290 < right
    (image,) = ax.images
    assert image.get_extent() == [0, 360, 280, 0]  # full-resolution pixels, first row of the image at y = 0
    assert image.get_array().shape == (140, 180, 3)
    assert (_spots(ax).get_widths() < 30).all()  # spots 30 px apart do not overlap


def test_gene_maps_without_image_or_truth(predictions, figures):
    del predictions.uns["spatial"]
    predictions.layers["truth"][:] = np.nan
    predictions.obs["split"] = "new"
    plots.plot_gene_maps(predictions, {"first": "A", "second": "B"}, "unused.png")
    axes = [ax for ax in figures[0].axes if ax.get_label() != "<colorbar>"]
    assert [ax.get_title() for ax in axes] == ["A (first), predicted", "B (second), predicted"]
    assert not axes[0].images


def test_location_maps_share_scales_and_lie_on_the_image(predictions, figures):
    rng = np.random.default_rng(1)
    predictions.layers["sd"] = rng.uniform(0.5, 1, predictions.shape)
    predictions.uns["spabit"] = {"um_per_px": 2.5}
    new = predictions[:40].copy()
    new.obsm["spatial"] = predictions.obsm["spatial"][:40] / 2 + 30
    plots.plot_location_maps(new, ["B", "C"], "unused.png", spots=predictions)
    axes = [ax for ax in figures[0].axes if ax.get_label() != "<colorbar>"]
    assert len(axes) == 10
    row = axes[5:]
    assert [ax.get_title() for ax in row] == [
        *("C, measured", "predicted, spots", "predicted, new locations", "sd, spots", "sd, new locations")
    ]
    known = np.isfinite(predictions.obs_vector("C", layer="truth"))
    np.testing.assert_array_equal(_spots(row[0]).get_array(), predictions.obs_vector("C", layer="truth")[known])
    np.testing.assert_array_equal(_spots(row[1]).get_array(), predictions.obs_vector("C"))
    np.testing.assert_array_equal(_spots(row[2]).get_array(), new.obs_vector("C"))
    np.testing.assert_array_equal(_spots(row[3]).get_array(), predictions.obs_vector("C", layer="sd"))
    np.testing.assert_array_equal(_spots(row[4]).get_array(), new.obs_vector("C", layer="sd"))
    np.testing.assert_array_equal(_spots(row[4]).get_offsets(), new.obsm["spatial"])
    assert len({_spots(ax).get_clim() for ax in row[:3]}) == len({_spots(ax).get_clim() for ax in row[3:]}) == 1
    assert _spots(row[0]).get_clim() != _spots(row[3]).get_clim()
    for ax in axes:
        bottom, top = ax.get_ylim()
        assert top < 45 < 230 < bottom and ax.images[0].get_extent() == [0, 360, 280, 0]
    (bar,) = axes[0].lines
    (label,) = axes[0].texts
    assert label.get_text() == "100 µm" and np.ptp(bar.get_xdata()) == pytest.approx(100 / 2.5)
    assert not any(ax.lines for ax in axes[1:])


def test_maps_of_spots_alone_have_three_columns_and_no_bar_without_a_scale(predictions, figures):
    predictions.layers["sd"] = np.ones(predictions.shape)
    plots.plot_location_maps(predictions, ["A"], "unused.png")
    axes = [ax for ax in figures[0].axes if ax.get_label() != "<colorbar>"]
    assert [ax.get_title() for ax in axes] == ["A, measured", "predicted", "sd"]
    assert not axes[0].lines


def test_scatter_counts_and_means(figures):
    x = np.array([0.1, 0.2, 0.3, 0.5, np.nan, -0.2])
    y = np.array([0.2, 0.1, 0.4, 0.7, 0.9, np.nan])
    plots.plot_pcc_scatter(x, y, "6-NN mean", "model", "unused.png")
    (ax,) = figures[0].axes
    assert ax.get_title() == "3 of 4 genes above the diagonal"
    assert ax.get_legend().get_texts()[0].get_text() == "mean 0.275 → 0.350"
    np.testing.assert_allclose(ax.collections[0].get_offsets(), np.stack([x, y], axis=1)[:4])
    assert ax.get_xlim() == ax.get_ylim()
    assert "6-NN mean" in ax.get_xlabel()
    assert "model" in ax.get_ylabel()


def test_history_has_a_panel_per_stage_and_a_line_per_seed(figures):
    epochs = np.arange(5)
    rows = [("gat", 42, np.exp(-epochs), np.nan), ("spabit", 0, 1.0 - epochs, 2.0), ("spabit", 1, 3.0, 4.0)]
    history = pd.concat(
        pd.DataFrame({"stage": stage, "seed": seed, "epoch": epochs, "train_loss": train, "valid_loss": valid})
        for stage, seed, train, valid in rows
    )
    plots.plot_history(history, "unused.png")
    gat, spabit = figures[0].axes
    assert [len(ax.lines) for ax in (gat, spabit)] == [1, 4]
    assert (gat.get_title(), spabit.get_title()) == ("gat", "spabit")
    assert (gat.get_yscale(), spabit.get_yscale()) == ("log", "linear")  # a negative loss cannot be on a log axis
    np.testing.assert_allclose(gat.lines[0].get_ydata(), np.exp(-epochs))
    assert [text.get_text() for text in spabit.get_legend().get_texts()] == ["train", "valid"]


def test_files_are_written(predictions, tmp_path):
    path = tmp_path / "figures" / "maps.png"
    plots.plot_gene_maps(predictions, {"best": "A"}, path)
    plots.plot_pcc_scatter([0.1, 0.3], [0.2, np.nan], "a", "b", tmp_path / "scatter.png")
    history = pd.DataFrame({"stage": ["gat"], "seed": [0], "epoch": [0], "train_loss": [1.0], "valid_loss": [np.nan]})
    plots.plot_history(history, tmp_path / "history.png")
    plots.plot_calibration([0.1, 0.5, 0.9], [0.12, 0.5, 0.88], tmp_path / "calibration.png")
    for written in (path, *(tmp_path / f"{name}.png" for name in ("scatter", "history", "calibration"))):
        with Image.open(written) as image:
            assert image.format == "PNG"
            assert np.asarray(image.convert("L")).std() > 5


def test_import_leaves_pyplot_alone():
    code = "import sys, spabit_jax.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
