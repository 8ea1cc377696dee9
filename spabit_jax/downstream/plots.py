"""Figures of what follows on predictions. Each function writes one PNG, narrow enough to be read on a phone."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import roc_curve

from spabit_jax.evaluation.draw import BLUE, GREY, ORANGE, PALETTE, TEXT, colour_bar, draw_places, map_grid, save, tidy

COLOURS = [*colormaps["tab10"].colors, *colormaps["Set3"].colors]


def matched(domains: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Numbers (N,) domains so that each has the number of the group that it shares most spots with.

    Args:
      domains: (N,) integers, -1 for none.
      groups: (N,) integers, -1 for none.

    Returns:
      (N,) integers; where there are more domains than groups, the others go on counting; -1 stays.
    """
    n_found, n_groups = domains.max() + 1, groups.max() + 1
    both = (domains >= 0) & (groups >= 0)
    shared = np.zeros((n_found, max(n_found, n_groups)))
    np.add.at(shared, (domains[both], groups[both]), 1)
    _, number = linear_sum_assignment(shared, maximize=True)
    return np.where(domains < 0, -1, number[domains])


def plot_domains(
    predictions: AnnData, domains: Mapping[str, np.ndarray], annotation: np.ndarray, names: list[str], path
) -> None:
    """Draws the annotation, where there is one, and domains, two maps side by side.

    Args:
      predictions: content of predictions.h5ad, N spots.
      domains: title → (N,) integers, -1 where a spot is in no domain. Number i is called domain i + 1.
      annotation: (N,) indices of names, -1 where there is none. It has the colours of the domains of the same number.
      names: of the annotation; empty if there is none.
      path: the PNG to write.
    """
    maps = {"annotation": annotation} if names else {}
    maps |= domains
    n = max(values.max() for values in maps.values()) + 1
    figure, axes = _two_columns(predictions, len(maps))
    for ax, (title, values) in zip(axes, maps.items(), strict=True):
        shown = np.where(values < 0, np.nan, values)
        draw_places(ax, predictions, shown, (-0.5, n - 0.5), ListedColormap([_colour(i) for i in range(n)]))
        ax.set_title(title, loc="left", fontsize=TEXT)
    style = {"frameon": False, "fontsize": TEXT, "handletextpad": 0.1, "columnspacing": 0.8, "borderaxespad": 0.2}
    if names:
        handles = _dots(dict(enumerate(names)))
        axes[0].legend(handles=handles, loc="upper left", bbox_to_anchor=(-0.05, 0), ncols=2, **style)
    found = np.unique(np.concatenate(list(domains.values())))
    of_domains = _dots({i: f"domain {i + 1}" for i in found if i >= 0})
    figure.legend(handles=of_domains, loc="outside lower center", ncols=4, **style)
    save(figure, path)


def plot_probability(
    predictions: AnnData, is_tumour: np.ndarray, probability: np.ndarray, path: str | os.PathLike
) -> None:
    """Draws the annotation beside the predicted probability of tumour: (N,) each, NaN where unknown."""
    figure, axes = _two_columns(predictions, 2)
    maps = {"annotation: 1 tumour, 0 other": is_tumour, "predicted, at spots not measured": probability}
    for ax, (title, values) in zip(axes, maps.items(), strict=True):
        drawn = draw_places(ax, predictions, values, (0, 1))
        ax.set_title(title, loc="left", fontsize=TEXT)
    colour_bar(figure, drawn, axes, list(maps.values()), "probability of tumour")
    save(figure, path)


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
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    for (name, probability), colour in zip(found.items(), PALETTE, strict=False):
        scored = np.isfinite(probability) & np.isfinite(is_tumour)
        wrong, right, _ = roc_curve(is_tumour[scored], probability[scored])
        ax.plot(wrong, right, color=colour, label=f"{name}: {aurocs[name]:.3f}")
    ax.set(xlabel="share of other spots called tumour", ylabel="share of tumour spots found", aspect="equal")
    ax.legend(loc="lower right", frameon=False, fontsize=8.5, title="AUROC", alignment="left")
    tidy(ax)
    save(figure, path)


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
    colours = [_colour(groups.index(group)) for group in shown["group"]]
    ax.barh(np.arange(len(shown)), -np.log10(np.maximum(shown["fdr"].to_numpy(float), 1e-300)), color=colours)
    labels = [f"{row.gene_set[:32]} ({row.group})" for row in shown.itertuples()]
    ax.set_yticks(np.arange(len(shown)), labels, fontsize=9)
    ax.axvline(-np.log10(0.05), color=GREY, linewidth=1, linestyle="--")
    ax.set(xlabel="-log10 of the false discovery rate (dashed: 5%)")
    tidy(ax)
    save(figure, path)


def plot_spatial_genes(table: pd.DataFrame, path: str | os.PathLike) -> None:
    """Draws the rank of each gene by Moran's I, of the prediction (with noise) and of the train spots alone, against
    its rank by the truth.

    Args:
      table: of ``spatial.spatial_genes``.
      path: the PNG to write.
    """
    ranks = table[["truth", "measured", "with_noise"]].dropna().rank(ascending=False)
    figure = Figure(figsize=(5.4, 3.2), layout="constrained")
    panels = (("measured", "train spots alone", BLUE), ("with_noise", "predicted, with noise", ORANGE))
    for ax, (column, title, colour) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        ax.scatter(ranks["truth"], ranks[column], s=12, color=colour, alpha=0.5, linewidth=0)
        ax.set(title=title, xlabel="rank as measured", aspect="equal")
        ax.label_outer()
        tidy(ax)
    figure.axes[0].set_ylabel("rank by Moran's I")
    save(figure, path)


def _two_columns(predictions: AnnData, n: int) -> tuple[Figure, list[Axes]]:
    """A figure with ``n`` maps, two in a row."""
    figure, axes = map_grid(predictions, np.asarray(predictions.obsm["spatial"], float), -(-n // 2), 2)
    for ax in axes.flat[n:]:
        ax.set_visible(False)
    return figure, list(axes.flat[:n])


def _colour(number: int):
    return COLOURS[number % len(COLOURS)]


def _dots(names: Mapping[int, str]) -> list[Line2D]:
    """For the legend: number of the colour → name."""
    return [Line2D([], [], marker="o", linestyle="", color=_colour(i), label=name) for i, name in names.items()]
