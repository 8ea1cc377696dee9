"""Accuracy per gene and per section, on the scale of the expression that is compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import bootstrap, norm

from spabit_jax.scale import Scale

# A column whose range is below this share of its magnitude is float32 rounding, not signal.
_CONSTANT = 1e-6

METRICS = ("pcc", "mse", "mae", "pcc_defined", "n_constant_genes")


def is_constant(values: np.ndarray) -> np.ndarray:
    """Which columns of (N, G) hold one value, up to float32 rounding: (G,) bool."""
    values = np.asarray(values, np.float64)
    return np.ptp(values, axis=0) <= _CONSTANT * np.abs(values).max(axis=0)


def gene_metrics(truth: np.ndarray, prediction: np.ndarray, genes: Sequence[str] | None = None) -> pd.DataFrame:
    """Pearson correlation and errors of every gene over the test spots.

    Args:
      truth: (N, G) measured expression.
      prediction: (N, G) predicted expression on the same scale.
      genes: G names; the index of the table.

    Returns:
      A row per gene with columns pcc, mse, mae and constant. ``pcc`` is NaN where the truth does not vary, and 0
      where it does but the prediction is constant; ``constant`` marks the latter. Computed in float64.

    Raises:
      ValueError: the shapes differ, there are no spots, or a value is not finite.
    """
    truth, prediction = np.asarray(truth, np.float64), np.asarray(prediction, np.float64)
    if truth.ndim != 2 or truth.shape != prediction.shape or not len(truth):
        raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} must both be (N, G) with N > 0")
    for what, values in (("truth", truth), ("prediction", prediction)):
        if not np.isfinite(values).all():
            raise ValueError(f"the {what} of {np.count_nonzero(~np.isfinite(values))} spot-gene pairs is not finite")

    varies = ~is_constant(truth)
    constant = is_constant(prediction) & varies
    t, p = truth - truth.mean(axis=0), prediction - prediction.mean(axis=0)
    norms = np.linalg.norm(t, axis=0) * np.linalg.norm(p, axis=0)
    pcc = np.where(varies, 0.0, np.nan)
    np.divide((t * p).sum(axis=0), norms, out=pcc, where=varies & ~constant)
    error = prediction - truth
    return pd.DataFrame(
        {
            "pcc": np.clip(pcc, -1, 1),
            "mse": np.square(error).mean(axis=0),
            "mae": np.abs(error).mean(axis=0),
            "constant": constant,
        },
        index=None if genes is None else pd.Index(genes, name="gene"),
    )


def summarize(per_gene: pd.DataFrame) -> dict[str, float]:
    """One section's metrics from the table of ``gene_metrics``.

    Returns:
      ``pcc``, the mean over the genes whose truth varies, a constant prediction counting as 0; ``mse`` and ``mae``,
      means over all genes; ``pcc_defined``, the mean that also leaves out constant predictions, as the PyTorch
      SpaBiT does; ``n_constant_genes``, how many those are. A mean over no genes is NaN.
    """
    return {
        "pcc": float(per_gene["pcc"].mean()),
        "mse": float(per_gene["mse"].mean()),
        "mae": float(per_gene["mae"].mean()),
        "pcc_defined": float(per_gene["pcc"][~per_gene["constant"]].mean()),
        "n_constant_genes": int(per_gene["constant"].sum()),
    }


def coverage(truth: np.ndarray, mean: np.ndarray, sd: np.ndarray, level: float = 0.9) -> float:
    """Share of (N, G) measurements inside the central normal intervals of this level; NaN where there is no sd."""
    if np.isnan(sd).any():
        return float("nan")
    return float(np.mean(np.abs(truth - mean) <= norm.ppf((1 + level) / 2) * sd))


def noise_ceiling(counts: np.ndarray, totals: np.ndarray, scale: Scale, seed: int = 0) -> np.ndarray:
    """The Pearson correlation with the measured expression that a perfect prediction of each gene would reach.

    Every count is split binomially into two halves, each put on the scale (normalised to half the target by a total
    that is split with it); the correlation r of the two, mean over the splits, is the reliability of half a
    measurement, 2r / (1 + r) that of a whole one (Spearman-Brown), and its square root the correlation of a measurement
    with what it measures. Spearman-Brown is exact for sums, not for logs of sums, and r varies with the spots: the
    ceiling is an estimate, not a bound.

    Args:
      counts: (N, G) integers.
      totals: (N,) integers, of all genes.
      scale: of expression.
      seed: of the splits.

    Returns:
      (G,); 0 where half a measurement does not vary, NaN where a whole one does not.
    """
    counts, totals = np.rint(counts).astype(np.int64), np.rint(totals).astype(np.int64)
    n_splits = min(5, -(-50_000 // len(counts)))  # of many spots each says the same
    others = np.maximum(totals - counts.sum(axis=1), 0)  # of the genes beyond the panel; large counts come rounded
    halved = scale if scale.target is None else scale._replace(target=scale.target / 2)
    rng = np.random.default_rng(seed)
    r = np.zeros(counts.shape[1])
    for _ in range(n_splits):
        half = rng.binomial(counts, 0.5)
        total = half.sum(axis=1) + rng.binomial(others, 0.5)
        one, other = halved.expression(half, total), halved.expression(counts - half, totals - total)
        r += np.where(is_constant(one) | is_constant(other), 0, gene_metrics(one, other)["pcc"]) / n_splits
    r = np.where(is_constant(scale.expression(counts, totals)), np.nan, np.maximum(r, 0))
    return np.sqrt(2 * r / (1 + r))


def depth_only(expression: np.ndarray, totals: np.ndarray, test_totals: np.ndarray) -> np.ndarray:
    """What the true total count of each test spot says of its expression, and nothing else does.

    A straight line of each gene on log2(total + 1), by least squares over the train spots. No prediction may use it:
    the total of a test spot is a measurement of that spot. Its PCC says how much of a figure is sequencing depth.

    Args:
      expression: (n, G) of the train spots.
      totals, test_totals: (n,), (m,) counts of all genes, of train and of test spots.

    Returns:
      (m, G).
    """
    x, at = (np.log2(np.asarray(t, np.float64) + 1) for t in (totals, test_totals))
    centred = x - x.mean()
    slope = centred @ (expression - expression.mean(axis=0)) / max(centred @ centred, 1e-12)
    return expression.mean(axis=0) + (at - x.mean())[:, None] * slope


def bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    """95% percentile interval of the mean of (G,) values, by 2,000 resamples (Efron, 1979); NaN of fewer than two."""
    if len(values) < 2:
        return np.nan, np.nan
    rng = np.random.default_rng(0)
    found = bootstrap((values,), np.mean, n_resamples=2000, batch=200, method="percentile", rng=rng)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def summarize_seeds(seeds: Sequence[Mapping[str, float]], ensemble: Mapping[str, float]) -> dict[str, dict]:
    """The metrics of ``metrics.json``: over the seeds, and of their ensemble.

    Args:
      seeds: what ``summarize`` gives for each seed.
      ensemble: what it gives for the mean prediction over the seeds.

    Returns:
      For each metric ``{"mean", "sd", "per_seed"}``, sd being the population standard deviation, and ``"ensemble"``
      with a number for each. What is not defined is None, so that the JSON is valid.
    """
    summary: dict[str, dict] = {}
    for metric in METRICS:
        values = [seed[metric] for seed in seeds]
        summary[metric] = {
            "mean": number(np.mean(values)),
            "sd": number(np.std(values)),
            "per_seed": [number(value) for value in values],
        }
    summary["ensemble"] = {metric: number(ensemble[metric]) for metric in METRICS}
    return summary


def format_mean_sd(mean: float | None, sd: float | None) -> str:
    """``0.1234 ± 0.0012``, the way the PyTorch SpaBiT writes its result files; None is written ``nan``."""
    return " ± ".join(f"{np.nan if value is None else value:.4f}" for value in (mean, sd))


def number(value: float) -> float | int | None:
    """The value as JSON has it; None where it is not finite."""
    if isinstance(value, int):
        return value
    return float(value) if np.isfinite(value) else None
