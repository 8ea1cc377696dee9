"""Baselines against independent computations, and what none of them may depend on."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial.distance import cdist
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from spabit_jax.ensemble import ridge
from spabit_jax.ensemble.ridge import NeighbourRegression
from spabit_jax.evaluation.baselines import (
    BASELINES,
    FOLDS,
    NEED_IMAGE,
    GeneMean,
    Kriging,
    Mean,
    Nearest,
    Ridge,
    Spots,
    make_spots,
)
from spabit_jax.kriging import process as kriging

N_GENES = 7


def section(image: bool = True, n: int = 59):
    """Spots, expression that space and image explain in part, and which are train spots."""
    rng = np.random.default_rng(3)
    xy = rng.uniform(0, 900, (n, 2))
    hidden = np.stack([np.sin(xy[:, 0] / 150), np.cos(xy[:, 1] / 200)], axis=1)
    features = np.concatenate([hidden, rng.standard_normal((n, 9))], axis=1) + 0.3 * rng.standard_normal((n, 11))
    expression = 3 + hidden @ rng.standard_normal((2, N_GENES)) + 0.3 * rng.standard_normal((n, N_GENES))
    is_train = rng.random(n) < 0.6
    return make_spots(xy, features if image else None), expression.astype(np.float32), is_train


@pytest.fixture(scope="module")
def fitted():
    """name → every baseline, fitted once to the section with an image."""
    spots, expression, train = section()
    return {name: make().fit(spots.at(train), expression[train]) for name, make in BASELINES.items()}


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_keeps_to_the_interface(fitted, name):
    spots, expression, train = section()
    mean, sd = fitted[name].predict(spots.at(~train))
    assert mean.shape == sd.shape == expression[~train].shape
    assert np.isfinite(mean).all() and np.isfinite(sd).all() and (sd > 0).all()
    error = mean - expression[~train]
    assert 0.6 < np.mean(np.abs(error) < 1.645 * sd) <= 1
    if name != "gene_mean":
        assert np.mean(error**2) < 0.9 * np.mean((expression[train].mean(axis=0) - expression[~train]) ** 2)


@pytest.mark.parametrize("name", BASELINES)
def test_a_prediction_does_not_depend_on_which_others_are_asked_for(fitted, name, monkeypatch):
    monkeypatch.setattr(ridge, "CHUNK", 7)
    spots, _, train = section()
    asked = np.flatnonzero(~train)
    together = fitted[name].predict(spots.at(asked))
    np.testing.assert_allclose(fitted[name].predict_mean(spots.at(asked)), together[0], rtol=1e-4, atol=1e-4)
    for i in (4, 8):
        alone = fitted[name].predict(spots.at(asked[i : i + 1]))
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_allclose(a[i : i + 1], b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in BASELINES if name not in (*NEED_IMAGE, "kriging_learned")])
def test_those_that_need_no_image_work_without(name):
    spots, expression, train = section(image=False)
    assert spots.image.shape[1] == spots.components.shape[1] == 0
    mean, sd = BASELINES[name]().fit(spots.at(train), expression[train]).predict(spots.at(~train))
    assert np.isfinite(mean).all() and (sd > 0).all()


@pytest.mark.parametrize("name", BASELINES)
def test_three_train_spots_and_a_constant_gene_are_enough(name):
    spots, expression, _ = section()
    expression[:, 2] = 0
    mean, sd = BASELINES[name]().fit(spots.at(slice(3)), expression[:3]).predict(spots.at(slice(3, 9)))
    assert np.isfinite(mean).all() and (sd > 0).all()
    np.testing.assert_allclose(mean[:, 2], 0, atol=1e-3)


def test_nearest_by_hand():
    xy = np.array([[0, 0], [1, 0], [0, 2], [9, 9]], np.float32)
    empty = np.zeros((4, 0), np.float32)
    expression = np.array([[1.0, 0], [2, 4], [4, 8], [100, 100]])
    spots = Spots(xy, empty, empty)
    at = Spots(np.array([[0, 1]], np.float32), empty[:1], empty[:1])
    mean = Nearest(3).fit(spots, expression).predict_mean(at)
    np.testing.assert_allclose(mean, [[7 / 3, 4]])
    weights = 1 / np.array([1, np.sqrt(2), 1])
    by_hand = weights @ expression[:3] / weights.sum()
    np.testing.assert_allclose(Nearest(3, power=1).fit(spots, expression).predict_mean(at)[0], by_hand, rtol=1e-6)
    on_a_spot = Nearest(3, power=1).fit(spots, expression).predict_mean(spots.at([1]))
    np.testing.assert_allclose(on_a_spot, expression[[1]], rtol=1e-4)


def test_the_standard_deviation_is_the_cross_validated_error():
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import KFold, cross_val_predict

    spots, expression, train = section()
    y = expression[train]
    model = RidgeCV(np.logspace(-1, 5, 25))
    folds = KFold(FOLDS, shuffle=True, random_state=0)
    error = cross_val_predict(model, spots.image[train], y, cv=folds) - y
    ridge = Ridge().fit(spots.at(train), y)
    mean, sd = ridge.predict(spots.at(~train))
    np.testing.assert_allclose(sd[0], np.sqrt(np.mean(error**2, axis=0)), rtol=1e-4)
    np.testing.assert_allclose(mean, model.fit(spots.image[train], y).predict(spots.image[~train]), rtol=1e-5)
    assert (GeneMean().fit(spots.at(train), y).rmse() > sd[0]).any()


def test_a_train_spots_neighbours_are_others():
    """Changing one spot's expression changes the inputs of others but not its own."""
    spots, expression, train = section()
    spots, expression = spots.at(train), expression[train]
    known = spots.xy, spots.components
    model = NeighbourRegression().fit(*known, expression)
    before = model._inputs(*known, at_train=True)
    model.scores[11] += 100
    changed = (model._inputs(*known, at_train=True) != before).any(axis=1)
    assert not changed[11] and changed.sum() >= 4
    assert (model._inputs(*known, at_train=False) != before)[11].any()  # as a test spot it would see itself


