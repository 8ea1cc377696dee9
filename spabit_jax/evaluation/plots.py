"""Figures of a run: gene maps over the H&E, per-gene accuracy of two methods; and of a benchmark.

A function that takes a path writes a file, or one for each of several paths: PNG, PDF or SVG by the ending. It does so
through matplotlib's object-oriented interface: no display, no pyplot state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from spabit_jax.data.genes import check_genes
from spabit_jax.errors import InputError
from spabit_jax.evaluation.draw import (
    BLUE,
    GREY,
    ORANGE,
    PALETTE,
    TEXT,
    WIDTH,
    Files,
    colour_bar,
    colour_limits,
    draw_places,
    map_grid,
    of_gene,
    save,
    tidy,
)
from spabit_jax.evaluation.metrics import gene_metrics
from spabit_jax.evaluation.report import RIVALS
from spabit_jax.predictions import scale_of
from spabit_jax.scale import LABELS

NOT_PREDICTED = "not among these predictions (--genes=+NAME adds it to a run's panel)"


def plot_gene(adata: AnnData, gene: str, layer: str | None = None, ax: Axes | None = None) -> Axes:
    """Draws one gene over the faded image, with a colour bar.

    Args:
      adata: predictions, as ``plot_gene_maps`` takes them.
      gene: one of them.
      layer: None for the prediction, ``truth`` or ``sd``.
      ax: axes to draw into; those of a new figure by default.

    Returns:
      The axes.

    Raises:
      InputError: the gene is not among the predictions, or there is no such layer.
    """
    check_genes([gene], adata.var_names, NOT_PREDICTED)
    if layer is not None and layer not in adata.layers:
        raise InputError(f"no layer {layer!r} among {', '.join(adata.layers)}: give one of them, or None")
    values = np.asarray(of_gene(adata, gene, layer), float)
    ax = new_axes() if ax is None else ax
    known = values[np.isfinite(values)]
    limits = (0.0, float(np.quantile(known, 0.99)) or 1.0) if layer == "sd" else colour_limits(adata, gene)
    drawn = draw_places(ax, adata, values, limits, "magma" if layer == "sd" else "viridis")
    xy = np.asarray(adata.obsm["spatial"], float)
    low, high = xy.min(axis=0), xy.max(axis=0)
    margin = 0.03 * (high - low).max() or 1.0
    ax.set(xlim=(low[0] - margin, high[0] + margin), ylim=(high[1] + margin, low[1] - margin))  # y down
    ax.set(xticks=[], yticks=[], aspect="equal", title=f"{gene}, {layer or 'predicted'}")
    ax.figure.colorbar(drawn, ax=ax, shrink=0.8, label="sd of a measurement" if layer == "sd" else _label(adata))
    return ax


def new_axes() -> Axes:
    """Those of a figure that a notebook shows."""
    import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained")[1]


def plot_gene_maps(adata: AnnData, genes: Mapping[str, str], path: Files) -> None:
    """Draws a row per gene: given (the train spots) | predicted | measured, on one colour scale, over the faded image.

    In the predicted map test spots are full and train spots are rings. Where every spot is a train spot there is no
    third map, and where no truth is known the prediction stands alone.

    Args:
      adata: predictions (N, G): X predicted, ``layers["truth"]`` (NaN where unknown), ``obs["split"]`` (train, test,
        new), ``obsm["spatial"]`` (x, y) in full-resolution pixels; and, where there are such, the image in
        ``uns["spatial"]`` as scanpy has it, and scale, um_per_px and spot_px in ``uns["spabit"]``.
      genes: label → gene, such as ``{"best": "ERBB2"}``; the title adds the Pearson correlation over the test spots.
      path: the file to write, or several.

    Raises:
      InputError: a gene is not in the panel.
    """
    check_genes(genes.values(), adata.var_names, NOT_PREDICTED)
    split = adata.obs["split"].to_numpy()
    train, test = split == "train", split == "test"
    known = np.isfinite(adata[:, list(genes.values())].layers["truth"]).any(axis=1)
    given, compared = (train & known).any(), (known & ~train).any()
    xy = np.asarray(adata.obsm["spatial"], float)
    columns = [name for name, there in (("given", given), ("predicted", True), ("measured", compared)) if there]
    figure, axes = map_grid(adata, xy, len(genes), len(columns))
    for row, (label, gene) in zip(axes, genes.items(), strict=True):
        truth, predicted = of_gene(adata, gene, "truth"), of_gene(adata, gene)
        values = {"given": np.where(train, truth, np.nan), "predicted": predicted, "measured": truth}
        limits = colour_limits(adata, gene)
        for ax, column in zip(row, columns, strict=True):
            rings = train if column == "predicted" and not train.all() else None
            drawn = draw_places(ax, adata, values[column], limits, rings=rings)
            ax.set_title(f"given: {train.sum()} spots" if column == "given" else column, loc="left", fontsize=TEXT)
        title, scored = f"{gene} ({label})", test & np.isfinite(truth)
        if scored.any():
            pcc = gene_metrics(truth[scored, None], predicted[scored, None])["pcc"][0]
            title += f"\nPCC {pcc:.2f}, {np.count_nonzero(scored)} test spots"  # a line each: names can be long
        row[0].set_title(f"{title}\n{row[0].get_title(loc='left')}", loc="left", fontsize=TEXT)
        colour_bar(figure, drawn, row, [truth, predicted], _label(adata))
    figure.legend(handles=_legend_of_split(adata), loc="outside lower left", frameon=False, fontsize=TEXT)
    save(figure, path)


def plot_location_maps(
    adata: AnnData, genes: Sequence[str], path: Files, spots: AnnData | None = None
) -> None:
    """Draws two rows per gene, measured | predicted and below it sd, over the faded image.

    Colours of expression are those of the run's other maps of the gene; sd starts at 0.

    Args:
      adata: predictions (M, G) as in predictions.h5ad, ``layers["sd"]`` included.
      genes: the rows.
      path: the file to write, or several.
      spots: predictions at the measured spots, drawn before those of ``adata``; if None, ``adata`` has the truth, and
        the colours are by its own values.

    Raises:
      InputError: a gene is not in the panel.
    """
    check_genes(genes, adata.var_names, NOT_PREDICTED)
    at = {"": adata} if spots is None else {"\nat the spots": spots, "\nat new locations": adata}
    spots = adata if spots is None else spots
    measured = np.isfinite(spots[:, list(genes)].layers["truth"]).any()
    xy = np.concatenate([np.asarray(shown.obsm["spatial"], float) for shown in at.values()])
    figure, axes = map_grid(spots, xy, 2 * len(genes), len(at) + measured)
    for gene, expression_row, sd_row in zip(genes, axes[::2], axes[1::2], strict=True):
        truth, sd = of_gene(spots, gene, "truth"), of_gene(spots, gene, "sd")
        limits, sd_limits = colour_limits(spots, gene), (0.0, float(np.quantile(sd, 0.99)) or 1.0)
        predicted = {f"predicted{where}": (shown, of_gene(shown, gene)) for where, shown in at.items()}
        uncertain = {f"sd{where}": (shown, of_gene(shown, gene, "sd")) for where, shown in at.items()}
        if measured:
            predicted = {"measured": (spots, truth)} | predicted
            sd_row[0].set_visible(False)
            sd_row = sd_row[1:]
        for row, panels, ends, cmap, label in (
            (expression_row, predicted, limits, "viridis", _label(spots)),
            (sd_row, uncertain, sd_limits, "magma", "sd of a measurement"),
        ):
            for ax, (title, (shown, values)) in zip(row, panels.items(), strict=True):
                drawn = draw_places(ax, shown, values, ends, cmap, spots)
                ax.set_title(f"{gene}, {title}" if ax is row[0] else title, loc="left", fontsize=TEXT)
            colour_bar(figure, drawn, row, [values for _, values in panels.values()], label)
    save(figure, path)


@contextmanager
def one_panel(inches: float, path: Files) -> Iterator[Axes]:
    """Axes of a square figure, which is written once they are drawn into.

    Args:
      inches: its width and height.
      path: the file, or several.
    """
    figure = Figure(figsize=(inches, inches), layout="constrained")
    yield figure.subplots()
    save(figure, path)


def draw_pcc_scatter(ax: Axes, x: np.ndarray, y: np.ndarray, xlabel: str, ylabel: str) -> None:
    """Draws the accuracy of two methods gene by gene, with the diagonal and the means.

    Args:
      x, y: (G,) Pearson correlation per gene; genes that are NaN in either are left out.
      xlabel, ylabel: names of the methods.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    both = np.isfinite(x) & np.isfinite(y)
    x, y = x[both], y[both]
    low, high = min([0, *x, *y]) - 0.03, max([0.1, *x, *y]) + 0.03
    ax.plot([low, high], [low, high], color=GREY, linewidth=1)
    ax.scatter(x, y, s=14, color=BLUE, alpha=0.5, linewidth=0)
    if len(x):
        means = (x.mean(), y.mean())
        label = f"mean {means[0]:.3f} → {means[1]:.3f}"
        ax.scatter(*means, s=110, marker="P", color=ORANGE, edgecolor="white", zorder=3, label=label)
        ax.legend(loc="lower right", frameon=False)
    ax.set_title(f"{np.count_nonzero(y > x)} of {len(x)} genes above the diagonal", fontsize=11)
    ax.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    ax.set(xlabel=f"PCC per gene, {xlabel}", ylabel=f"PCC per gene, {ylabel}")
    tidy(ax)


