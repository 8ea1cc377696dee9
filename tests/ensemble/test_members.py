import jax
import numpy as np
import pytest

from spabit_jax.config import Config
from spabit_jax.ensemble.blend import fit_blend
from spabit_jax.ensemble.members import (
    MEMBERS,
    Estimate,
    HeldOut,
    Kriging,
    Ridge,
    check_held_out,
    checked,
    fit_members,
    make_members,
)
from spabit_jax.errors import InputError
from spabit_jax.kriging import bag as kriging_bag
from spabit_jax.kriging import process as kriging


@pytest.fixture
def section(section_data, tiny_config):
    return section_data(tiny_config)


def kriging_member(n_components: int) -> Kriging:
    config = Config()
    config.model.n_components = n_components
    return Kriging(config)


def said(member, section):
    """What a member says at the train spots without each, mean and variance; and at the test spots."""
    fitted = member.fit(section)
    left_out = fitted.held_out().estimate
    return (left_out.mean[0], left_out.variance), fitted.predict(section.places(np.flatnonzero(~section.is_train)))


def moved(section):
    """The section with another measurement at the fifth train spot."""
    expression = section.expression.copy()
    expression[section.train_spots[4]] += 3
    return section._replace(expression=expression)


def test_leaving_a_spot_out_equals_conditioning_on_the_others(section):
    train = np.flatnonzero(section.is_train)
    xy, image, y = section.xy[train], section.image[train], section.expression[train]
    fitted = kriging.fit(xy, image, y, 3)
    process = kriging.condition(fitted, xy, image, y)
    mean, variance = map(np.asarray, kriging.leave_one_out(process))
    for i in (0, 7):
        others = np.delete(np.arange(len(train)), i)
        without = kriging.condition(fitted, xy[others], image[others], y[others])
        expected = kriging.predict(without, xy[[i]], image[[i]])
        np.testing.assert_allclose(mean[[i]], expected[0], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(variance[[i]], expected[1], rtol=1e-3)


def test_parameters_are_at_a_better_posterior_than_the_prior(section):
    train = np.flatnonzero(section.is_train)
    xy, image = section.xy[train], section.image[train]
    scores = np.random.default_rng(0).normal(size=(len(train), 2)).astype(np.float32)
    scores[:, 1] = xy[:, 0] / xy[:, 0].std()
    params = kriging.learn(xy, image, scores)
    start = kriging.Params(*(jax.numpy.broadcast_to(m, p.shape) for m, p in zip(kriging.PRIOR, params, strict=True)))
    assert kriging.loss(params, xy, image, scores) < kriging.loss(start, xy, image, scores)
    assert params.noise[0] > params.noise[1]  # white noise beside a plane


@pytest.mark.parametrize("most", [1500, 20])
def test_no_spot_is_kriged_from_itself(section, monkeypatch, most):
    monkeypatch.setattr(kriging_bag, "MAX_EXACT", most)
    monkeypatch.setattr(kriging_bag, "NEAREST", 8)
    monkeypatch.setattr(kriging, "MAX_FITTED", 20)
    (mean, variance), elsewhere = said(kriging_member(3), section)
    assert np.isfinite(mean).all() and (variance > 0).all()
    (other, _), changed = said(kriging_member(3), moved(section))
    if most == 1500:  # one process for all has components from the spot too
        np.testing.assert_allclose(other[4], mean[4], atol=1e-3)  # leaving out is a subtraction in float32
    assert np.abs(changed.mean - elsewhere.mean).max() > 1e-2


def test_kriging_from_the_nearest_equals_conditioning_on_them(section, monkeypatch):
    train, test = np.flatnonzero(section.is_train), np.flatnonzero(~section.is_train)
    xy, image, y = section.xy[train], section.image[train], section.expression[train]
    monkeypatch.setattr(kriging_bag, "MAX_EXACT", 20)
    monkeypatch.setattr(kriging_bag, "NEAREST", 8)
    bag = kriging_bag.Bag(kriging_bag.fit_bag(xy, image, y, [], 3), xy, image, y)
    mean, variance = bag.at(section.xy[test], section.image[test])
    left_mean, left_variance = bag.left_out([])
    for i in (0, 7):
        for place, others, found in (
            (test, train, (mean, variance)),
            (train, np.delete(train, i), (left_mean, left_variance)),
        ):
            at = section.xy[[place[i]]], section.image[[place[i]]]
            near = others[np.argsort(np.linalg.norm(section.xy[others] - at[0], axis=1), kind="stable")]
            assert np.diff(np.linalg.norm(section.xy[near[7:9]] - at[0], axis=1)) > 1e-6  # no tie at the last place
            near = near[:8]
            process = kriging.condition(bag.fitted, section.xy[near], section.image[near], section.expression[near])
            for own, expected in zip(found, kriging.predict(process, *at), strict=True):
                np.testing.assert_allclose(own[[i]], expected, rtol=1e-3, atol=1e-3)


def test_kriging_does_not_depend_on_what_else_is_asked_for(section, monkeypatch):
    train, test = np.flatnonzero(section.is_train), np.flatnonzero(~section.is_train)
    for most in (1500, 20):
        monkeypatch.setattr(kriging_bag, "MAX_EXACT", most)
        known = section.xy[train], section.image[train], section.expression[train]
        bag = kriging_bag.Bag(kriging_bag.fit_bag(*known, np.array_split(np.arange(len(train)), 3), 3), *known)
        whole = bag.at(section.xy[test], section.image[test])
        monkeypatch.setattr(kriging_bag, "CHUNK", 7)
        part = bag.at(section.xy[test[::-1][:9]], section.image[test[::-1][:9]])
        monkeypatch.undo()
        for a, b in zip(whole, part, strict=True):
            np.testing.assert_allclose(a[::-1][:9], b, rtol=1e-4, atol=1e-4)


def test_no_spot_is_predicted_by_ridge_from_itself(section):
    (mean, variance), elsewhere = said(Ridge(), section)
    assert np.isfinite(mean).all() and variance is None
    (other, _), changed = said(Ridge(), moved(section))
    np.testing.assert_allclose(other[4], mean[4], atol=1e-5)
    assert np.abs(changed.mean - elsewhere.mean).max() > 1e-3


def test_kriging_without_an_image_or_test_spots(section_data, tiny_config):
    section = section_data(tiny_config, features=None)
    assert section.image.shape[1] == 0
    train = np.flatnonzero(section.is_train)
    cut = section._replace(**{k: getattr(section, k)[train] for k in ("xy", "image", "expression", "is_train")})
    held_out = kriging_member(3).fit(cut).held_out()
    mean, variance = held_out.estimate.mean[0], held_out.estimate.variance
    assert mean.shape == (len(train), section.expression.shape[1]) and (variance > 0).all()
    assert held_out.unseen.all()
    error = ((mean - cut.expression) ** 2).mean()
    assert error < 1.05 * cut.expression.var(axis=0).mean()


class Middle:
    """A member of one's own: the mean of each gene everywhere."""

    def fit(self, section, *, seeds, folder=None):
        self.known = section.expression[section.train_spots]
        return self

    def held_out(self):
        n = len(self.known)
        without = (self.known.sum(axis=0) - self.known) / (n - 1)
        return HeldOut(Estimate(without[None], None), np.ones((1, n), bool))

    def predict(self, places):
        return Estimate(np.tile(self.known.mean(axis=0), (1, len(places.xy), 1)), None)


def test_a_member_of_ones_own_is_one_class_and_one_line(section, tiny_config, monkeypatch):
    monkeypatch.setitem(MEMBERS, "middle", lambda config: Middle())
    tiny_config.model.members = "middle,ridge"
    fitted = fit_members(make_members(tiny_config), section, seeds=[0])
    assert list(fitted) == ["middle", "ridge"]
    blend = fit_blend(section.expression[section.train_spots], {n: m.held_out() for n, m in fitted.items()})
    assert blend.weights["ridge"] > 0.3  # genes of this section are predictable, and means say nothing of where
    prediction = blend.apply({n: m.predict(section.places(np.arange(9))) for n, m in fitted.items()})
    assert prediction.mean.shape == (9, section.expression.shape[1]) and (prediction.sd > 0).all()


SPOTS, HERE = (1, 5, 3), np.ones((1, 5, 3))


@pytest.mark.parametrize(
    ("mean", "variance", "message"),
    [
        (HERE[0], None, "the mean has shape"),
        (HERE[:, 1:], None, "the mean has shape"),
        (HERE, HERE, "the variance has shape"),
        (HERE * np.nan, None, "not finite"),
        (HERE, -HERE[0], "below 0"),
    ],
)
def test_what_a_member_says_is_checked(mean, variance, message):
    with pytest.raises(InputError, match=f"member mine: .*{message}"):
        checked("mine", Estimate(mean, variance), *SPOTS[1:])
    with pytest.raises(InputError, match="nothing in it is unseen"):
        check_held_out("mine", HeldOut(Estimate(HERE, HERE[0]), np.zeros((1, 5), bool)), *SPOTS[1:])
    assert checked("mine", Estimate(HERE, HERE[0]), *SPOTS[1:]).mean is HERE


def test_unknown_members_are_named(tiny_config):
    tiny_config.model.members = "spabit,krigging"
    with pytest.raises(InputError, match="'krigging': known members are spabit, pretrained, kriging, ridge"):
        make_members(tiny_config)
