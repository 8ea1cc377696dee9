"""Accuracy per gene and per section, in log2(count + 1) units. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

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
      truth: (N, G) measured expression, log2(count + 1).
      prediction: (N, G) predicted expression in the same units.
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
            "mean": _number(np.mean(values)),
            "sd": _number(np.std(values)),
            "per_seed": [_number(value) for value in values],
        }
    summary["ensemble"] = {metric: _number(ensemble[metric]) for metric in METRICS}
    return summary


def format_mean_sd(mean: float | None, sd: float | None) -> str:
    """``0.1234 ± 0.0012``, the way the PyTorch SpaBiT writes its result files; None is written ``nan``."""
    return " ± ".join(f"{np.nan if value is None else value:.4f}" for value in (mean, sd))


def _number(value: float) -> float | int | None:
    if isinstance(value, int):
        return value
    return float(value) if np.isfinite(value) else None