def test_neighbours_of_spots_at_one_place():
    spots, expression, _ = section()
    spots = Spots(np.repeat(spots.xy[:7], 9, axis=0), spots.image[:0], spots.components[:0])
    from scipy.spatial import KDTree

    from spabit_jax.evaluation.baselines import nearest

    distance, index = nearest(KDTree(spots.xy), spots.xy, 4, leave_self_out=True)
    assert index.shape == (63, 4) and not distance.any()
    assert not (index == np.arange(63)[:, None]).any()


@pytest.mark.filterwarnings("ignore:The optimal value")  # a component without noise
@pytest.mark.parametrize("with_image", [False, True])
def test_kriging_is_a_gaussian_process_by_hand(with_image):
    """Posterior of the fitted kernel, and marginal likelihood at a maximum."""
    spots, expression, train = section()
    model = Kriging(with_image).fit(spots.at(train), expression[train])
    x, at, y = spots.at(train), spots.at(~train), expression[train].astype(float)
    mean_xy, sd_xy = x.xy.astype(float).mean(axis=0), x.xy.astype(float).std(axis=0)
    a, b = (x.xy - mean_xy) / sd_xy, (at.xy - mean_xy) / sd_xy
    if with_image:
        centre = x.image.mean(axis=0)
        _, _, right = np.linalg.svd(x.image - centre, full_matrices=False)
        project = (x.image - centre) @ right[:6].T
        sd = project.std(axis=0, ddof=1)
        a = np.concatenate([a, 0.3 * project / sd], axis=1)
        b = np.concatenate([b, 0.3 * (at.image - centre) @ right[:6].T / sd], axis=1)
    left, size, right = np.linalg.svd(y - y.mean(axis=0), full_matrices=False)
    scores, n = left * size, len(y)
    mean, variance = np.tile(y.mean(axis=0), (len(b), 1)), np.zeros((len(b), N_GENES))
    for i, (amplitude, length, noise) in enumerate(zip(model.variance, model.length, model.noise, strict=True)):

        def matern(p, q, amplitude=amplitude, length=length):
            r = np.sqrt(3) * cdist(p, q) / length
            return amplitude * (1 + r) * np.exp(-r)

        factor = cho_factor(matern(a, a) + noise * np.eye(n))
        cross, sd = matern(b, a), scores[:, i].std()
        mean += np.outer(cross @ cho_solve(factor, scores[:, i]), right[i])
        posterior = amplitude + noise - np.sum(cross * cho_solve(factor, cross.T).T, axis=1)
        variance += np.outer(posterior * sd**2, right[i] ** 2)
    predicted, sd = model.predict(at)
    np.testing.assert_allclose(predicted, mean, atol=2e-3)
    np.testing.assert_allclose(sd, np.sqrt(variance), rtol=2e-2)  # seven components hold all of seven genes
    kernel = ConstantKernel(0.5) * Matern(nu=1.5) + WhiteKernel(0.5)
    for i in range(3):  # as likely as what scikit-learn's optimiser finds, but for the grid's steps
        y = scores[:, i] / scores[:, i].std()
        found = GaussianProcessRegressor(kernel, n_restarts_optimizer=3, random_state=0).fit(a, y)
        own = np.log([model.variance[i], model.length[i], model.noise[i]])
        assert found.log_marginal_likelihood(own) > found.log_marginal_likelihood_value_ - 0.2


