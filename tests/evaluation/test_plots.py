"""What the figures show: values, scales, orientation; and that they leave no state behind."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib import rc_context
from matplotlib.collections import PathCollection
from PIL import Image
from scipy.stats import pearsonr

from spabit_jax.evaluation import curves, draw, plots
from spabit_jax.evaluation.draw import WIDTH, colour_limits
from spabit_jax.scale import LABELS

PITCH, SPOT_PX = 30.0, 16.0


@pytest.fixture
def predictions() -> AnnData:
    rng = np.random.default_rng(0)
    x, y = (axis.ravel() * PITCH + 50 for axis in np.meshgrid(np.arange(9), np.arange(7)))
    truth = np.log2(rng.poisson(4, (63, 3)) + 1.0)
    split = np.resize(["train", "test", "test", "new"], 63)
    adata = AnnData(
        X=np.maximum(truth + rng.normal(0, 1, truth.shape), 0),
        obs=pd.DataFrame({"split": split}, index=[f"s{i}" for i in range(63)]),
        var=pd.DataFrame(index=["A", "B", "C"]),
        obsm={"spatial": np.stack([x, y], axis=1)},
        layers={
            "truth": np.where((split == "new")[:, None], np.nan, truth),
            "sd": rng.uniform(0.5, 1, truth.shape),
        },
    )
    image = rng.integers(0, 255, (140, 180, 3), dtype=np.uint8)
    adata.uns["spatial"] = {"S": {"images": {"lowres": image}, "scalefactors": {"tissue_lowres_scalef": 0.5}}}
    adata.uns["spabit"] = {"spot_px": SPOT_PX, "lattice": "hex", "format": "visium"}
    return adata


@pytest.fixture
def figures(monkeypatch) -> list:
    """The figures that are made, instead of files."""
    made = []
    for module in (plots, curves):
        monkeypatch.setattr(module, "save", lambda figure, path: made.append(figure))
    return made


def places_at(adata: AnnData, xy: np.ndarray, **info) -> AnnData:
    """Predictions at new places."""
    rng = np.random.default_rng(1)
    new = AnnData(
        rng.uniform(0, 6, (len(xy), 3)),
        obs=pd.DataFrame({"split": "new"}, index=[f"grid_{i}" for i in range(len(xy))]),
        var=adata.var,
        obsm={"spatial": np.asarray(xy, float)},
        layers={"truth": np.full((len(xy), 3), np.nan), "sd": rng.uniform(0.5, 2, (len(xy), 3))},
    )
    new.uns = {**adata.uns, "spabit": {**adata.uns["spabit"], **info}}
    return new


def maps(figure) -> list:
    return [ax for ax in figure.axes if ax.get_label() != "<colorbar>" and ax.get_visible()]


def bars(figure) -> list:
    return [ax for ax in figure.axes if ax.get_label() == "<colorbar>"]


def title(ax) -> str:
    return ax.get_title(loc="left")


def shapes(ax) -> tuple[PathCollection, PathCollection]:
    """Rings and full places of a map."""
    rings, full = (c for c in ax.collections if isinstance(c, PathCollection))
    return rings, full


def width(places: PathCollection) -> float:
    """In pixels of the section."""
    return np.ptp(places.get_paths()[0].interpolated(20).vertices[:, 0])


def test_gene_maps_show_given_predicted_and_measured_on_one_scale(predictions, figures):
    plots.plot_gene_maps(predictions, {"best": "B", "worst": "C"}, "unused.png")
    axes = maps(figures[0])
    assert len(axes) == 6 and len(bars(figures[0])) == 2
    split, xy = predictions.obs["split"].to_numpy(), predictions.obsm["spatial"]
    train, test = split == "train", split == "test"
    for i, (gene, label) in enumerate([("B", "best"), ("C", "worst")]):
        given, predicted, measured = axes[3 * i : 3 * i + 3]
        truth, prediction = predictions.obs_vector(gene, layer="truth"), predictions.obs_vector(gene)
        np.testing.assert_array_equal(shapes(given)[1].get_array(), truth[train])
        np.testing.assert_array_equal(shapes(given)[1].get_offsets(), xy[train])
        np.testing.assert_array_equal(shapes(predicted)[0].get_array(), prediction[train])
        np.testing.assert_array_equal(shapes(predicted)[1].get_array(), prediction[~train])
        np.testing.assert_array_equal(shapes(predicted)[1].get_offsets(), xy[~train])
        np.testing.assert_array_equal(shapes(measured)[1].get_array(), truth[split != "new"])
        limits = colour_limits(predictions, gene)
        assert all(places.get_clim() == limits for ax in (given, predicted, measured) for places in shapes(ax))
        pcc = f"PCC {pearsonr(truth[test], prediction[test]).statistic:.2f}, {test.sum()} test spots"
        assert title(given) == f"{gene} ({label})\n{pcc}\ngiven: {train.sum()} spots"
        assert (title(predicted), title(measured)) == ("predicted", "measured")
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "predicted at a spot that the model was not given",
        "predicted at a train spot, without its own measurement",
    ]


def test_a_ring_has_a_hole_and_the_width_of_a_spot(predictions, figures):
    plots.plot_gene_maps(predictions, {"best": "A"}, "unused.png")
    rings, full = shapes(maps(figures[0])[1])
    assert width(rings) == pytest.approx(width(full)) == pytest.approx(SPOT_PX, rel=0.01)
    ring = rings.get_paths()[0]
    areas = [np.abs(part.interpolated(20).vertices) for part in (ring, full.get_paths()[0])]
    assert np.hypot(*areas[0].T).min() == pytest.approx(0.6 * SPOT_PX / 2, rel=0.01)
    assert np.hypot(*areas[1].T).min() == pytest.approx(SPOT_PX / 2, rel=0.01)


def test_where_every_spot_is_given_there_is_nothing_to_compare_with(predictions, figures):
    predictions = predictions[predictions.obs["split"] != "new"].copy()
    predictions.obs["split"] = "train"
    predictions.uns["spabit"]["train_spots_see_themselves"] = True
    plots.plot_gene_maps(predictions, {"first": "A"}, "unused.png")
    n = predictions.n_obs
    assert [title(ax) for ax in maps(figures[0])] == [f"A (first)\ngiven: {n} spots", "predicted"]
    assert len(shapes(maps(figures[0])[1])[1].get_offsets()) == n  # full, not rings
    (text,) = figures[0].legends[0].get_texts()
    assert text.get_text() == "predicted at a train spot, with its own measurement"


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


def test_gene_maps_without_image_or_truth(predictions, figures):
    predictions.uns = {}
    predictions.layers["truth"][:] = np.nan
    predictions.obs["split"] = "new"
    plots.plot_gene_maps(predictions, {"first": "A", "second": "B"}, "unused.png")
    axes = maps(figures[0])
    assert [title(ax) for ax in axes] == ["A (first)\npredicted", "B (second)\npredicted"]
    assert not axes[0].images and not axes[0].lines
    assert width(shapes(axes[0])[1]) == pytest.approx(PITCH / 2, rel=0.01)


@pytest.mark.parametrize("unit", [1.0, 1 / PITCH, 1e-5])
def test_a_section_fills_its_map_whatever_the_unit_of_its_positions(predictions, figures, unit):
    del predictions.uns["spatial"]
    predictions.obsm["spatial"] = predictions.obsm["spatial"] * unit
    predictions.uns["spabit"]["spot_px"] *= unit
    plots.plot_gene_maps(predictions, {"best": "A"}, "unused.png")
    extent = np.ptp(predictions.obsm["spatial"][:, 0])
    for ax in (*maps(figures[0]), plots.plot_gene(predictions, "A")):
        assert np.ptp(ax.get_xlim()) == pytest.approx(1.06 * extent, rel=1e-3)


def test_colours_of_a_gene_are_the_same_in_all_figures_of_a_run(predictions, figures):
    new = places_at(predictions, predictions.obsm["spatial"][:40] / 2 + 30)
    plots.plot_gene_maps(predictions, {"best": "B"}, "unused.png")
    plots.plot_location_maps(new, ["C", "B"], "unused.png", spots=predictions)
    plots.plot_location_maps(new, ["B"], "unused.png")
    of_genes, of_places, alone = (maps(figure) for figure in figures)
    limits = colour_limits(predictions, "B")
    assert shapes(of_genes[0])[1].get_clim() == limits
    assert all(shapes(ax)[1].get_clim() == limits for ax in of_places[5:8])
    assert shapes(alone[0])[1].get_clim() == colour_limits(new, "B") != limits


def test_colour_limits_hold_what_was_measured_and_predicted(predictions):
    low, high = colour_limits(predictions, "A")
    values = np.concatenate([predictions.obs_vector("A"), predictions.obs_vector("A", layer="truth")])
    values = values[np.isfinite(values)]
    assert 0 <= low < high and np.mean((values >= low) & (values <= high)) >= 0.97
    predictions.X[:] = predictions.layers["truth"][:] = 0
    assert colour_limits(predictions, "A") == (0, 1)
    predictions.X[3] = 5  # at less than a hundredth of the places
    assert colour_limits(predictions, "A") == (0, 5)


def test_bars_are_pointed_where_values_lie_beyond_the_colours(predictions, figures):
    predictions.layers["truth"][0, 0] = 40  # a train spot
    plots.plot_gene_maps(predictions, {"best": "A"}, "unused.png")
    predictions.X[:], predictions.layers["truth"] = 2, np.full((63, 3), 2.0)
    plots.plot_gene_maps(predictions, {"best": "A"}, "unused.png")
    pointed, plain = (bars(figure)[0]._colorbar for figure in figures)
    assert (pointed.extend, plain.extend) == ("max", "neither")


@pytest.mark.parametrize("scale", [None, "log2_count", "log1p_normalised"])
def test_bars_say_what_the_numbers_are(predictions, figures, scale):
    if scale:
        predictions.uns["spabit"]["scale"] = scale
    plots.plot_gene_maps(predictions, {"best": "A"}, "unused.png")
    plots.plot_location_maps(predictions, ["A"], "unused.png")
    words = LABELS[scale or "log2_count"]
    assert [ax.get_ylabel() for ax in bars(figures[0])] == [words]
    assert [ax.get_ylabel() for ax in bars(figures[1])] == [words, "sd of a measurement"]


def test_location_maps_show_each_kind_and_lie_on_the_image(predictions, figures):
    new = places_at(predictions, predictions.obsm["spatial"][:40] / 2 + 30)
    plots.plot_location_maps(new, ["B", "C"], "unused.png", spots=predictions)
    axes = maps(figures[0])
    assert [title(ax) for ax in axes[5:]] == [
        *("C, measured", "predicted\nat the spots", "predicted\nat new locations"),
        *("C, sd\nat the spots", "sd\nat new locations"),
    ]
    truth = predictions.obs_vector("C", layer="truth")
    shown = [
        *(truth[np.isfinite(truth)], predictions.obs_vector("C"), new.obs_vector("C")),
        *(predictions.obs_vector("C", layer="sd"), new.obs_vector("C", layer="sd")),
    ]
    for ax, values in zip(axes[5:], shown, strict=True):
        np.testing.assert_array_equal(shapes(ax)[1].get_array(), values)
    np.testing.assert_array_equal(shapes(axes[9])[1].get_offsets(), new.obsm["spatial"])
    for ax in axes:
        bottom, top = ax.get_ylim()
        assert top < 45 < 230 < bottom and ax.images[0].get_extent() == [0, 360, 280, 0]


def test_sd_starts_at_nothing(predictions, figures):
    plots.plot_location_maps(places_at(predictions, [[60, 60], [200, 90]]), ["A"], "unused.png", predictions)
    of_sd = [shapes(ax)[1] for ax in maps(figures[0]) if "sd" in title(ax)]
    assert len(of_sd) == 2 and {places.get_clim()[0] for places in of_sd} == {0}
    assert len({places.get_clim()[1] for places in of_sd}) == 1


def test_maps_of_spots_alone(predictions, figures):
    plots.plot_location_maps(predictions, ["A"], "unused.png")
    predictions.layers["truth"][:] = np.nan
    plots.plot_location_maps(predictions, ["A"], "unused.png")
    assert [title(ax) for ax in maps(figures[0])] == ["A, measured", "predicted", "A, sd"]
    assert [title(ax) for ax in maps(figures[1])] == ["A, predicted", "A, sd"]


def test_a_scale_bar_lies_below_the_places_of_the_first_map_where_micrometres_are_known(predictions, figures):
    plots.plot_gene_maps(predictions, {"best": "A"}, "unused.png")
    predictions.uns["spabit"]["um_per_px"] = 2.5
    plots.plot_gene_maps(predictions, {"best": "A"}, "unused.png")
    plots.plot_location_maps(predictions, ["A"], "unused.png")
    assert not any(ax.lines for ax in maps(figures[0]))
    for figure in figures[1:]:
        first, *others = maps(figure)
        (bar,), (label,) = first.lines, first.texts
        assert label.get_text() == "100 µm" and np.ptp(bar.get_xdata()) == pytest.approx(100 / 2.5)
        assert (bar.get_ydata() > 230 + SPOT_PX / 2).all() and (bar.get_ydata() < first.get_ylim()[0]).all()
        assert not any(ax.lines or ax.texts for ax in others)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(300, SPOT_PX), (PITCH, SPOT_PX), (PITCH / 2, PITCH / 2), (PITCH / 4, PITCH / 4)],
)
def test_places_are_as_wide_as_a_spot_or_touch(predictions, figures, step, expected):
    x, y = np.meshgrid(np.arange(4) * step, np.arange(2) * step)
    new = places_at(predictions, np.stack([x.ravel(), y.ravel()], axis=1) + 50)
    plots.plot_location_maps(new, ["A"], "unused.png", predictions)
    plots.plot_location_maps(new[:2].copy(), ["A"], "unused.png", predictions)
    for figure in figures:
        assert width(shapes(maps(figure)[2])[1]) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("n", [1, 2])
def test_a_few_places_are_no_wider_than_a_spot_whoever_says_how_wide(predictions, figures, n):
    def drawn() -> float:
        new = places_at(predictions, [[60, 60], [260, 90]][:n])
        plots.plot_location_maps(new, ["A"], "unused.png", predictions)
        return width(shapes(maps(figures[-1])[2])[1])

    scalefactors = predictions.uns["spatial"]["S"]["scalefactors"]
    scalefactors["spot_diameter_fullres"] = 14.0
    assert drawn() == pytest.approx(SPOT_PX, rel=0.01)
    del predictions.uns["spabit"]["spot_px"]
    assert drawn() == pytest.approx(14, rel=0.01)
    del scalefactors["spot_diameter_fullres"]
    assert drawn() == pytest.approx(15, rel=0.01)  # half the pitch of the measured spots, every fourth of which is new


@pytest.mark.parametrize(
    ("format", "lattice", "locations", "square"),
    [
        *(("visium", "hex", "grid:2x", False), ("st", "square", "grid:2x", False), ("h5ad", "square", "spots", False)),
        *(("visium_hd", "square", "grid:2x", True), ("visium", "square", "spots", True)),
        *(("xenium", "square", "um:8", True), ("visium", "hex", "um:50", True), ("st", "square", "um:50", True)),
    ],
)
def test_bins_and_grids_in_micrometres_are_squares_and_spots_are_discs(
    predictions, figures, format, lattice, locations, square
):
    predictions.uns["spabit"] |= {"format": format, "lattice": lattice}
    new = places_at(predictions, [[60, 60], [260, 90]], locations=locations)
    plots.plot_location_maps(new, ["A"], "unused.png", predictions)
    outline = shapes(maps(figures[0])[2])[1].get_paths()[0]
    assert (len(outline.vertices) == 5) == square
    assert width(shapes(maps(figures[0])[2])[1]) == pytest.approx(SPOT_PX, rel=0.01)


def test_squares_are_turned_as_the_grid_is_and_tile_it(predictions, figures):
    turn = np.array([[np.cos(0.3), np.sin(0.3)], [-np.sin(0.3), np.cos(0.3)]])
    predictions.obsm["spatial"] = predictions.obsm["spatial"] @ turn
    predictions.uns["spabit"] |= {"format": "visium_hd", "lattice": "square", "spot_px": PITCH}
    plots.plot_gene_maps(predictions, {"best": "A"}, "unused.png")
    corners = shapes(maps(figures[0])[1])[1].get_paths()[0].vertices[:4]
    sides = np.roll(corners, -1, axis=0) - corners
    np.testing.assert_allclose(np.linalg.norm(sides, axis=1), PITCH)
    along = np.abs(sides @ turn.T)  # in the frame of the grid
    np.testing.assert_allclose(np.sort(along, axis=1), [[0, PITCH]] * 4, atol=1e-6)


def test_scatter_counts_and_means(figures):
    x = np.array([0.1, 0.2, 0.3, 0.5, np.nan, -0.2])
    y = np.array([0.2, 0.1, 0.4, 0.7, 0.9, np.nan])
    with plots.one_panel(4.6, "unused.png") as ax:
        plots.draw_pcc_scatter(ax, x, y, "6-NN mean", "model")
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
    curves.plot_history(history, "unused.png", weight=0.43)
    gat, spabit = figures[0].axes
    assert [len(ax.lines) for ax in (gat, spabit)] == [1, 4]
    assert gat.get_title() == "training loss of the graph attention network"
    assert spabit.get_title() == "training loss of the SpaBiT networks\n(weight in the prediction: 0.43)"
    assert (gat.get_yscale(), spabit.get_yscale()) == ("log", "linear")  # a negative loss cannot be on a log axis
    np.testing.assert_allclose(gat.lines[0].get_ydata(), np.exp(-epochs))
    assert [text.get_text() for text in spabit.get_legend().get_texts()] == ["train", "valid"]


def test_errors_of_pretraining_stand_beside_the_bank_and_the_limit(figures):
    columns = ("tasks", "network", "bank", "network_gaussian", "bank_gaussian", "exact")
    errors = pd.DataFrame({name: np.arange(3) + 10.0 * i for i, name in enumerate(columns)})
    curves.plot_pretraining(errors, "unused.png")
    shown = [[(line.get_label(), line.get_ydata()[0]) for line in ax.lines] for ax in figures[0].axes]
    assert shown == [[("network", 10), ("bank", 20)], [("network", 30), ("bank", 40), ("exact", 50)]]


def test_benchmark_sets_models_off_from_a_range_of_baselines(figures):
    shares = pd.DataFrame(
        {
            "gene_mean": [0.0, 0.0, np.nan],
            "knn_mean": [0.4, 0.5, np.nan],
            "ridge": [0.6, np.nan, np.nan],
            "kriging_learned": [0.7, 0.6, np.nan],
            "default": [0.7, 0.6, 0.8],
            "default_related": [0.7, 0.6, np.nan],
        },
        index=["A", "B", "C"],
    )
    plots.plot_benchmark(shares, ["default", "default_related"], "unused.png", title="lattice")
    (ax,), (legend,) = figures[0].axes, figures[0].legends
    assert ax.get_title() == "lattice" and ax.get_legend() is None
    methods = ["knn_mean", "kriging_learned", "default", "default_related"]
    named = ["mean of 6 nearest spots", "learned kriging", "default", "default_related", "range of all baselines"]
    assert [text.get_text() for text in legend.get_texts()] == named
    for dots, method in zip(ax.collections, methods, strict=True):
        x, y = np.ma.filled(dots.get_offsets(), np.nan).T
        np.testing.assert_array_equal(x, shares[method])
        assert (np.abs(y - np.arange(3))[np.isfinite(x)] < 0.42).all()  # in the row of its section
    lanes = [float(dots.get_offsets()[0, 1]) for dots in ax.collections]
    assert len(set(lanes)) == 4  # equal values do not hide each other
    looks = {(tuple(dots.get_facecolor()[0]), dots.get_paths()[0].vertices.tobytes()) for dots in ax.collections}
    assert len(looks) == 4
    ranges = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in ax.patches]
    np.testing.assert_allclose(ranges, [(0.4, 0.7), (0.5, 0.6), (np.nan, np.nan)])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["A", "B", "C"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first section on top


def test_files_are_written(predictions, tmp_path):
    path = tmp_path / "figures" / "maps.png"
    plots.plot_gene_maps(predictions, {"best": "A"}, path)
    with plots.one_panel(4.6, tmp_path / "scatter.png") as ax:
        plots.draw_pcc_scatter(ax, [0.1, 0.3], [0.2, np.nan], "a", "b")
    history = pd.DataFrame({"stage": ["gat"], "seed": [0], "epoch": [0], "train_loss": [1.0], "valid_loss": [np.nan]})
    curves.plot_history(history, tmp_path / "history.png")
    with plots.one_panel(3.6, tmp_path / "calibration.png") as ax:
        plots.draw_calibration(ax, {0.1: 0.12, 0.5: 0.5, 0.9: 0.88})
    plots.plot_location_maps(predictions, ["A"], tmp_path / "locations.png")
    plots.plot_benchmark(pd.DataFrame({"ridge": [0.4], "mine": [0.5]}, ["A"]), ["mine"], tmp_path / "benchmark.png")
    names = ("scatter", "history", "calibration", "locations", "benchmark")
    for written in (path, *(tmp_path / f"{name}.png" for name in names)):
        with Image.open(written) as image:
            assert image.format == "PNG"
            assert np.asarray(image.convert("L")).std() > 5


@pytest.mark.parametrize("setting", ["figure.autolayout", "figure.constrained_layout.use"])
def test_settings_of_layouts_change_nothing(predictions, tmp_path, setting):
    plots.plot_gene_maps(predictions, {"best": "A"}, tmp_path / "own.png")
    with rc_context({setting: True}):
        plots.plot_gene_maps(predictions, {"best": "A"}, tmp_path / "set.png")
    assert (tmp_path / "own.png").read_bytes() == (tmp_path / "set.png").read_bytes()


def test_pdf_and_svg_keep_text_as_text(predictions, tmp_path, monkeypatch):
    paths = [tmp_path / f"maps.{suffix}" for suffix in ("png", "pdf", "svg")]
    plots.plot_gene_maps(predictions, {"best": "A"}, paths)
    _, pdf, svg = (path.read_bytes() for path in paths)
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf  # TrueType, which can be edited
    assert b"<text" in svg and b"measured" in svg
    width = float(re.search(rb'<svg [^>]*width="([\d.]+)pt"', svg)[1]) / 72
    assert width == pytest.approx(WIDTH, rel=0.1)
    n_shapes = svg.count(b"<use ")
    monkeypatch.setattr(draw, "AS_PIXELS", 10)
    plots.plot_gene_maps(predictions, {"best": "A"}, paths[2])
    assert paths[2].read_bytes().count(b"<use ") < n_shapes - 100


def test_import_leaves_pyplot_alone():
    code = "import sys, spabit_jax.evaluation.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
