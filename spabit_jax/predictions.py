"""The contract of predictions.h5ad."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
from anndata import AnnData

from spabit_jax.scale import LOG2, TOTAL, UNLOG, Scale

SPLITS = ("train", "test", "new")


def make_predictions(
    mean: np.ndarray,
    sd: np.ndarray,
    *,
    truth: np.ndarray,
    split,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    xy: np.ndarray,
    of: AnnData,
    info: dict,
    totals: np.ndarray | None = None,
    image: np.ndarray | None = None,
) -> AnnData:
    """Predictions as every command writes and reads them.

    Args:
      mean, sd: (n, G) predicted expression, and the sd of a measurement around it.
      truth: (n, G) measured expression, NaN where it is not known.
      split: (n,) of ``SPLITS``.
      obs, var: of the places and of the panel.
      xy: (n, 2) full-resolution pixels.
      of: the section, for its image and what ``uns["spabit"]`` says of it.
      info: what the predictions come from, for ``uns["spabit"]``: method, encoder, scale, weights, …
      totals: (n,) measured counts of all genes, where the places are the section's spots; as the truth, what was
        measured at test spots was used for nothing.
      image: (n, C) image components of the places, for methods to compare with.

    Returns:
      AnnData (n, G): ``X`` the mean, ``layers["sd"]``, ``layers["truth"]``, ``obs["split"]``, ``obsm["spatial"]``,
      ``obsm["image_components"]``, ``uns["spatial"]`` and ``uns["spabit"]``.
    """
    obs = obs.copy()
    obs["split"] = pd.Categorical(split, categories=list(SPLITS))
    if totals is not None:
        obs[TOTAL] = totals
    out = AnnData(
        X=mean.astype(np.float32),
        obs=obs,
        var=var.copy(),
        obsm={"spatial": np.array(xy)},
        layers={"truth": truth, "sd": sd},
    )
    if image is not None:
        out.obsm["image_components"] = image
    if "spatial" in of.uns:
        out.uns["spatial"] = copy.deepcopy(of.uns["spatial"])
    out.uns["spabit"] = {**of.uns["spabit"], **info}
    return out


def scale_of(predictions: AnnData) -> Scale:
    """The scale of predictions; log2(count + 1) where they do not say, as before there were others."""
    info = predictions.uns.get("spabit", {})
    return Scale(str(info["scale"]), info.get("scale_target")) if "scale" in info else LOG2


def measured_counts(predictions: AnnData) -> tuple[np.ndarray, np.ndarray]:
    """Counts of the panel (n, G) and of all genes (n,), of predictions at a section's spots."""
    scale, totals = scale_of(predictions), predictions.obs[TOTAL].to_numpy(np.float64)
    amounts = UNLOG[scale.name](np.asarray(predictions.layers["truth"], np.float64))
    if scale.target is not None:
        amounts *= np.maximum(totals, 1)[:, None] / scale.target
    return np.rint(amounts), totals
