"""Figures of a run: gene maps over the H&E, per-gene accuracy of two methods, and losses; and of a benchmark.

Every function writes one PNG through matplotlib's object-oriented interface, so no display and no pyplot state.

Places are drawn as wide as what was measured there, ``uns["spabit"]["spot_px"]``, or less where they lie closer: they
touch and do not overlap. Spots are discs, those of legacy ST on its square lattice too. Squares are the places of a
``um:`` grid, and those of a section whose lattice is square and whose format has bins (``SQUARE_FORMATS``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.path import Path as Outline
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import AffineDeltaTransform
from scipy.spatial import KDTree

from spabit_jax.data.genes import check_genes
from spabit_jax.evaluation.metrics import gene_metrics
from spabit_jax.evaluation.report import RIVALS
from spabit_jax.files import replacing
from spabit_jax.neighbours import spot_pitch
from spabit_jax.scale import LABELS

SQUARE_FORMATS = ("visium", "visium_hd", "xenium", "spatialdata")  # visium with a square lattice: DBiT-seq and its like
STAGES = {"gat": "training loss of the graph attention network", "spabit": "training loss of the SpaBiT networks"}
# Okabe and Ito: told apart by the colour-blind
_BLUE, _ORANGE, _GREEN, _PURPLE, _SKY, _YELLOW = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
_PALETTE = (_ORANGE, _BLUE, _GREEN, _PURPLE, _SKY, _YELLOW, "black")
_GREY = "0.45"
NOT_PREDICTED = "not among these predictions (--genes=+NAME adds it to a run's panel)"
_DPI = 200
_WIDTH = 5.4  # inches: text of _TEXT points is still read on a phone
_TEXT = 8.5
_HOLE = 0.6  # of a ring, as a share of its width


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
      InputError: the gene is not among the predictions.
    """
    check_genes([gene], adata.var_names, NOT_PREDICTED)
    values = np.asarray(adata.obs_vector(gene, layer=layer), float)
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(layout="constrained")
    known = values[np.isfinite(values)]
    limits = (0.0, float(np.quantile(known, 0.99)) or 1.0) if layer == "sd" else colour_limits(adata, gene)
    drawn = _draw_places(ax, adata, values, limits, "magma" if layer == "sd" else "viridis")
    xy = np.asarray(adata.obsm["spatial"], float)
    low, high = xy.min(axis=0), xy.max(axis=0)
    margin = 0.03 * (high - low).max() + 1
    ax.set(xlim=(low[0] - margin, high[0] + margin), ylim=(high[1] + margin, low[1] - margin))  # y down
    ax.set(xticks=[], yticks=[], aspect="equal", title=f"{gene}, {layer or 'predicted'}")
    ax.figure.colorbar(drawn, ax=ax, shrink=0.8, label="sd of a measurement" if layer == "sd" else _label(adata))
    return ax


