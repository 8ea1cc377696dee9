"""Metrics against SciPy, and the rules for genes without variation."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.linear_model import LinearRegression

from spabit_jax.evaluation.metrics import (
    coverage,
    depth_only,
    format_mean_sd,
    gene_metrics,
    is_constant,
    summarize,
    summarize_seeds,
)


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = np.log2(rng.poisson(3, (37, 11)) + 1.0)
    return truth, truth + rng.normal(0, 1, truth.shape)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0, 1000])
def test_per_gene_as_scipy(pair, dtype, offset):
    truth, prediction = (values.astype(dtype) + dtype(offset) for values in pair)
    table = gene_metrics(truth, prediction, genes=[f"g{i}" for i in range(11)])
    for i, row in enumerate(table.itertuples()):
        assert row.Index == f"g{i}"
        expected = pearsonr(truth[:, i].astype(float), prediction[:, i].astype(float)).statistic
        assert row.pcc == pytest.approx(expected, abs=1e-9)
        assert row.mse == pytest.approx(np.mean((truth[:, i].astype(float) - prediction[:, i]) ** 2))
        assert row.mae == pytest.approx(np.mean(np.abs(truth[:, i].astype(float) - prediction[:, i])))
        assert not row.constant


def test_constant_genes(pair):
    truth, prediction = pair[0].copy(), pair[1].copy()
    prediction[:, 0] = 0  # dead output: counts as 0
    prediction[:, 1] = 0.1 + 1e-9 * np.arange(37)  # rounding is no signal
    truth[:, 2] = 1.5  # truth does not vary: left out
    truth[:, 3] = prediction[:, 3] = 0  # left out, and not a constant prediction of a gene that varies
    table = gene_metrics(truth, prediction)
    assert list(table["pcc"][:2]) == [0, 0]
    assert table["pcc"][2:4].isna().all()
    assert list(np.flatnonzero(table["constant"])) == [0, 1]

    defined = [pearsonr(truth[:, i], prediction[:, i]).statistic for i in range(4, 11)]
    summary = summarize(table)
    assert summary["pcc_defined"] == pytest.approx(np.mean(defined))
    assert summary["pcc"] == pytest.approx(np.sum(defined) / 9)
    assert summary["n_constant_genes"] == 2
    assert summary["mse"] == pytest.approx(np.mean((truth - prediction) ** 2))
    assert summary["mae"] == pytest.approx(np.mean(np.abs(truth - prediction)))


def test_float32_rounding_of_one_value_is_constant():
    mean = np.float32(3.3) * np.ones((50, 2), np.float32)
    mean[::2, 0] = np.nextafter(mean[::2, 0], np.float32(4))
    assert is_constant(mean).all()
    assert not is_constant(mean + np.linspace(0, 1e-3, 50)[:, None]).any()
    assert not is_constant(np.linspace(0, 1e-12, 50)[:, None]).any()  # small, but it does vary


def test_scale_and_shift_do_not_change_pcc(pair):
    truth, prediction = pair
    np.testing.assert_allclose(
        gene_metrics(truth, 1e-8 * prediction + 2e-9)["pcc"], gene_metrics(truth, prediction)["pcc"], atol=1e-9
    )
    np.testing.assert_allclose(gene_metrics(truth, 3 - truth)["pcc"], -1)


def test_bad_arrays(pair):
    truth, prediction = pair
    with pytest.raises(ValueError, match="must both be"):
        gene_metrics(truth, prediction[:, :5])
    with pytest.raises(ValueError, match="N > 0"):
        gene_metrics(truth[:0], prediction[:0])
    prediction[4, 2] = np.nan
    with pytest.raises(ValueError, match="prediction of 1 spot-gene"):
        gene_metrics(truth, prediction)


def test_summary_over_seeds():
    seeds = [summarize(gene_metrics(*_noisy(seed))) for seed in range(3)]
    summary = summarize_seeds(seeds, ensemble=seeds[1])
    assert set(summary) == {"pcc", "mse", "mae", "pcc_defined", "n_constant_genes", "ensemble"}
    per_seed = [seed["pcc"] for seed in seeds]
    mean = sum(per_seed) / 3
    assert summary["pcc"]["per_seed"] == per_seed
    assert summary["pcc"]["mean"] == pytest.approx(mean)
    assert summary["pcc"]["sd"] == pytest.approx((sum((v - mean) ** 2 for v in per_seed) / 3) ** 0.5)
    assert summary["n_constant_genes"] == {"mean": 0.0, "sd": 0.0, "per_seed": [0, 0, 0]}
    assert summary["ensemble"] == seeds[1]


def test_undefined_metrics_are_null_in_json():
    flat = summarize(gene_metrics(np.ones((5, 3)), np.ones((5, 3))))
    summary = summarize_seeds([flat], ensemble=flat)
    text = json.dumps(summary, allow_nan=False)
    assert json.loads(text)["pcc"] == {"mean": None, "sd": None, "per_seed": [None]}
    assert json.loads(text)["mse"]["mean"] == 0
    assert json.loads(text)["ensemble"]["pcc_defined"] is None


def test_format_is_the_reference_files():
    assert format_mean_sd(0.12344, 0.00123) == "0.1234 ± 0.0012"
    assert format_mean_sd(None, None) == "nan ± nan"


def _noisy(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(20, 7))
    return truth, truth + rng.normal(size=truth.shape)


def test_depth_alone_is_a_straight_line_on_the_log_of_the_total():
    rng = np.random.default_rng(0)
    totals = rng.integers(1, 9000, 60)
    truth = np.log2(totals + 1)[:, None] * [1.0, -0.5, 0.0] + rng.normal(0, 0.1, (60, 3))
    found = depth_only(truth[:40], totals[:40], totals[40:])
    line = LinearRegression().fit(np.log2(totals[:40] + 1)[:, None], truth[:40])
    np.testing.assert_allclose(found, line.predict(np.log2(totals[40:] + 1)[:, None]), rtol=1e-9)
    flat = depth_only(truth[:40], np.full(40, 7), totals[40:])  # a depth that does not vary says nothing
    np.testing.assert_allclose(flat, np.broadcast_to(truth[:40].mean(axis=0), (20, 3)))


def test_coverage_is_the_share_inside_the_interval():
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(500, 7))
    sd = rng.uniform(0.5, 2, (500, 7))
    truth = mean + sd * rng.normal(size=mean.shape)
    for level in (0.5, 0.9):
        assert coverage(truth, mean, sd, level) == pytest.approx(level, abs=0.03)
    assert coverage(np.zeros((2, 1)), np.array([[1.6], [1.7]]), np.ones((2, 1))) == 0.5
    assert np.isnan(coverage(truth, mean, np.full_like(sd, np.nan)))
