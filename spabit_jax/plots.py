"""Figures of a run: gene maps over the H&E, per-gene accuracy of two methods, and losses; and of a benchmark.

Every function writes one PNG through matplotlib's object-oriented interface, so no display and no pyplot state.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from scipy.spatial import KDTree

from spabit_jax.files import replacing
from spabit_jax.metrics import gene_metrics

_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "0.45"  # Okabe and Ito: told apart by the colour-blind
_DPI = 150
_SHARE = 0.72  # of the pitch: diameter of a drawn spot


def plot_gene_maps(adata: AnnData, genes: Mapping[str, str], path: str | os.PathLike) -> None:
    """Draws a row per gene: measured beside predicted expression on one colour scale, over the faded image.

    Args:
      adata: predictions (N, G): X predicted log2(count + 1), ``layers["truth"]`` (NaN where unknown),
        ``obs["split"]`` (train, test, new), ``obsm["spatial"]`` (x, y) in full-resolution pixels, and, for the image,
        ``uns["spatial"]`` as scanpy has it. Where no truth is known the prediction stands alone.
      genes: label → gene, such as ``{"best": "ERBB2"}``; the title adds the Pearson correlation over the test spots.
      path: the PNG to write.
    """
    xy = np.asarray(adata.obsm["spatial"], float)
    measured = {gene: adata.obs_vector(gene, layer="truth") for gene in genes.values()}
    known = np.isfinite(np.stack(list(measured.values()))).any()
    columns = ["measured", "predicted"] if known else ["predicted"]

    low, high = xy.min(axis=0), xy.max(axis=0)
    margin = 0.03 * (high - low).max() + 1
    width, height = high - low + 2 * margin
    row_height = 3.2 * min(1.4, height / width) + 0.3
    figure = Figure(figsize=(3.2 * len(columns) + 0.9, row_height * len(genes)), layout="constrained")
    axes = figure.subplots(len(genes), len(columns), squeeze=False)
    for row, (label, gene) in zip(axes, genes.items(), strict=True):
        values = {"measured": measured[gene], "predicted": adata.obs_vector(gene)}
        shown = np.concatenate([values[column] for column in columns])
        limits = np.quantile(shown[np.isfinite(shown)], [0.01, 0.99])
        for ax, column in zip(row, columns, strict=True):
            spots = _draw_spots(ax, adata, xy, values[column], limits)
            ax.set(xlim=(low[0] - margin, high[0] + margin), ylim=(high[1] + margin, low[1] - margin))  # y down
            ax.set(xticks=[], yticks=[], aspect="equal")
            ax.set_title(f"{gene} ({label}), {column}" if ax is row[0] else column, fontsize=9)
        test = np.asarray(adata.obs["split"] == "test") & np.isfinite(values["measured"])
        if test.any():
            pcc = gene_metrics(values["measured"][test, None], values["predicted"][test, None])["pcc"][0]
            row[-1].set_title(f"predicted, PCC {pcc:.2f}", fontsize=9)
        figure.colorbar(spots, ax=row, shrink=0.8, pad=0.02, label="log2(count + 1)")
    _save(figure, path)


def plot_location_maps(
    adata: AnnData, genes: Sequence[str], path: str | os.PathLike, spots: AnnData | None = None
) -> None:
    """Draws a row per gene: measured | predicted | sd, over the faded image, with a scale bar where µm are known.

    Measured and predicted share one colour scale, and the standard deviations another.

    Args:
      adata: predictions (M, G) as in predictions.h5ad, ``layers["sd"]`` included.
      genes: the rows.
      path: the PNG to write.
      spots: predictions at the measured spots, drawn before those of ``adata``; if None, ``adata`` has the truth.
    """
    at = {"spots": spots, "new locations": adata} if spots is not None else {"": adata}
    places = np.concatenate([np.asarray(shown.obsm["spatial"], float) for shown in at.values()])
    low, high = places.min(axis=0), places.max(axis=0)
    margin = 0.03 * (high - low).max() + 1
    shape = (high - low + 2 * margin)[1] / (high - low + 2 * margin)[0]
    n_columns = 1 + 2 * len(at)
    size = (3.0 * n_columns + 1.4, (2.7 * min(1.4, shape) + 0.4) * len(genes))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(genes), n_columns, squeeze=False)
    for row, gene in zip(axes, genes, strict=True):
        first = next(iter(at.values()))
        panels = [("measured", first, first.obs_vector(gene, layer="truth"), "viridis")]
        for where, shown in at.items():
            panels.append((f"predicted, {where}".removesuffix(", "), shown, shown.obs_vector(gene), "viridis"))
        for where, shown in at.items():
            panels.append((f"sd, {where}".removesuffix(", "), shown, shown.obs_vector(gene, layer="sd"), "magma"))
        for cmap, label in (("viridis", "log2(count + 1)"), ("magma", "sd")):
            chosen = [(ax, *panel) for ax, panel in zip(row, panels, strict=True) if panel[3] == cmap]
            values = np.concatenate([values[np.isfinite(values)] for *_, values, _ in chosen])
            limits = np.quantile(values, [0.01, 0.99])
            for ax, title, shown, values, _ in chosen:
                xy = np.asarray(shown.obsm["spatial"], float)
                dense = shown is not first
                drawn = _draw_spots(ax, shown, xy, values, limits, cmap, 1.0 if dense else _SHARE)
                ax.set(xlim=(low[0] - margin, high[0] + margin), ylim=(high[1] + margin, low[1] - margin))  # y down
                ax.set(xticks=[], yticks=[], aspect="equal")
                ax.set_title(f"{gene}, {title}" if ax is row[0] else title, fontsize=9)
            figure.colorbar(drawn, ax=[ax for ax, *_ in chosen], shrink=0.8, pad=0.01, label=label)
    um_per_px = adata.uns.get("spabit", {}).get("um_per_px")
    if um_per_px is not None:
        _draw_scale_bar(axes[0, 0], low, high, um_per_px)
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


def plot_history(history: pd.DataFrame, path: str | os.PathLike) -> None:
    """Draws the losses over the epochs: a panel per stage, a line per seed.

    Args:
      history: columns stage, seed, epoch, train_loss, valid_loss (NaN where there was no validation).
      path: the PNG to write.
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
        ax.set(title=stage, xlabel="epoch", ylabel="loss")
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