def plot_gene_maps(adata: AnnData, genes: Mapping[str, str], path: str | os.PathLike) -> None:
    """Draws a row per gene: given (the train spots) | predicted | measured, on one colour scale, over the faded image.

    In the predicted map test spots are full and train spots are rings. Where every spot is a train spot there is no
    third map, and where no truth is known the prediction stands alone.

    Args:
      adata: predictions (N, G): X predicted, ``layers["truth"]`` (NaN where unknown), ``obs["split"]`` (train, test,
        new), ``obsm["spatial"]`` (x, y) in full-resolution pixels; and, where there are such, the image in
        ``uns["spatial"]`` as scanpy has it, and scale, um_per_px and spot_px in ``uns["spabit"]``.
      genes: label → gene, such as ``{"best": "ERBB2"}``; the title adds the Pearson correlation over the test spots.
      path: the PNG to write.

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
    figure, axes = _map_grid(adata, xy, len(genes), len(columns))
    for row, (label, gene) in zip(axes, genes.items(), strict=True):
        truth, predicted = adata.obs_vector(gene, layer="truth"), adata.obs_vector(gene)
        values = {"given": np.where(train, truth, np.nan), "predicted": predicted, "measured": truth}
        limits = colour_limits(adata, gene)
        for ax, column in zip(row, columns, strict=True):
            rings = train if column == "predicted" and not train.all() else None
            drawn = _draw_places(ax, adata, values[column], limits, rings=rings)
            ax.set_title(f"given: {train.sum()} spots" if column == "given" else column, loc="left", fontsize=_TEXT)
        title, scored = f"{gene} ({label})", test & np.isfinite(truth)
        if scored.any():
            pcc = gene_metrics(truth[scored, None], predicted[scored, None])["pcc"][0]
            title += f", PCC {pcc:.2f} over {np.count_nonzero(scored)} test spots"
        row[0].set_title(f"{title}\n{row[0].get_title(loc='left')}", loc="left", fontsize=_TEXT)
        _colour_bar(figure, drawn, row, [truth, predicted], _label(adata))
    figure.legend(handles=_legend_of_split(adata), loc="outside lower left", frameon=False, fontsize=_TEXT)
    _save(figure, path)


def colour_limits(spots: AnnData, gene: str) -> tuple[float, float]:
    """The ends of a gene's colours in every map of a run: the 1% and 99% quantiles of what was measured and predicted.

    Args:
      spots: content of the run's predictions.h5ad.
    """
    values = np.concatenate([spots.obs_vector(gene, layer="truth"), spots.obs_vector(gene)])
    values = values[np.isfinite(values)]
    low, high = np.maximum(np.quantile(values, [0.01, 0.99]), 0)
    high = high if high > low else values.max()  # of a gene that is rarely seen
    return float(low), float(high if high > low else low + 1)


def plot_location_maps(
    adata: AnnData, genes: Sequence[str], path: str | os.PathLike, spots: AnnData | None = None
) -> None:
    """Draws two rows per gene, measured | predicted and below it sd, over the faded image.

    Colours of expression are those of the run's other maps of the gene; sd starts at 0.

    Args:
      adata: predictions (M, G) as in predictions.h5ad, ``layers["sd"]`` included.
      genes: the rows.
      path: the PNG to write.
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
    figure, axes = _map_grid(spots, xy, 2 * len(genes), len(at) + measured)
    for gene, expression_row, sd_row in zip(genes, axes[::2], axes[1::2], strict=True):
        truth, sd = spots.obs_vector(gene, layer="truth"), spots.obs_vector(gene, layer="sd")
        limits, sd_limits = colour_limits(spots, gene), (0.0, float(np.quantile(sd, 0.99)) or 1.0)
        predicted = {f"predicted{where}": (shown, shown.obs_vector(gene)) for where, shown in at.items()}
        uncertain = {f"sd{where}": (shown, shown.obs_vector(gene, layer="sd")) for where, shown in at.items()}
        if measured:
            predicted = {"measured": (spots, truth)} | predicted
            sd_row[0].set_visible(False)
            sd_row = sd_row[1:]
        for row, panels, ends, cmap, label in (
            (expression_row, predicted, limits, "viridis", _label(spots)),
            (sd_row, uncertain, sd_limits, "magma", "sd of a measurement"),
        ):
            for ax, (title, (shown, values)) in zip(row, panels.items(), strict=True):
                drawn = _draw_places(ax, shown, values, ends, cmap, spots)
                ax.set_title(f"{gene}, {title}" if ax is row[0] else title, loc="left", fontsize=_TEXT)
            _colour_bar(figure, drawn, row, [values for _, values in panels.values()], label)
    _save(figure, path)