def draw_calibration(ax: Axes, covered: Mapping[float, float]) -> None:
    """Draws which share of the measurements lies inside the predicted intervals, by what they say."""
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    ax.plot(list(covered), list(covered.values()), color=ORANGE, marker="o", markersize=4)
    ax.set(xlabel="level of the interval", ylabel="share of test measurements inside", aspect="equal")
    tidy(ax)


def plot_benchmark(
    shares: pd.DataFrame, models: Sequence[str], path: Files, title: str | None = None
) -> None:
    """Draws a row per section: the accuracy of each model as a share of what noise allows, over the baselines' range.

    Args:
      shares: mean PCC over the noise ceiling; a row per section, a column per method, NaN where it was not run. Columns
        that are neither models nor ``report.RIVALS`` are drawn only as a part of the range, which leaves out a
        baseline that is 0 everywhere: a constant prediction.
      models: the methods to set off from the others.
      path: the file to write, or several.
      title: of the figure.
    """
    shown = [method for method in (*RIVALS, *models) if method in shares]
    baselines = shares.drop(columns=[method for method in models if method in shares])
    baselines = baselines.loc[:, baselines.any()]
    lanes = 0.8 * ((np.arange(len(shown)) + 0.5) / max(len(shown), 1) - 0.5)  # of a row, whose height is 1
    figure = Figure(figsize=(WIDTH, len(shares) * max(0.36, 0.085 * len(shown)) + 1.5), layout="constrained")
    ax = figure.subplots()
    ax.use_sticky_edges = False  # or the axis would end where the range does, in the middle of a marker
    rows = np.arange(len(shares))
    low, high = baselines.min(axis=1), baselines.max(axis=1)
    ax.barh(rows, high - low, left=low, height=0.84, color="0.92", label="range of all baselines")
    hollow = {"facecolor": "white", "edgecolor": "0.25", "linewidth": 0.8, "s": 16}
    style = {method: {"marker": marker, **hollow} for method, marker in zip(RIVALS, cycle("osD^"), strict=False)}
    for method, marker, colour in zip(models, cycle("*PXdvph"), cycle(PALETTE), strict=False):
        style[method] = {"marker": marker, "color": colour, "linewidth": 0, "s": 64 if marker == "*" else 32}
    for i, (method, lane) in enumerate(zip(shown, lanes, strict=True)):
        label = RIVALS.get(method, method)
        ax.scatter(shares[method], rows + lane, label=label, zorder=4 - i / 100, **style[method])
    ax.set_yticks(rows, shares.index, fontsize=TEXT)
    ax.set(ylim=(len(shares) - 0.45, -0.55))  # the first on top
    ax.tick_params(axis="x", labelsize=TEXT)
    ax.set_xlabel("mean PCC of the genes, as a share of the noise ceiling", fontsize=TEXT)
    if title is not None:
        ax.set_title(title, fontsize=10)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=TEXT)
    tidy(ax)
    save(figure, path)


def _legend_of_split(adata: AnnData) -> list[Line2D]:
    train = (adata.obs["split"] == "train").to_numpy()
    itself = "with" if adata.uns.get("spabit", {}).get("train_spots_see_themselves") else "without"
    full = {"marker": "o", "linestyle": "", "color": GREY}
    ring = {**full, "markerfacecolor": "none", "markeredgewidth": 1.6, "markersize": 5}
    handles = []
    if not train.all():
        handles.append(Line2D([], [], label="predicted at a spot that the model was not given", **full))
    if train.any():
        style = full if train.all() else ring
        handles.append(Line2D([], [], label=f"predicted at a train spot, {itself} its own measurement", **style))
    return handles


def _label(adata: AnnData) -> str:
    return LABELS[scale_of(adata).name]