@pytest.mark.parametrize("image", [False, True])
def test_a_process_of_learned_kriging_is_a_gaussian_process_by_hand(image):
    """In float64, with the parameters that it found."""
    spots, expression, train = section(image)
    known = spots.xy[train], spots.components[train], expression[train]
    fitted = kriging.fit(*known)
    p = [np.asarray(a, float) for a in fitted.params]
    (long, short), scales, (in_space, in_image) = np.exp(p[0]), np.exp(p[1]), np.exp(p[2])
    amplitude, noise = np.exp(p[3]), np.exp(p[4]) + 0.01
    x, at = spots.at(train), spots.at(~train)

    def matern(r):
        return (1 + np.sqrt(3) * r) * np.exp(-np.sqrt(3) * r)

    def kernels(a: Spots, b: Spots):
        r = cdist(a.xy, b.xy)
        found = [matern(r / long), matern(r / short)]
        if image:
            u, v = a.components / scales, b.components / scales
            d = cdist(u, v)
            found += [matern(d), 4 * u @ v.T / len(scales)]
            found.append(matern(r / in_space) * np.exp(-0.5 * (d / in_image) ** 2))
        return np.stack(found)

    y = expression[train].astype(float)
    loadings = np.asarray(fitted.space.loadings, float)
    scores = (y - y.mean(axis=0)) @ np.linalg.pinv(loadings)
    mean, variance = np.tile(y.mean(axis=0), (len(at.xy), 1)), np.zeros((len(at.xy), N_GENES))
    variance += np.mean((y - y.mean(axis=0) - scores @ loadings) ** 2, axis=0)
    train_k, cross_k, own_k = kernels(x, x), kernels(at, x), kernels(at, at)
    for i in range(len(loadings)):
        cross = np.tensordot(amplitude[i], cross_k, 1)
        factor = cho_factor(np.tensordot(amplitude[i], train_k, 1) + noise[i] * np.eye(len(y)))
        mean += np.outer(cross @ cho_solve(factor, scores[:, i]), loadings[i])
        prior = np.diag(np.tensordot(amplitude[i], own_k, 1))
        posterior = prior - np.sum(cross * cho_solve(factor, cross.T).T, axis=1) + noise[i]
        variance += np.outer(posterior, loadings[i] ** 2)
    predicted = kriging.predict(kriging.condition(fitted, *known), at.xy, at.components)
    np.testing.assert_allclose(predicted[0], mean, atol=2e-3)
    np.testing.assert_allclose(predicted[1], variance, rtol=1e-2)


def test_learned_kriging_is_the_mean_of_its_processes(fitted):
    spots, _, train = section()
    at = spots.at(~train)
    processes = fitted["kriging_learned"].bag.processes
    mean, variance = np.stack([kriging.predict(p, at.xy, at.components) for p in processes], axis=1)
    predicted, sd = fitted["kriging_learned"].predict(at)
    np.testing.assert_allclose(predicted, mean.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(sd**2, variance.mean(axis=0) + mean.var(axis=0), rtol=1e-4)
    assert mean.var(axis=0).max() > 1e-6


def test_the_mean_of_methods(fitted):
    spots, _, train = section()
    test = spots.at(~train)
    parts = [fitted[name].predict(test) for name in ("ridge", "kriging", "kriging_image_pcs")]
    assert isinstance(fitted["mean_of_three"], Mean)
    for got, members in zip(fitted["mean_of_three"].predict(test), zip(*parts, strict=True), strict=True):
        np.testing.assert_allclose(got, sum(members) / 3, rtol=1e-5)
