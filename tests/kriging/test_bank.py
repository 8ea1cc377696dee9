"""The bank of processes against scikit-learn, and against leaving spots out one by one."""

import jax
import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Matern

from spabit_jax.chunks import sample
from spabit_jax.kriging import bank as banks
from spabit_jax.kriging import passes as passes_of
from spabit_jax.kriging import solved as solving
from spabit_jax.kriging.bank import Inputs, draw_bank, pairs, second_pass, without_image
from spabit_jax.kriging.passes import Passes
from spabit_jax.kriging.process import distances
from spabit_jax.kriging.solved import Blocks, Solved

N, P, C = 41, 3, 4


@pytest.fixture
def spots():
    """Known spots, their noise and their scores."""
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 8, (N, 2))
    scores = np.stack([np.sin(xy[:, 0]), xy[:, 1] / 4, rng.standard_normal(N)], axis=1)
    scores += 0.3 * rng.standard_normal((N, P))
    image, noise = rng.standard_normal((N, C)), np.exp(rng.normal(0, 0.3, N))
    scores = (scores - scores.mean(axis=0)) / scores.std(axis=0)
    return Inputs.of(xy, image), noise.astype(np.float32), scores.astype(np.float32)


@pytest.fixture
def bank():
    return draw_bank(np.random.default_rng(1), 7)


@pytest.mark.parametrize("block", [solving.BLOCK, 100])  # by NumPy, and by XLA
def test_processes_in_space_are_those_of_scikit_learn(spots, bank, monkeypatch, block):
    monkeypatch.setattr(solving, "BLOCK", block)
    (xy, image, _), noise, scores = spots
    bank = without_image(bank)
    solved = Solved(bank, Inputs.of(xy, image[:, :0]), noise, scores, prune=False)
    places = np.random.default_rng(2).uniform(0, 8, (11, 2)).astype(np.float32)
    answers = solved.at(Inputs.of(places, np.zeros((11, 0))))
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


