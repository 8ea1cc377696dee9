"""Figures of what follows on predictions. Each function writes one PNG, narrow enough to be read on a phone."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib import colormaps
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import roc_curve

from spabit_jax.plots import _BLUE, _GREY, _ORANGE, _draw_spots, _save, _tidy

_INPUTS = (_ORANGE, _BLUE, "0.2", "#009E73", "#CC79A7")  # of the tumour classifier, in the order of its table
COLOURS = [*colormaps["tab10"].colors, *colormaps["Set3"].colors]


def matched(domains: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Numbers (N,) domains so that each has the number of the group of ``reference`` that it shares most spots with.

    Args:
      domains: (N,) integers, -1 for none.
      reference: (N,) integers, -1 for none.

    Returns:
      (N,) integers; where there are more domains than groups, the others go on counting; -1 stays.
    """
    n_found, n_groups = domains.max() + 1, reference.max() + 1
    both = (domains >= 0) & (reference >= 0)
    shared = np.zeros((n_found, max(n_found, n_groups)))
    np.add.at(shared, (domains[both], reference[both]), 1)
    _, number = linear_sum_assignment(shared, maximize=True)
    return np.where(domains < 0, -1, number[domains])


def plot_groups(
    predictions: AnnData, maps: Mapping[str, np.ndarray], names: list[str], path: str | os.PathLike
) -> None:
    """Draws groups of spots in one colour each, two maps side by side.

    Args:
      predictions: content of predictions.h5ad, N spots.
      maps: title → (N,) integers, -1 where a spot is in no group.
      names: of the groups, for the legend; those without a name are left out of it.
      path: the PNG to write.
    """
    n = max(values.max() for values in maps.values()) + 1
    colours = ListedColormap([COLOURS[i % len(COLOURS)] for i in range(n)])
    figure, axes = _maps(predictions, len(maps))
    xy = np.asarray(predictions.obsm["spatial"], float)
    for ax, (title, values) in zip(axes, maps.items(), strict=False):
        shown = np.where(values < 0, np.nan, values)
        _draw_spots(ax, predictions, xy, shown, np.array([-0.5, n - 0.5])).set(cmap=colours)
        ax.set_title(title, fontsize=10)
    handles = [
        Line2D([], [], marker="o", linestyle="", color=COLOURS[i % len(COLOURS)], label=name)
        for i, name in enumerate(names)
    ]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    _save(figure, path)


def plot_probability(
    predictions: AnnData, is_tumour: np.ndarray, probability: np.ndarray, path: str | os.PathLike
) -> None:
    """Draws the annotation beside the predicted probability of tumour: (N,) each, NaN where unknown."""
    figure, axes = _maps(predictions, 2)
    xy = np.asarray(predictions.obsm["spatial"], float)
    titles = ("annotation", "probability at spots not measured")
    for ax, values, title in zip(axes, (is_tumour, probability), titles, strict=True):
        spots = _draw_spots(ax, predictions, xy, values, np.array([0, 1]))
        ax.set_title(title, fontsize=10)
    figure.colorbar(spots, ax=axes, shrink=0.7, label="tumour")
    _save(figure, path)


def plot_roc(is_tumour: np.ndarray, found: Mapping[str, np.ndarray], aurocs: Mapping[str, float], path) -> None:
    """Draws a ROC curve for each input of the classifier.

    Args:
      is_tumour: (N,) 1, 0 or NaN.
      found: input → (N,) probability, NaN at spots that are not scored.
      aurocs: input → area under its curve, for the legend.
      path: the PNG to write.
    """
    figure = Figure(figsize=(4.6, 4.6), layout="constrained")
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle="--")
    for (name, probability), colour in zip(found.items(), _INPUTS, strict=True):
        scored = np.isfinite(probability) & np.isfinite(is_tumour)
        wrong, right, _ = roc_curve(is_tumour[scored], probability[scored])
        ax.plot(wrong, right, color=colour, label=f"{name}: {aurocs[name]:.3f}")
    ax.set(xlabel="share of other spots called tumour", ylabel="share of tumour spots found", aspect="equal")
    ax.legend(loc="lower right", frameon=False, fontsize=8.5, title="AUROC")
    _tidy(ax)
    _save(figure, path)


def plot_enrichment(table: pd.DataFrame, path: str | os.PathLike, n: int = 12) -> None:
    """Draws the ``n`` smallest adjusted p-values as bars, of sets that share a gene with the markers.

    Args:
      table: columns group, gene_set, n_shared, fdr.
      path: the PNG to write.
    """
    shown = table[table["n_shared"] > 0].nsmallest(n, "fdr")[::-1]
    figure = Figure(figsize=(5.4, 0.34 * len(shown) + 1.1), layout="constrained")
    ax = figure.subplots()
    groups = list(dict.fromkeys(table["group"]))
    colours = [COLOURS[groups.index(group) % len(COLOURS)] for group in shown["group"]]
    ax.barh(np.arange(len(shown)), -np.log10(np.maximum(shown["fdr"].to_numpy(float), 1e-300)), color=colours)
    labels = [f"{row.gene_set[:32]} ({row.group})" for row in shown.itertuples()]
    ax.set_yticks(np.arange(len(shown)), labels, fontsize=9)
    ax.axvline(-np.log10(0.05), color=_GREY, linewidth=1, linestyle="--")
    ax.set(xlabel="-log10 of the false discovery rate (dashed: 5%)")
    _tidy(ax)
    _save(figure, path)


def plot_spatial_genes(table: pd.DataFrame, path: str | os.PathLike) -> None:
    """Draws the rank of each gene by Moran's I, of the prediction (with noise) and of the train spots alone, against
    its rank by the truth.

    Args:
      table: of ``spatial.spatial_genes``.
      path: the PNG to write.
    """
    ranks = table[["truth", "measured", "with_noise"]].dropna().rank(ascending=False)
    figure = Figure(figsize=(5.4, 3.2), layout="constrained")
    panels = (("measured", "train spots alone", _BLUE), ("with_noise", "predicted, with noise", _ORANGE))
    for ax, (column, title, colour) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        ax.scatter(ranks["truth"], ranks[column], s=12, color=colour, alpha=0.5, linewidth=0)
        ax.set(title=title, xlabel="rank as measured", aspect="equal")
        ax.label_outer()
        _tidy(ax)
    figure.axes[0].set_ylabel("rank by Moran's I")
    _save(figure, path)


def _maps(predictions: AnnData, n: int):
    """A figure with ``n`` maps, two in a row, over the extent of the spots; y down."""
    xy = np.asarray(predictions.obsm["spatial"], float)
    low, high = xy.min(axis=0), xy.max(axis=0)
    margin = 0.03 * (high - low).max() + 1
    width, height = high - low + 2 * margin
    rows = -(-n // 2)
    figure = Figure(figsize=(5.4, rows * (2.7 * min(1.4, height / width) + 0.3) + 0.6), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False).ravel()
    for ax in axes:
        ax.set(xlim=(low[0] - margin, high[0] + margin), ylim=(high[1] + margin, low[1] - margin))
        ax.set(xticks=[], yticks=[], aspect="equal")
    for ax in axes[n:]:
        ax.set_visible(False)
    return figure, axes
