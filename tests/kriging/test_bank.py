"""The bank of processes against scikit-learn, and against leaving spots out one by one."""

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern

from spabit_jax.kriging import bank as banks
from spabit_jax.kriging.bank import Solved, draw_bank, without_image

N, P, C = 41, 3, 4


@pytest.fixture
def spots():
    """xy, image, noise and scores of known spots."""
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 8, (N, 2))
    scores = np.stack([np.sin(xy[:, 0]), xy[:, 1] / 4, rng.standard_normal(N)], axis=1)
    scores += 0.3 * rng.standard_normal((N, P))
    image, noise = rng.standard_normal((N, C)), np.exp(rng.normal(0, 0.3, N))
    return [a.astype(np.float32) for a in (xy, image, noise, (scores - scores.mean(axis=0)) / scores.std(axis=0))]


@pytest.fixture
def bank():
    return draw_bank(np.random.default_rng(1), 7)


def test_processes_in_space_are_those_of_scikit_learn(spots, bank):
    xy, image, noise, scores = spots
    bank = without_image(bank)
    solved = Solved(bank, xy, image[:, :0], noise, scores, prune=False)
    places = np.random.default_rng(2).uniform(0, 8, (11, 2)).astype(np.float32)
    answers = solved.at(places, np.zeros((11, 0)))
    likelihood = np.empty((7, P))
    for i in range(7):
        process = bank.at(i)
        (long, short), (a, b) = process.space, process.variance[:2]
        kernel = ConstantKernel(a, "fixed") * Matern(long, "fixed", 1.5)
        kernel += ConstantKernel(b, "fixed") * Matern(short, "fixed", 1.5)
        oracle = GaussianProcessRegressor(kernel, alpha=process.noise * noise, optimizer=None).fit(xy, scores)
        mean, sd = oracle.predict(places, return_std=True)
        np.testing.assert_allclose(answers.mean[i], mean, atol=2e-3)
        np.testing.assert_allclose(answers.variance[i], sd[:, 0] ** 2, atol=2e-3)
        for p in range(P):
            one = GaussianProcessRegressor(kernel, alpha=process.noise * noise, optimizer=None).fit(xy, scores[:, p])
            likelihood[i, p] = one.log_marginal_likelihood_value_
    expected = np.exp(likelihood - likelihood.max(axis=0))
    np.testing.assert_allclose(np.exp(answers.log_weight), expected / expected.sum(axis=0), atol=1e-3)


@pytest.mark.parametrize("with_image", [True, False])
def test_left_out_is_leaving_out(spots, bank, with_image):
    xy, image, noise, scores = spots
    if not with_image:
        image, bank = image[:, :0], without_image(bank)
    left_out = Solved(bank, *spots[:1], image, noise, scores, prune=False).left_out()
    for i in (0, 17, N - 1):
        others = np.arange(N) != i
        alone = Solved(bank, xy[others], image[others], noise[others], scores[others], prune=False)
        answers = alone.at(xy[[i]], image[[i]])
        np.testing.assert_allclose(left_out.mean[:, i], answers.mean[:, 0], atol=2e-3)
        np.testing.assert_allclose(left_out.variance[:, i], answers.variance[:, 0], atol=2e-3)


def test_weights_of_a_fold_know_nothing_of_it(spots, bank):
    xy, image, noise, scores = spots
    fold = np.arange(5, 14)
    solved = Solved(bank, *spots, prune=False)
    (answers,) = solved.left_out_in([(fold, scores)])
    assert answers.mean.shape == (7, len(fold), P)
    np.testing.assert_allclose(answers.mean, solved.left_out().mean[:, fold], atol=1e-5)
    others = np.setdiff1d(np.arange(N), fold)
    outside = Solved(bank, *(array[others] for array in spots), prune=False)
    np.testing.assert_allclose(answers.log_weight, outside.log_weight, atol=5e-3)
    assert np.abs(answers.log_weight - solved.log_weight).max() > 0.05


def test_nothing_depends_on_the_order_of_spots_or_on_other_places(spots, bank):
    places, there = np.full((3, 2), [[1.0], [4.0], [7.0]], np.float32), np.zeros((3, C), np.float32)
    answers = Solved(bank, *spots).at(places, there)
    order = np.random.default_rng(3).permutation(N)
    again = Solved(bank, *(array[order] for array in spots)).at(places[1:2], there[1:2])
    np.testing.assert_allclose(again.mixed()[0], answers.mixed()[0][1:2], atol=1e-4)


def test_many_spots_are_seen_by_their_nearest(spots, bank, monkeypatch):
    """With as many nearest as there are spots the answers are the exact ones."""
    places, there = np.full((3, 2), [[1.0], [4.0], [7.0]], np.float32), np.zeros((3, C), np.float32)
    exact = Solved(bank, *spots, prune=False)
    monkeypatch.setattr(banks, "MAX_EXACT", 10)
    monkeypatch.setattr(banks, "NEAREST", N - 1)
    near = Solved(bank, *spots, prune=False)
    np.testing.assert_allclose(near.left_out().mean, exact.left_out().mean, atol=2e-3)
    monkeypatch.setattr(banks, "NEAREST", N)
    for mine, other in zip(near.at(places, there), exact.at(places, there), strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-3)


def test_variances_are_shares(bank):
    drawn = draw_bank(np.random.default_rng(1), 7, noise=np.full(7, 0.3))
    np.testing.assert_allclose((drawn.variance / [1, 1, 1, banks.LINEAR, 1]).sum(axis=1), 0.7, rtol=1e-5)
    np.testing.assert_allclose(without_image(bank).variance.sum(axis=1) + bank.noise, 1 + banks.MIN_NOISE, rtol=1e-5)
    assert not without_image(bank).variance[:, 2:].any()


def test_processes_without_a_part_are_left_out(spots):
    bank = draw_bank(np.random.default_rng(1))
    full, pruned = Solved(bank, *spots, prune=False), Solved(bank, *spots)
    assert len(pruned.factors) < len(full.factors)
    np.testing.assert_allclose(np.exp(pruned.log_weight).sum(axis=0), 1, rtol=1e-5)
    np.testing.assert_allclose(pruned.left_out().mixed()[0], full.left_out().mixed()[0], atol=0.03)