@pytest.mark.parametrize("block", [4 * N * 9, N * 9, 100, 64])  # NumPy, one, some that are filled but for the last
@pytest.mark.parametrize(("with_image", "n_said"), [(True, 2), (True, 0), (False, 2), (False, 0)])
def test_covariances_do_not_depend_on_blocks(spots, bank, monkeypatch, block, with_image, n_said):
    monkeypatch.setattr(solving, "BLOCK", block)
    rng = np.random.default_rng(4)
    bank = second_pass(rng, bank) if with_image else without_image(second_pass(rng, bank))
    said = rng.standard_normal((N, n_said)) if n_said else None
    known = Inputs.of(spots[0].xy, spots[0].image[:, : C * with_image], said)
    blocks, of = Blocks(known.at(slice(9)), known), pairs(known.at(slice(9)), known)
    assert len(blocks.blocks) == (0 if block == 4 * N * 9 else -(-N * 9 // block))
    for i in range(7):
        expected = banks.covariance(bank.at(i), of)
        assert expected.shape == (9, N)
        np.testing.assert_allclose(blocks.covariance(bank.at(i)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block", [solving.BLOCK, 100])
@pytest.mark.parametrize("with_image", [True, False])
def test_left_out_is_leaving_out(spots, bank, monkeypatch, with_image, block):
    monkeypatch.setattr(solving, "BLOCK", block)
    known, noise, scores = spots
    if not with_image:
        known, bank = known._replace(image=known.image[:, :0]), without_image(bank)
    left_out = Solved(bank, known, noise, scores, prune=False).left_out()
    for i in (0, 17, N - 1):
        others = np.arange(N) != i
        alone = Solved(bank, known.at(others), noise[others], scores[others], prune=False)
        answers = alone.at(known.at([i]))
        np.testing.assert_allclose(left_out.mean[:, i], answers.mean[:, 0], atol=2e-3)
        np.testing.assert_allclose(left_out.variance[:, i], answers.variance[:, 0], atol=2e-3)


@pytest.fixture
def wide():
    """Places with more image components than those that distances are of, and with what a first pass says."""
    rng = np.random.default_rng(4)
    return Inputs.of(
        rng.uniform(0, 8, (9, 2)), rng.standard_normal((9, 2 * banks.N_IMAGE)), rng.standard_normal((9, 5))
    )


def test_covariance_is_the_sum_of_its_kernels(bank, wide):
    """By scikit-learn's kernels; of the image components beyond the first ones there is the linear kernel alone."""
    bank = second_pass(np.random.default_rng(5), bank)
    for i in range(7):
        (long, short), scale, (in_space, in_image), variance, _, (length, near, linear) = bank.at(i)

        def nu(length, x):
            return Matern(length, nu=1.5)(x)

        xy, image, said = wide
        first = image[:, : banks.N_IMAGE] / scale
        both = nu(in_space, xy) * RBF(in_image)(first)
        of_image = [nu(1.0, first), image @ image.T * (banks.IMAGE / scale) ** 2 / banks.N_IMAGE, both]
        expected = sum(v * kernel for v, kernel in zip(variance, [nu(long, xy), nu(short, xy), *of_image], strict=True))
        expected += near * nu(length, said) + linear * said @ said.T
        found = np.asarray(banks.covariance(bank.at(i), pairs(wide, wide)))
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(banks.covariance(bank.at(i), banks.themselves(wide)), np.diagonal(found), rtol=1e-3)
        in_jax = jax.jit(lambda process, a: banks.covariance(process, pairs(a, a, distances)))(bank.at(i), wide)
        np.testing.assert_allclose(found, in_jax, rtol=1e-3, atol=1e-3)


def test_the_second_pass_lets_one_score_follow_from_another():
    """Of stripes: it is believed where it explains a score, and not of one that is noise."""
    rng, n = np.random.default_rng(6), 600
    bank = without_image(draw_bank(rng))
    again = without_image(second_pass(rng, draw_bank(rng)))
    xy, no_image, noise = rng.uniform(0, 1, (n, 2)) * [40, 6], np.zeros((n, 0)), np.ones(n, np.float32)
    wave = np.sin(xy[:, 0])
    stripes = np.sign(wave) * np.sign(wave - 0.7)
    scores = np.stack([wave, stripes, 0 * wave], axis=1) + [0.1, 0.8, 1] * rng.standard_normal((n, 3))
    known, places, size = slice(200), slice(200, None), np.array([1.0, 0.9, 0.1])

    passes = Passes((bank, again), xy[known], no_image[known], noise[known], scores[known], size, exact=True)
    answers = passes.at(xy[places], no_image[places])
    first, second = (np.mean((of_pass.mixed()[0][:, 1] - stripes[places]) ** 2) for of_pass in answers)
    assert second < 0.6 * first
    assert 0.75 >= passes.share[1] > 0.7 > 0.4 > passes.share[2]


def test_of_many_spots_the_first_pass_has_some_and_the_second_all(spots, bank, monkeypatch):
    known, noise, scores = spots
    banks_of = bank, second_pass(np.random.default_rng(5), bank)
    monkeypatch.setattr(passes_of, "N_FIRST", 10)
    passes = Passes(banks_of, known.xy, known.image, noise, scores, np.ones(P), exact=False)
    assert len(passes.first.noise) == 10 and len(passes.second.noise) == N and (passes.share == 1).all()
    first, second = passes.at(known.xy[:3], known.image[:3])
    assert first is None and np.isfinite(second.mixed()).all()
    of_ten = sample(known.xy, 10)
    one = Solved(bank, known.at(of_ten), noise[of_ten], scores[of_ten])
    others = np.setdiff1d(np.arange(N), of_ten)
    said = one.at(known.at(others)).mixed()[0] * passes.unit
    np.testing.assert_allclose(passes.second.spots.said[others], said, atol=1e-4)


def test_the_mean_alone_is_that_of_the_mixture(spots, bank):
    solved, places = Solved(bank, *spots), spots[0].at(slice(5))
    np.testing.assert_allclose(solved.mean_at(places), solved.at(places).mixed()[0], atol=1e-5)


def test_what_some_spots_rule_out_is_not_solved_for_all(spots, bank, monkeypatch):
    """The answers are those of all processes."""
    every, places = Solved(bank, *spots), spots[0].at(slice(5))
    monkeypatch.setattr(solving, "N_WEIGHED", N // 2)
    found = Solved(bank, *spots)
    assert len(found.bank.noise) <= len(every.bank.noise)
    for mine, other in zip(found.at(places).mixed(), every.at(places).mixed(), strict=True):
        np.testing.assert_allclose(mine, other, atol=0.02)


def test_nothing_depends_on_the_order_of_spots_or_on_other_places(spots, bank):
    places, there = np.full((3, 2), [[1.0], [4.0], [7.0]], np.float32), np.zeros((3, C), np.float32)
    at = Inputs.of(places, there)
    answers = Solved(bank, *spots).at(at)
    order = np.random.default_rng(3).permutation(N)
    known, noise, scores = spots
    again = Solved(bank, known.at(order), noise[order], scores[order]).at(at.at([1]))
    np.testing.assert_allclose(again.mixed()[0], answers.mixed()[0][1:2], atol=1e-4)


def test_many_spots_are_seen_by_their_nearest(spots, bank, monkeypatch):
    """With as many nearest as there are spots the answers are the exact ones."""
    places, there = np.full((3, 2), [[1.0], [4.0], [7.0]], np.float32), np.zeros((3, C), np.float32)
    at, exact = Inputs.of(places, there), Solved(bank, *spots, prune=False)
    monkeypatch.setattr(solving, "NEAREST", N)
    near = Solved(bank, *spots, exact=False, prune=False)
    for mine, other in zip(near.at(at), exact.at(at), strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-3)


def test_variances_are_shares(bank):
    drawn = draw_bank(np.random.default_rng(1), 7, noise=np.full(7, 0.3))
    np.testing.assert_allclose((drawn.variance / [1, 1, 1, banks.LINEAR, 1]).sum(axis=1), 0.7, rtol=1e-5)
    np.testing.assert_allclose(without_image(bank).variance.sum(axis=1) + bank.noise, 1 + banks.MIN_NOISE, rtol=1e-5)
    assert not without_image(bank).variance[:, 2:].any()
    again = second_pass(np.random.default_rng(2), bank)
    share = (again.variance / [1, 1, 1, banks.LINEAR, 1]).sum(axis=1) + again.said[:, 1:].sum(axis=1) + again.noise
    np.testing.assert_allclose(share, 1 + banks.MIN_NOISE + 0 * share, rtol=0.02)
    in_space = without_image(again).variance.sum(axis=1) + again.said[:, 1:].sum(axis=1) + again.noise
    np.testing.assert_allclose(in_space, 1 + banks.MIN_NOISE, rtol=1e-5)


def test_processes_without_a_part_are_left_out(spots):
    bank = draw_bank(np.random.default_rng(1))
    full, pruned = Solved(bank, *spots, prune=False), Solved(bank, *spots)
    assert len(pruned.bank.noise) < len(full.bank.noise)
    np.testing.assert_allclose(np.exp(pruned.log_weight).sum(axis=0), 1, rtol=1e-5)
    np.testing.assert_allclose(pruned.left_out().mixed()[0], full.left_out().mixed()[0], atol=0.03)