def plot_benchmark(shares: pd.DataFrame, models: Sequence[str], path: str | os.PathLike) -> None:
    """Draws a row of dots per section: the accuracy of each method as a share of what noise allows.

    Args:
      shares: mean PCC over the noise ceiling; a row per section, a column per method, NaN where it was not run.
      models: the methods to set off from the others.
      path: the PNG to write.
    """
    others = [method for method in shares.columns if method not in models]
    colours = colormaps["cividis"](np.linspace(0, 0.95, len(others)))
    figure = Figure(figsize=(7.6, max(3.0, 0.42 * len(shares) + 1.2)), layout="constrained")
    ax = figure.subplots()
    rows = np.arange(len(shares))
    for i, (method, colour) in enumerate(zip(others, colours, strict=True)):
        ax.scatter(shares[method], rows, s=34, marker="osv^DP"[i % 6], color=colour, alpha=0.85, label=method)
    star = {"s": 120, "color": _ORANGE, "edgecolor": "white", "zorder": 3}
    for i, method in enumerate(models):
        ax.scatter(shares[method], rows, marker="*Xp"[i % 3], label=method, **star)
    ax.axvline(1, color=_GREY, linewidth=1, linestyle="--")
    ax.set_yticks(rows, shares.index)
    ax.invert_yaxis()
    ax.set(xlabel="mean PCC of the genes, as a share of the noise ceiling")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=9)
    _tidy(ax)
    _save(figure, path)


def _draw_scale_bar(ax: Axes, low: np.ndarray, high: np.ndarray, um_per_px: float) -> None:
    """A bar at the lower left of the spots, about a quarter of their width: 1, 2 or 5 times a power of ten µm."""
    wanted = (high - low)[0] * um_per_px / 4
    power = 10.0 ** np.floor(np.log10(wanted))
    um = max(step * power for step in (1, 2, 5) if step * power <= wanted)
    ax.plot(low[0] + np.array([0, um / um_per_px]), [high[1], high[1]], color="black", linewidth=2.5)
    ax.annotate(f"{um:g} µm", (low[0], high[1]), xytext=(0, 3), textcoords="offset points", fontsize=8, va="bottom")


def _draw_spots(
    ax: Axes,
    adata: AnnData,
    xy: np.ndarray,
    values: np.ndarray,
    limits: np.ndarray,
    cmap: str = "viridis",
    share: float = _SHARE,
) -> EllipseCollection:
    """Draws the spots whose value is known, as wide as a share of their spacing, over the image where there is one."""
    for library in adata.uns.get("spatial", {}).values():
        for key in ("hires", "lowres"):
            if key in library.get("images", {}):
                image = library["images"][key]
                scale = library["scalefactors"][f"tissue_{key}_scalef"]
                extent = (0, image.shape[1] / scale, image.shape[0] / scale, 0)
                ax.imshow(image, extent=extent, alpha=0.5)
                break
    known = np.isfinite(values)
    diameter = share * _pitch(xy[known])
    sizes = np.full(known.sum(), diameter)
    spots = EllipseCollection(
        sizes, sizes, np.zeros(known.sum()), units="xy", offsets=xy[known], offset_transform=ax.transData
    )
    spots.set(array=values[known], cmap=cmap, clim=tuple(limits), linewidth=0)
    ax.add_collection(spots)
    return spots


def _pitch(xy: np.ndarray) -> float:
    """Distance of neighbouring spots, (N, 2) → px."""
    return float(np.median(KDTree(xy).query(xy, k=2)[0][:, 1])) if len(xy) > 1 else 1.0


def _tidy(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25, linewidth=0.6)


def _save(figure: Figure, path: str | os.PathLike) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=_DPI, bbox_inches="tight")
