"""Members' predictions → one prediction with its uncertainty."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls
from scipy.stats import norm

from spabit_jax.chunks import slices
from spabit_jax.ensemble.interface import Estimate, HeldOut

MIN_SD = 1e-3  # of a gene that does not vary over the train spots
PRIOR, PRIOR_SPOTS = "kriging", 10  # the member that so many imaginary spots speak for when weights are fitted
OWN_SPOTS = 30  # of the section itself, from which on they alone say how sure a prediction with related ones is
CHUNK = 8192  # places at a time, where arrays are (seeds, places, genes)
COVERAGE = 0.9  # of the intervals by which the standard deviation is calibrated


class Prediction(NamedTuple):
    """Of an ensemble: n places, G genes, S seeds. No expression is below 0."""

    per_seed: np.ndarray  # (S, n, G)
    mean: np.ndarray  # (n, G)
    sd: np.ndarray  # (n, G) of a measurement around the mean
    members: dict[str, np.ndarray]  # (n, G) of each member alone, the mean over its seeds


class Blend(NamedTuple):
    """How members become one prediction: what ``fit_blend`` finds at held-out train spots."""

    centre: np.ndarray  # (G,) gene means of the train spots
    weights: dict[str, float]  # of each member
    variance: np.ndarray | None  # (G,) of a measurement, where no member says
    scale: float  # of the standard deviation

    def mean(self, means: dict[str, np.ndarray]) -> np.ndarray:
        """Name → (S or 1, n, G) predictions of the members → (S, n, G)."""
        if len(means) == 1:
            return next(iter(means.values()))
        first, *others = (self.weights[name] * (mean - self.centre) for name, mean in means.items())
        return self.centre + first + sum(others)

    def apply(self, estimates: dict[str, Estimate]) -> Prediction:
        """The prediction at the n places of the members' estimates."""
        n_seeds = max(len(estimate.mean) for estimate in estimates.values())
        n, n_genes = next(iter(estimates.values())).mean.shape[1:]
        variance = self.find_variance(estimates)
        per_seed, (mean, sd) = np.empty((n_seeds, n, n_genes), np.float32), np.empty((2, n, n_genes), np.float32)
        for rows in slices(n, CHUNK):
            part = self.mean({name: estimate.mean[:, rows] for name, estimate in estimates.items()})
            unscaled = self.unscaled_sd(part, None if variance is None else variance[rows])
            sd[rows] = np.maximum(self.scale * unscaled, MIN_SD)
            per_seed[:, rows], mean[rows] = np.maximum(part, 0), np.maximum(part.mean(axis=0), 0)
        alone = {name: np.maximum(estimate.mean.mean(axis=0), 0) for name, estimate in estimates.items()}
        return Prediction(per_seed, mean, sd, alone)

    def find_variance(self, estimates: dict[str, Estimate]) -> np.ndarray | None:
        """(n, G) of a measurement, by the member of most weight among those that say; None if none does."""
        known = {name: estimate.variance for name, estimate in estimates.items() if estimate.variance is not None}
        return known[max(known, key=self.weights.get)] if known else None

    def unscaled_sd(self, per_seed: np.ndarray, variance) -> np.ndarray:
        """(S, n, G) predictions and (n, G) variances → (n, G)."""
        variance = self.variance if variance is None else variance
        return np.maximum(np.sqrt(per_seed.var(axis=0) + variance), MIN_SD)


def fit_blend(expression: np.ndarray, held_out: dict[str, HeldOut], n_own: int = 0) -> Blend:
    """Weights of the members, and the scale of the uncertainty.

    Prediction = gene means + sum of weight · (member - gene means). The weights are non-negative and have the least
    squared error, genes at equal variance, at train spots that the members have not seen (stacking; Breiman, 1996), as
    if ``PRIOR_SPOTS`` further ones had said that ``PRIOR`` is right: on a small section it is what least depends on
    chance. The sd is scaled there so that mean ± 1.645 sd holds 90% of the measurements, all genes together: at the
    section's own spots where these are enough, as those of related sections may be deeper, and less noisy.

    Args:
      expression: (n, G) of the train spots.
      held_out: of each member at these spots.
      n_own: the first so many are the section's own.
    """
    seen = np.flatnonzero(np.all([held.unseen.any(axis=0) for held in held_out.values()], axis=0))
    truth, centre = expression[seen], expression.mean(axis=0)
    # one after the other, as a seed's own unseen spots are not those of the next
    honest = {name: _mean_where(held.estimate.mean[:, seen], held.unseen[:, seen]) for name, held in held_out.items()}
    weights = {name: 1.0 for name in held_out}
    if len(held_out) > 1:
        sd = np.maximum(expression.std(axis=0), MIN_SD)
        target, *columns = (((a - centre) / sd).ravel() for a in (truth, *honest.values()))
        pull = PRIOR_SPOTS * truth.shape[1] if PRIOR in honest else 0  # of a gene's variance 1, at each of them
        gram = np.array([[np.sum(a * b, dtype=np.float64) for a in columns] for b in columns])
        factor = np.linalg.cholesky(gram + max(pull, 1e-6) * np.eye(len(columns)))
        right = np.array([np.sum(a * target, dtype=np.float64) for a in columns])
        right += pull * np.array([name == PRIOR for name in honest])
        found, _ = nnls(factor.T, np.linalg.solve(factor, right))
        weights = dict(zip(honest, map(float, found), strict=True))

    blend = Blend(centre, weights, None, 1.0)
    error = np.abs(truth - blend.mean({name: mean[None] for name, mean in honest.items()})[0])
    variance = blend.find_variance({name: held.estimate for name, held in held_out.items()})
    if variance is None:
        blend = blend._replace(variance=np.mean(error**2, axis=0))
    every_seed = blend.mean({name: held.estimate.mean[:, seen] for name, held in held_out.items()})
    sd = blend.unscaled_sd(every_seed, None if variance is None else variance[seen])
    if (own := seen < n_own).sum() >= OWN_SPOTS:
        error, sd = error[own], sd[own]
    known = sd > MIN_SD  # not of genes that did not vary where they were learned: their errors over sd have no bounds
    ratio = (error / sd)[known] if known.any() else error / sd
    scale = np.quantile(ratio, COVERAGE) / norm.ppf((1 + COVERAGE) / 2)
    return blend._replace(scale=float(scale))


def _mean_where(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Means over the first axis of (S, n, G) values, of those that are wanted, (S, n): (n, G)."""
    total, count = np.zeros(values.shape[1:], np.float32), np.zeros((values.shape[1], 1), np.float32)
    for row, is_wanted in zip(values, wanted, strict=True):
        total[is_wanted] += row[is_wanted]
        count[is_wanted] += 1
    return total / count
