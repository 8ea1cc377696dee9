"""Predictions of the trained seeds → AnnData."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from spabit_jax.section import SectionData


def residual_sd(section: SectionData, per_seed: np.ndarray, held_out: Sequence[np.ndarray]) -> np.ndarray:
    """Root mean squared error of each gene at train spots: (G,), over the seeds.

    Args:
      per_seed: (S, N, G) predictions of each seed.
      held_out: for each seed the train spots that it was not fitted to; all train spots where there are none.
    """
    squares = []
    for predicted, spots in zip(per_seed, held_out, strict=True):
        spots = spots if len(spots) else np.flatnonzero(section.is_train)
        squares.append((predicted[spots] - section.expression[spots]) ** 2)
    return np.sqrt(np.concatenate(squares).mean(axis=0))


def predictions_adata(adata: AnnData, genes, is_train, per_seed: np.ndarray, residual: np.ndarray, provenance: dict):
    """The content of ``predictions.h5ad``.

    Args:
      adata: the section.
      genes: the panel, G names.
      is_train: (N,) bool.
      per_seed: (S, N, G) predicted log2(count + 1) of each seed.
      residual: (G,) of ``residual_sd``.
      provenance: what the predictions come from; into ``uns["spabit"]``.

    Returns:
      AnnData, (N, G): ``X`` the mean over the seeds; ``layers["truth"]``; ``layers["sd"]``, the predictive standard
      deviation: of the seeds around their mean and of measurements around a seed, added as variances; ``obs["split"]``.
    """
    truth = np.log2(adata[:, genes].X.toarray() + 1)
    obs = adata.obs.copy()
    obs["split"] = pd.Categorical(np.where(is_train, "train", "test"), categories=["train", "test", "new"])
    out = AnnData(
        X=per_seed.mean(axis=0).astype(np.float32),
        obs=obs,
        var=adata.var.loc[genes].copy(),
        obsm={"spatial": adata.obsm["spatial"]},
        layers={
            "truth": truth.astype(np.float32),
            "sd": np.sqrt(per_seed.var(axis=0) + residual**2).astype(np.float32),
        },
    )
    if "spatial" in adata.uns:
        out.uns["spatial"] = adata.uns["spatial"]
    out.uns["spabit"] = {**adata.uns["spabit"], **provenance}
    return out