def plot_pcc_scatter(x: np.ndarray, y: np.ndarray, xlabel: str, ylabel: str, path: str | os.PathLike) -> None:
    """Draws the accuracy of two methods gene by gene, with the diagonal and the means.

    Args:
      x, y: (G,) Pearson correlation per gene; genes that are NaN in either are left out.
      xlabel, ylabel: names of the methods.
      path: the PNG to write.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    both = np.isfinite(x) & np.isfinite(y)
    x, y = x[both], y[both]
    figure = Figure(figsize=(4.6, 4.6), layout="constrained")
    ax = figure.subplots()
    low, high = min(0, *x, *y) - 0.03, max(0.1, *x, *y) + 0.03
    ax.plot([low, high], [low, high], color=_GREY, linewidth=1)
    ax.scatter(x, y, s=14, color=_BLUE, alpha=0.5, linewidth=0)
    if len(x):
        means = (x.mean(), y.mean())
        label = f"mean {means[0]:.3f} → {means[1]:.3f}"
        ax.scatter(*means, s=110, marker="P", color=_ORANGE, edgecolor="white", zorder=3, label=label)
        ax.legend(loc="lower right", frameon=False)
    ax.set_title(f"{np.count_nonzero(y > x)} of {len(x)} genes above the diagonal", fontsize=11)
    ax.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    ax.set(xlabel=f"PCC per gene, {xlabel}", ylabel=f"PCC per gene, {ylabel}")
    _tidy(ax)
    _save(figure, path)


def plot_history(history: pd.DataFrame, path: str | os.PathLike, weight: float | None = None) -> None:
    """Draws the losses over the epochs: a panel per stage, a line per seed.

    Args:
      history: columns stage, seed, epoch, train_loss, valid_loss (NaN where there was no validation).
      path: the PNG to write.
      weight: of the SpaBiT networks in the prediction, for the title.
    """
    stages = history["stage"].unique()
    figure = Figure(figsize=(4.2 * len(stages), 3.2), layout="constrained")
    for ax, stage in zip(figure.subplots(1, len(stages), squeeze=False)[0], stages, strict=True):
        rows = history[history["stage"] == stage]
        for column, colour in (("train_loss", _BLUE), ("valid_loss", _ORANGE)):
            known = rows.dropna(subset=[column])
            for i, (_, run) in enumerate(known.groupby("seed")):
                label = column.removesuffix("_loss") if i == 0 else None
                marker = "." if len(run) == 1 else None  # a single epoch makes no line
                ax.plot(run["epoch"], run[column], color=colour, alpha=0.7, linewidth=1.2, marker=marker, label=label)
        losses = rows[["train_loss", "valid_loss"]].to_numpy(float)
        if np.nanmin(losses) > 0:
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter(NullFormatter())
        title = STAGES.get(stage, stage)
        if stage == "spabit" and weight is not None:
            title += f"\n(weight in the prediction: {weight:.2f})"
        ax.set(xlabel="epoch", ylabel="loss")
        ax.set_title(title, fontsize=10)
        ax.legend(frameon=False)
        _tidy(ax)
    _save(figure, path)


def plot_calibration(levels: Sequence[float], covered: Sequence[float], path: str | os.PathLike) -> None:
    """Draws which share of the measurements lies inside the predicted intervals, against what the intervals say.

    Args:
      levels: of the intervals, between 0 and 1.
      covered: share of measurements inside those of each level.
      path: the PNG to write.
    """
    figure = Figure(figsize=(3.6, 3.6), layout="constrained")
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle="--")
    ax.plot(levels, covered, color=_ORANGE, marker="o", markersize=4)
    ax.set(xlabel="level of the interval", ylabel="share of test measurements inside", aspect="equal")
    _tidy(ax)
    _save(figure, path)


def plot_benchmark(
    shares: pd.DataFrame, models: Sequence[str], path: str | os.PathLike, title: str | None = None
) -> None:
    """Draws a row per section: the accuracy of each model as a share of what noise allows, over the baselines' range.

    Args:
      shares: mean PCC over the noise ceiling; a row per section, a column per method, NaN where it was not run. Columns
        that are neither models nor ``report.RIVALS`` are drawn only as a part of the range, which leaves out a
        baseline that is 0 everywhere: a constant prediction.
      models: the methods to set off from the others.
      path: the PNG to write.
      title: of the figure.
    """
    shown = [method for method in (*RIVALS, *models) if method in shares]
    baselines = shares.drop(columns=[method for method in models if method in shares])
    baselines = baselines.loc[:, baselines.any()]
    lanes = 0.8 * ((np.arange(len(shown)) + 0.5) / max(len(shown), 1) - 0.5)  # of a row, whose height is 1
    figure = Figure(figsize=(_WIDTH, len(shares) * max(0.36, 0.085 * len(shown)) + 1.5), layout="constrained")
    ax = figure.subplots()
    ax.use_sticky_edges = False  # or the axis would end where the range does, in the middle of a marker
    rows = np.arange(len(shares))
    low, high = baselines.min(axis=1), baselines.max(axis=1)
    ax.barh(rows, high - low, left=low, height=0.84, color="0.92", label="range of all baselines")
    hollow = {"facecolor": "white", "edgecolor": "0.25", "linewidth": 0.8, "s": 16}
    style = {method: {"marker": marker, **hollow} for method, marker in zip(RIVALS, cycle("osD^"), strict=False)}
    for method, marker, colour in zip(models, cycle("*PXdvph"), cycle(_PALETTE), strict=False):
        style[method] = {"marker": marker, "color": colour, "linewidth": 0, "s": 64 if marker == "*" else 32}
    for i, (method, lane) in enumerate(zip(shown, lanes, strict=True)):
        label = RIVALS.get(method, method)
        ax.scatter(shares[method], rows + lane, label=label, zorder=4 - i / 100, **style[method])
    ax.set_yticks(rows, shares.index, fontsize=_TEXT)
    ax.set(ylim=(len(shares) - 0.45, -0.55))  # the first on top
    ax.tick_params(axis="x", labelsize=_TEXT)
    ax.set_xlabel("mean PCC of the genes, as a share of the noise ceiling", fontsize=_TEXT)
    if title is not None:
        ax.set_title(title, fontsize=10)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=_TEXT)
    _tidy(ax)
    _save(figure, path)


def _map_grid(adata: AnnData, xy: np.ndarray, n_rows: int, n_columns: int) -> tuple[Figure, np.ndarray]:
    """A figure of maps (n_rows, n_columns) over the extent of (N, 2) places, y down; a scale bar where µm are known."""
    um_per_px = adata.uns.get("spabit", {}).get("um_per_px")
    low, high = xy.min(axis=0), xy.max(axis=0)
    margin = 0.03 * (high - low).max() + 1
    low, high = low - margin, high + margin
    panel = min(2.3, (_WIDTH - 0.7) / n_columns)  # inches
    inch = (high - low)[0] / panel  # pixels
    bar_y = high[1] + 0.08 * inch  # below all places
    high[1] += 0.2 * inch * (um_per_px is not None)
    width, height = high - low
    size = (panel * n_columns + 0.7, n_rows * (panel * min(1.6, height / width) + 0.45) + 0.4)
    figure = Figure(figsize=size, layout="compressed")
    axes = figure.subplots(n_rows, n_columns, squeeze=False)
    for ax in axes.flat:
        ax.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), xticks=[], yticks=[], aspect="equal")
        ax.spines[:].set_color("0.8")
    if um_per_px is not None:
        um = _round_length(width * um_per_px / 4)
        ends = low[0] + 0.06 * inch + np.array([0, um / um_per_px])
        axes[0, 0].plot(ends, [bar_y, bar_y], color="black", linewidth=2, solid_capstyle="butt")
        where = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
        axes[0, 0].annotate(f"{um:g} µm", (ends[1], bar_y), fontsize=_TEXT, **where)
    return figure, axes


def _round_length(most: float) -> float:
    """1, 2 or 5 times a power of ten."""
    power = 10.0 ** np.floor(np.log10(most))
    return max(step * power for step in (1, 2, 5) if step * power <= most)


def _draw_places(
    ax: Axes,
    adata: AnnData,
    values: np.ndarray,
    limits: tuple[float, float],
    cmap="viridis",
    spots: AnnData | None = None,
    rings: np.ndarray | None = None,
) -> PathCollection:
    """Draws the places whose value is known over the image where there is one.

    Args:
      adata: (N, G) with the places.
      values: (N,), NaN where unknown.
      limits: values of the first and the last colour.
      spots: the run's predictions at the measured spots, which say how wide a spot is; if None, ``adata`` does.
      rings: (N,) bool, places that are drawn as rings.
    """
    for library in adata.uns.get("spatial", {}).values():
        for key in ("hires", "lowres"):
            if key in library.get("images", {}):
                image = library["images"][key]
                scale = library["scalefactors"][f"tissue_{key}_scalef"]
                extent = (0, image.shape[1] / scale, image.shape[0] / scale, 0)
                ax.imshow(image, extent=extent, alpha=0.4)
                break
    spots = adata if spots is None else spots
    xy, known = np.asarray(adata.obsm["spatial"], float), np.isfinite(values)
    outline = _outline(adata, spots, min(_pitch(xy[known]), _spot_px(spots)))
    rings = np.zeros(len(xy), bool) if rings is None else rings
    for among, shape in ((known & rings, _ring(outline)), (known & ~rings, outline)):
        drawn = PathCollection(
            [shape], offsets=xy[among], offset_transform=ax.transData, transform=AffineDeltaTransform(ax.transData)
        )
        drawn.set(array=values[among], cmap=cmap, clim=limits, linewidth=0)
        drawn.set_antialiased(len(shape.vertices) != 5)  # full squares that touch would have pale seams
        ax.add_collection(drawn, autolim=False)
    return drawn


def _outline(adata: AnnData, spots: AnnData, width: float) -> Outline:
    """What a place looks like, in pixels around it: a disc, or a square turned as the grid is."""
    info = spots.uns.get("spabit", {})
    in_um = str(adata.uns.get("spabit", {}).get("locations", "")).startswith("um:")
    if not in_um and (info.get("lattice") != "square" or info.get("format") not in SQUARE_FORMATS):
        return Outline.circle(radius=width / 2)
    turn = 0.0 if in_um else _turn(np.asarray(spots.obsm["spatial"], float))
    corners = width / 2**0.5 * np.exp(1j * (turn + np.pi * (np.arange(5) / 2 + 0.25)))
    return Outline(np.stack([corners.real, corners.imag], axis=1), closed=True)


def _ring(outline: Outline) -> Outline:
    points = outline.vertices
    hole = _HOLE * np.concatenate([points[-2::-1], points[-1:]])  # the other way round, or it would be filled
    return Outline.make_compound_path(outline, Outline(hole, outline.codes))


def _turn(xy: np.ndarray) -> float:
    """Angle by which a square grid, (N, 2) places, is turned from the axes, between -π/4 and π/4."""
    if len(xy) < 2:
        return 0.0
    nearest = KDTree(xy).query(xy, k=2)[1][:, 1]
    step = (xy[nearest] - xy) @ np.array([1, 1j])
    return float(np.angle(np.sum(step**4)) / 4)


def _spot_px(spots: AnnData) -> float:
    """Width of what is measured at a spot, in full-resolution pixels."""
    if "spot_px" in spots.uns.get("spabit", {}):
        return float(spots.uns["spabit"]["spot_px"])
    for library in spots.uns.get("spatial", {}).values():
        if "spot_diameter_fullres" in library["scalefactors"]:
            return float(library["scalefactors"]["spot_diameter_fullres"])
    xy, measured = np.asarray(spots.obsm["spatial"], float), (spots.obs["split"] != "new").to_numpy()
    for places in (xy[measured], xy):
        if (pitch := _pitch(places)) < np.inf:
            return pitch / 2
    return 1.0


def _pitch(xy: np.ndarray) -> float:
    """Distance of neighbouring places, (N, 2) → px; infinite where there are no two."""
    places = np.unique(xy, axis=0)
    return spot_pitch(places) if len(places) > 1 else np.inf


def _legend_of_split(adata: AnnData) -> list[Line2D]:
    train = (adata.obs["split"] == "train").to_numpy()
    itself = "with" if adata.uns.get("spabit", {}).get("train_spots_see_themselves") else "without"
    full = {"marker": "o", "linestyle": "", "color": _GREY}
    ring = {**full, "markerfacecolor": "none", "markeredgewidth": 1.6, "markersize": 5}
    handles = []
    if not train.all():
        handles.append(Line2D([], [], label="predicted at a spot that the model was not given", **full))
    if train.any():
        style = full if train.all() else ring
        handles.append(Line2D([], [], label=f"predicted at a train spot, {itself} its own measurement", **style))
    return handles


def _label(adata: AnnData) -> str:
    return LABELS[adata.uns.get("spabit", {}).get("scale", "log2_count")]


def _colour_bar(figure: Figure, drawn: PathCollection, axes, shown: Sequence[np.ndarray], label: str) -> None:
    """A bar whose ends are pointed where values lie beyond the colours."""
    low, high = drawn.get_clim()
    beyond = any((values < low).any() for values in shown), any((values > high).any() for values in shown)
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[beyond]
    bar = figure.colorbar(drawn, ax=list(axes), extend=extend, shrink=0.9, aspect=14, pad=0.02)
    bar.set_label(label, fontsize=_TEXT)
    bar.ax.tick_params(labelsize=_TEXT)


def _tidy(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25, linewidth=0.6)


def _save(figure: Figure, path: str | os.PathLike) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=_DPI, bbox_inches="tight")
