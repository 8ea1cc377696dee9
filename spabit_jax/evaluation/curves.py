"""Curves of training: losses of a run, errors of pretraining."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from spabit_jax.evaluation.draw import BLUE, GREY, ORANGE, Files, save, tidy

STAGES = {"gat": "training loss of the graph attention network", "spabit": "training loss of the SpaBiT networks"}


def plot_history(history: pd.DataFrame, path: Files, weight: float | None = None) -> None:
    """Draws the losses over the epochs: a panel per stage, a line per seed.

    Args:
      history: columns stage, seed, epoch, train_loss, valid_loss (NaN where there was no validation).
      path: the file to write, or several.
      weight: of the SpaBiT networks in the prediction, for the title.
    """
    stages = history["stage"].unique()
    figure = Figure(figsize=(4.2 * len(stages), 3.2), layout="constrained")
    for ax, stage in zip(figure.subplots(1, len(stages), squeeze=False)[0], stages, strict=True):
        rows = history[history["stage"] == stage]
        for column, colour in (("train_loss", BLUE), ("valid_loss", ORANGE)):
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
        tidy(ax)
    save(figure, path)


def plot_pretraining(errors: pd.DataFrame, path: Files) -> None:
    """Draws the errors of pretraining on tasks kept aside, against tasks trained on.

    Args:
      errors: columns tasks and those of ``training.pretraining.validate``.
      path: the file to write, or several.
    """
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    panels = {
        "all responses": {"network": BLUE, "bank": GREY},
        "responses of one process": {"network_gaussian": BLUE, "bank_gaussian": GREY, "exact": ORANGE},
    }
    for ax, (title, columns) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for column, colour in columns.items():
            ax.plot(errors["tasks"], errors[column], color=colour, label=column.removesuffix("_gaussian"))
        ax.set(xlabel="tasks", ylabel="mean squared error, of variance 1")
        ax.set_title(title, fontsize=10)
        ax.legend(frameon=False)
        tidy(ax)
    save(figure, path)
