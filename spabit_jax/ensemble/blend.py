"""Predictions of the trained seeds → one prediction with its uncertainty → AnnData."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.optimize import nnls
from scipy.stats import norm

from spabit_jax.data.section import SectionData
from spabit_jax.scale import TOTAL, total_counts

MIN_SD = 1e-3  # of a gene that does not vary over the train spots
PRIOR_SPOTS = 10  # that speak for kriging when weights are fitted
CHUNK = 8192  # spots at a time, where arrays are (seeds, spots, genes)
COVERAGE = 0.9  # of the intervals by which the standard deviation is calibrated


class Prediction(NamedTuple):
    """Of a trained ensemble: N spots, G genes, S seeds. No expression is below 0."""

    per_seed: np.ndarray  # (S, N, G)
    mean: np.ndarray  # (N, G)
    sd: np.ndarray  # (N, G) of a measurement around the mean
    weights: dict[str, float]  # of the network, ``spabit``, and of each companion
    members: dict[str, np.ndarray]  # (N, G) of each of these alone; of the network the mean over the seeds


class Blend(NamedTuple):
    """How members become one prediction: what ``fit_blend`` finds at held-out train spots."""

    centre: np.ndarray  # (G,) gene means of the train spots
    weights: dict[str, float]  # of the network, ``spabit``, and of each companion
    variance: np.ndarray | None  # (G,) of a measurement where kriging gives none
    scale: float  # of the standard deviation

    def mean(self, network: np.ndarray, companions: dict[str, np.ndarray]) -> np.ndarray:
        """(..., n, G) predictions of the network and (n, G) of its companions → (..., n, G)."""
        if not companions:
            return network
        others = sum(self.weights[name] * (predicted - self.centre) for name, predicted in companions.items())
        return self.centre + self.weights["spabit"] * (network - self.centre) + others

    def apply(self, per_seed: np.ndarray, companions: dict | None = None, variance=None) -> Prediction:
        """The prediction at n places.

        Args:
          per_seed: (S, n, G) of each seed's network.
          companions: name → (n, G).
          variance: (n, G) of a measurement, by kriging; None without.
        """
        blended, (mean, sd) = np.empty_like(per_seed), np.empty((2, *per_seed.shape[1:]), np.float32)
        members = {"spabit": np.maximum(per_seed.mean(axis=0), 0)}
        members |= {name: np.maximum(predicted, 0) for name, predicted in (companions or {}).items()}
        for start in range(0, per_seed.shape[1], CHUNK):
            rows = slice(start, start + CHUNK)
            others = {name: predicted[rows] for name, predicted in (companions or {}).items()}
            part = self.mean(per_seed[:, rows], others)
            sd[rows] = self.scale * self.unscaled_sd(part, None if variance is None else variance[rows])
            blended[:, rows], mean[rows] = np.maximum(part, 0), np.maximum(part.mean(axis=0), 0)
        return Prediction(blended, mean, sd, self.weights, members)

    def unscaled_sd(self, per_seed: np.ndarray, variance) -> np.ndarray:
        """(S, n, G) predictions and (n, G) variances → (n, G)."""
        variance = self.variance if variance is None else variance
        return np.maximum(np.sqrt(per_seed.var(axis=0) + variance), MIN_SD)


def combine(
    section: SectionData,
    per_seed: np.ndarray,
    held_out: Sequence[np.ndarray],
    companions: dict[str, np.ndarray] | None = None,
    variance: np.ndarray | None = None,
    n_spots: int | None = None,
) -> Prediction:
    """The prediction at the first ``n_spots`` spots, or at all: ``fit_blend``, applied to what it is fitted to."""
    blend = fit_blend(section, per_seed, held_out, companions, variance)
    companions = {name: predicted[:n_spots] for name, predicted in (companions or {}).items()}
    return blend.apply(per_seed[:, :n_spots], companions, None if variance is None else variance[:n_spots])


def fit_blend(
    section: SectionData,
    per_seed: np.ndarray,
    held_out: Sequence[np.ndarray],
    companions: dict[str, np.ndarray] | None = None,
    variance: np.ndarray | None = None,
) -> Blend:
    """Weights of the members, and the scale of the uncertainty.

    Prediction = gene means + sum of weight · (member - gene means). The weights are non-negative and have the least
    squared error, genes at equal variance, at held-out train spots (stacking; Breiman, 1996), as if ``PRIOR_SPOTS``
    further ones had said that kriging is right: on a small section it is what least depends on chance. The sd is scaled
    there so that mean ± 1.645 sd holds 90% of the measurements, all genes together. Without held-out spots all train
    spots serve.

    Args:
      per_seed: (S, N, G) predictions of each seed's network.
      held_out: for each seed train spots that decided nothing about it.
      companions: name → (N, G) predictions, at train spots made without that spot.
      variance: (N, G) of a measurement; if None, the squared error of each gene.
    """
    train, truth = np.flatnonzero(section.is_train), section.expression
    held_out = [spots if len(spots) else train for spots in held_out]
    seen = np.unique(np.concatenate(held_out))
    network, count = np.zeros((len(seen), truth.shape[1]), np.float32), np.zeros((len(seen), 1), np.float32)
    for predicted, spots in zip(per_seed, held_out, strict=True):
        rows = np.searchsorted(seen, spots)
        network[rows] += predicted[spots]
        count[rows] += 1
    network, weights = network / count, {"spabit": 1.0}
    mean = truth[train].mean(axis=0)
    companions = {name: predicted[seen] for name, predicted in (companions or {}).items()}
    if companions:
        sd = np.maximum(truth[train].std(axis=0), MIN_SD)
        members = {"spabit": network} | companions
        target, *columns = (((a - mean) / sd).ravel() for a in (truth[seen], *members.values()))
        pull = PRIOR_SPOTS * truth.shape[1]  # of a gene's variance 1, at each of them
        gram = np.array([[np.sum(a * b, dtype=np.float64) for a in columns] for b in columns])
        factor = np.linalg.cholesky(gram + pull * np.eye(len(columns)))
        right = np.array([np.sum(a * target, dtype=np.float64) for a in columns])
        right += pull * np.array([name == "kriging" for name in members])
        found, _ = nnls(factor.T, np.linalg.solve(factor, right))
        weights = dict(zip(members, map(float, found), strict=True))

    blend = Blend(mean, weights, None, 1.0)
    error = np.abs(truth[seen] - blend.mean(network, companions))
    if variance is None:
        blend = blend._replace(variance=np.mean(error**2, axis=0))
    else:
        variance = variance[seen]
    sd = blend.unscaled_sd(blend.mean(per_seed[:, seen], companions), variance)
    scale = np.quantile(error / sd, COVERAGE) / norm.ppf((1 + COVERAGE) / 2)
    return blend._replace(scale=float(scale))


def predictions_adata(
    adata: AnnData, truth: np.ndarray, genes, is_train, prediction: Prediction, provenance: dict
) -> AnnData:
    """The content of ``predictions.h5ad``.

    Args:
      adata: the section.
      truth: (N, G) measured expression.
      genes: the panel, G names.
      is_train: (N,) bool.
      provenance: what the predictions come from; into ``uns["spabit"]``.

    Returns:
      AnnData, (N, G): ``X`` the mean; ``layers["truth"]``; ``layers["sd"]``, the predictive standard deviation;
      ``obs["split"]`` and the measured total of all genes; as the truth, what is measured at test spots was used for
      nothing.
    """
    obs = adata.obs.copy()
    obs["split"] = pd.Categorical(np.where(is_train, "train", "test"), categories=["train", "test", "new"])
    obs[TOTAL] = total_counts(adata)
    out = AnnData(
        X=prediction.mean.astype(np.float32),
        obs=obs,
        var=adata.var.loc[genes].copy(),
        obsm={"spatial": adata.obsm["spatial"]},
        layers={"truth": truth, "sd": prediction.sd},
    )
    if "spatial" in adata.uns:
        out.uns["spatial"] = adata.uns["spatial"]
    out.uns["spabit"] = {**adata.uns["spabit"], **provenance, "weights": prediction.weights}
    return out
