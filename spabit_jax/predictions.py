"""The contract of predictions.h5ad."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from spabit_jax.scale import TOTAL

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

    Returns:
      AnnData (n, G): ``X`` the mean, ``layers["sd"]``, ``layers["truth"]``, ``obs["split"]``, ``obsm["spatial"]``,
      ``uns["spatial"]`` and ``uns["spabit"]``.
    """
    obs = obs.copy()
    obs["split"] = pd.Categorical(split, categories=list(SPLITS))
    if totals is not None:
        obs[TOTAL] = totals
    out = AnnData(
        X=mean.astype(np.float32), obs=obs, var=var.copy(), obsm={"spatial": xy}, layers={"truth": truth, "sd": sd}
    )
    if "spatial" in of.uns:
        out.uns["spatial"] = of.uns["spatial"]
    out.uns["spabit"] = {**of.uns["spabit"], **info}
    return out
