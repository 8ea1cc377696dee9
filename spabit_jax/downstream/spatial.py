"""Spatially variable genes: Moran's I of measured and of predicted expression."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.stats import spearmanr

from spabit_jax.downstream.expression import interpolated, train_spots
from spabit_jax.neighbours import morans_i

TOP = 50  # genes in the overlap


def spatial_genes(predictions: AnnData) -> pd.DataFrame:
    """Moran's I of every gene.

    A prediction is smooth and has no noise, so that its I says little about how much of a measured gene is spatial.
    ``with_noise`` is what I a new measurement can be expected to have, noise being independent between spots:
    that of the prediction times var / (var + sd²), var being its variance over the spots and sd ``layers["sd"]``.

    Returns:
      A row per gene, NaN where its expression does not vary. Over the test spots: ``truth`` (as measured),
      ``predicted``, ``with_noise``, and ``nearest`` (the mean of the 6 nearest train spots); over the train spots
      ``measured``, which is what there is without a model.
    """
    is_train, xy = train_spots(predictions), np.asarray(predictions.obsm["spatial"], float)
    truth = predictions.layers["truth"]
    predicted, sd = np.asarray(predictions.X)[~is_train], predictions.layers["sd"][~is_train]
    i_predicted, variance = morans_i(predicted, xy[~is_train]), predicted.var(axis=0)
    table = {
        "truth": morans_i(truth[~is_train], xy[~is_train]),
        "predicted": i_predicted,
        "with_noise": i_predicted * variance / (variance + np.square(sd).mean(axis=0)),
        "nearest": morans_i(interpolated(predictions), xy[~is_train]),
        "measured": morans_i(truth[is_train], xy[is_train]),
    }
    return pd.DataFrame(table, index=pd.Index(predictions.var_names, name="gene"))


def rank_agreement(truth: pd.Series, other: pd.Series) -> dict[str, float]:
    """Spearman correlation of Moran's I over the genes where both are known, and how many of the ``TOP`` genes by
    truth (a third of the genes where there are fewer than three times ``TOP``) are also on top by the other."""
    both = truth.notna() & other.notna()
    truth, other = truth[both], other[both]
    top = min(TOP, len(truth) // 3)
    shared = set(truth.nlargest(top).index) & set(other.nlargest(top).index)
    return {"spearman": float(spearmanr(truth, other)[0]), "top": top, "shared": len(shared)}
