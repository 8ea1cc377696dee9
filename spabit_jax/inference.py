"""Predictions of the trained seeds → one prediction with its uncertainty → AnnData."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.stats import norm

from spabit_jax.section import SectionData

COVERAGE = 0.9  # of the intervals by which the standard deviation is calibrated


class Prediction(NamedTuple):
    """Of a trained ensemble: N spots, G genes, S seeds; log2(count + 1)."""

    per_seed: np.ndarray  # (S, N, G)
    mean: np.ndarray  # (N, G)
    sd: np.ndarray  # (N, G) of a measurement around the mean
    weight: float  # of the network, beside kriging's 1 - weight


def combine(section: SectionData, per_seed: np.ndarray, held_out: Sequence[np.ndarray], kriged=None) -> Prediction:
    """Averages seeds, and kriging where there is some; the weight and the uncertainty come from held-out train spots.

    The network's weight is the one in [0, 1] with the least squared error, genes at equal variance, at the train spots
    that each seed was not fitted to. The sd is scaled there so that mean ± 1.645 sd holds 90% of the measurements
    (split conformal prediction; Papadopoulos et al., 2002). Without held-out spots it comes from all train spots.

    Args:
      per_seed: (S, N, G) predictions of each seed's network.
      held_out: for each seed the train spots that it was not fitted to.
      kriged: mean and variance of ``training.kriging.kriged``, (N, G) each, or None.
    """
    train = np.flatnonzero(section.is_train)
    held_out = [spots if len(spots) else train for spots in held_out]
    truth = section.expression
    gene_sd = np.maximum(truth[train].std(axis=0), 1e-3)
    weight = 1.0
    if kriged is not None:
        error, step = [], []
        for predicted, spots in zip(per_seed, held_out, strict=True):
            error.append(((truth - kriged[0])[spots] / gene_sd).ravel())
            step.append(((predicted - kriged[0])[spots] / gene_sd).ravel())
        error, step = np.concatenate(error), np.concatenate(step)
        weight = float(np.clip(error @ step / max(step @ step, 1e-12), 0, 1))
        per_seed = kriged[0] + weight * (per_seed - kriged[0])

    total, count = np.zeros_like(truth), np.zeros(len(truth))
    for predicted, spots in zip(per_seed, held_out, strict=True):
        total[spots] += predicted[spots]
        count[spots] += 1
    seen = np.flatnonzero(count)
    error = truth[seen] - total[seen] / count[seen][:, None]
    spread = per_seed.var(axis=0)
    variance = spread + (np.mean(error**2, axis=0) if kriged is None else kriged[1])
    sd = np.sqrt(variance)
    scale = np.quantile(np.abs(error) / sd[seen], COVERAGE) / norm.ppf((1 + COVERAGE) / 2)
    return Prediction(per_seed, per_seed.mean(axis=0), (scale * sd).astype(np.float32), weight)


def predictions_adata(adata: AnnData, genes, is_train, prediction: Prediction, provenance: dict) -> AnnData:
    """The content of ``predictions.h5ad``.

    Args:
      adata: the section.
      genes: the panel, G names.
      is_train: (N,) bool.
      provenance: what the predictions come from; into ``uns["spabit"]``.

    Returns:
      AnnData, (N, G): ``X`` the mean; ``layers["truth"]``; ``layers["sd"]``, the predictive standard deviation;
      ``obs["split"]``.
    """
    truth = np.log2(adata[:, genes].X.toarray() + 1)
    obs = adata.obs.copy()
    obs["split"] = pd.Categorical(np.where(is_train, "train", "test"), categories=["train", "test", "new"])
    out = AnnData(
        X=prediction.mean.astype(np.float32),
        obs=obs,
        var=adata.var.loc[genes].copy(),
        obsm={"spatial": adata.obsm["spatial"]},
        layers={"truth": truth.astype(np.float32), "sd": prediction.sd},
    )
    if "spatial" in adata.uns:
        out.uns["spatial"] = adata.uns["spatial"]
    out.uns["spabit"] = {**adata.uns["spabit"], **provenance, "network_weight": prediction.weight}
    return out
