import numpy as np
import pytest
from scipy.stats import norm

from spabit_jax.ensemble.blend import Blend, fit_blend
from spabit_jax.ensemble.members import Estimate, HeldOut

MEAN = 9.0  # far from 0, below which no prediction is


def held(section, mean, unseen=None, variance=None):
    """What a member that says (S, N, G) everywhere says at the train spots; a seed has not seen some, or all."""
    train = section.train_spots
    rows = np.ones((len(mean), len(train)), bool) if unseen is None else np.stack([np.isin(train, u) for u in unseen])
    return HeldOut(Estimate(mean[:, train], None if variance is None else variance[train]), rows)


def combine(section, per_seed, held_out, others=None, variance=None):
    """The blend and its prediction at all spots, of a network (S, N, G) and others (N, G); kriging has a variance."""
    members, estimates = {"spabit": held(section, per_seed, held_out)}, {"spabit": Estimate(per_seed, None)}
    for name, mean in (others or {}).items():
        of_member = variance if name == "kriging" else None
        members[name], estimates[name] = held(section, mean[None], None, of_member), Estimate(mean[None], of_member)
    blend = fit_blend(section.expression[section.train_spots], members)
    return blend, blend.apply(estimates)


@pytest.fixture
def case(section_data, tiny_config):
    """A section of 2,000 spots whose truth is signal + noise of sd 0.5."""
    rng = np.random.default_rng(0)
    n, n_genes = 2000, 7
    signal = rng.normal(MEAN, 1, size=(n, n_genes)).astype(np.float32)
    truth = signal + 0.5 * rng.normal(size=signal.shape).astype(np.float32)
    is_train = np.arange(n) % 2 == 0
    section = section_data(tiny_config)._replace(
        expression=np.where(is_train[:, None], truth, np.nan), is_train=is_train
    )
    return section, signal, truth, np.flatnonzero(is_train)


def test_the_weights_go_to_the_better_members(case):
    section, signal, _, train = case
    held_out = [train[::3], train[1::3]]
    rng = np.random.default_rng(1)
    noise = [rng.normal(MEAN, 1, size=signal.shape).astype(np.float32) for _ in range(3)]
    found = combine(section, np.stack([signal] * 2), held_out, {"kriging": noise[0]})[0].weights
    assert found["spabit"] == pytest.approx(1, abs=0.05) and found["kriging"] < 0.05
    found = combine(section, np.stack(noise[:2]), held_out, {"kriging": signal, "ridge": noise[2]})[0].weights
    assert found["kriging"] == pytest.approx(1, abs=0.05) and found["spabit"] + found["ridge"] < 0.05
    assert combine(section, np.stack(noise[:2]), held_out)[0].weights == {"spabit": 1}


def test_a_few_spots_do_not_outweigh_kriging(case):
    section, signal, truth, train = case
    rng = np.random.default_rng(1)
    noisy = [signal + rng.normal(size=signal.shape).astype(np.float32) for _ in range(2)]
    few, many = (
        combine(section, noisy[0][None], [train[:n]], {"kriging": noisy[1]})[0].weights["kriging"] for n in (3, 1000)
    )
    assert few > 0.7 and many == pytest.approx(1 / 3, abs=0.05)
    z, x, y = ((a[train[:3]] - section.expression[train].mean(axis=0)) for a in (truth, *noisy))
    sd = section.expression[train].std(axis=0)
    a, b = ((m / sd).ravel() for m in (x, y))
    ridge = 10 * len(sd) * np.eye(2)
    gram = np.array([[a @ a, a @ b], [a @ b, b @ b]]) + ridge
    by_hand = np.linalg.solve(gram, [a @ (z / sd).ravel(), b @ (z / sd).ravel() + ridge[1, 1]])
    assert few == pytest.approx(by_hand[1], rel=1e-3)


def test_the_mean_is_that_of_members_around_gene_means(case):
    section, signal, _, train = case
    rng = np.random.default_rng(1)
    noisy = [signal + rng.normal(size=signal.shape).astype(np.float32) for _ in range(3)]
    blend, found = combine(section, np.stack(noisy[:2]), [train[::2], train[1::2]], {"kriging": noisy[2]})
    mean, w = section.expression[train].mean(axis=0), blend.weights
    assert w["spabit"] == pytest.approx(1 / 3, abs=0.05) and w["kriging"] == pytest.approx(1 / 3, abs=0.05)
    expected = mean + w["spabit"] * (np.mean(noisy[:2], axis=0) - mean) + w["kriging"] * (noisy[2] - mean)
    np.testing.assert_allclose(found.mean, expected, atol=1e-4)
    np.testing.assert_allclose(found.per_seed.mean(axis=0), found.mean, atol=1e-4)


@pytest.mark.parametrize("with_kriging", [True, False])
def test_intervals_cover_what_they_say(case, with_kriging):
    section, signal, truth, train = case
    more = ({"kriging": signal}, np.full_like(signal, 9.0)) if with_kriging else ()  # its variance is far too large
    _, found = combine(section, np.stack([signal, signal]), [train[::3], train[1::3]], *more)
    test = ~section.is_train
    inside = np.abs(truth - found.mean) <= norm.ppf(0.95) * found.sd
    assert inside[test].mean() == pytest.approx(0.9, abs=0.02)


def held_out_around_zero(n, n_genes) -> dict[str, HeldOut]:
    estimate = Estimate(np.zeros((1, n, n_genes), np.float32), np.ones((n, n_genes), np.float32))
    return {"pretrained": HeldOut(estimate, np.ones((1, n), bool))}


@pytest.mark.parametrize("n", [3, 6, 12])
def test_genes_that_did_not_vary_do_not_widen_the_intervals_of_others(n):
    rng = np.random.default_rng(0)
    expression = rng.standard_normal((n, 100)).astype(np.float32)
    held_out = held_out_around_zero(n, 100)
    expected = fit_blend(expression, held_out).scale
    more = np.concatenate([expression, np.ones((n, 30), np.float32)], axis=1)
    with_more = held_out_around_zero(n, 130)
    with_more["pretrained"].estimate.variance[:, 100:] = 0
    assert fit_blend(more, with_more).scale == pytest.approx(expected) and expected < 2


def test_test_spots_decide_nothing(case):
    section, signal, _, train = case
    changed = signal.copy()
    changed[~section.is_train] = 100.0
    more = {"kriging": signal + 0.3}, np.full_like(signal, 0.25)
    a, b = (combine(section, np.stack([s, s]), [train[::2], train[1::2]], *more) for s in (signal, changed))
    assert a[0].weights == b[0].weights
    np.testing.assert_array_equal(a[1].sd[section.is_train], b[1].sd[section.is_train])


def test_a_gene_that_does_not_vary_over_train_spots_has_no_say(case):
    section, signal, _, train = case
    expression, flat = section.expression.copy(), signal.copy()
    expression[train, 0], flat[:, 0] = 0, 0
    _, found = combine(section._replace(expression=expression), np.stack([flat] * 2), [train[::3], train[1::3]])
    assert np.isfinite(found.sd).all() and (found.sd > 0).all()


def test_a_blend_says_the_same_of_some_places_as_of_all(case):
    section, signal, _, train = case
    rng = np.random.default_rng(3)
    per_seed = np.stack([signal + rng.normal(size=signal.shape).astype(np.float32) for _ in range(2)])
    variance, some = rng.uniform(0.2, 0.4, signal.shape).astype(np.float32), slice(700, 750)
    for others, v in (({"kriging": signal + 0.3}, variance), (None, None)):
        blend, whole = combine(section, per_seed, [train[::2], train[1::2]], others, v)
        estimates = {"spabit": Estimate(per_seed[:, some], None)}
        if others:
            estimates["kriging"] = Estimate(others["kriging"][None, some], v[some])
        part = blend.apply(estimates)
        np.testing.assert_allclose(part.mean, whole.mean[some], rtol=1e-6)
        np.testing.assert_allclose(part.sd, whole.sd[some], rtol=1e-6)


def test_with_related_sections_the_sections_own_spots_say_how_sure_it_is():
    rng = np.random.default_rng(0)
    sd = np.r_[np.full(40, 1.0), np.full(200, 0.1)][:, None]  # the others are deeper
    truth = (MEAN + sd * rng.normal(size=(240, 50))).astype(np.float32)
    said = HeldOut(
        Estimate(np.full((1, 240, 50), MEAN, np.float32), np.ones((240, 50), np.float32)), np.ones((1, 240), bool)
    )
    own, too_few, all_together = (fit_blend(truth, {"pretrained": said}, n).scale for n in (40, 20, 240))
    assert own == pytest.approx(1, abs=0.05) and too_few == all_together < 0.6


def test_no_sd_is_0():
    said = HeldOut(
        Estimate(np.full((1, 40, 3), MEAN, np.float32), np.zeros((40, 3), np.float32)), np.ones((1, 40), bool)
    )
    blend = fit_blend(np.full((40, 3), MEAN, np.float32), {"pretrained": said})
    assert (blend.apply({"pretrained": said.estimate}).sd > 0).all()


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_how_sure_it_is_says_the_member_of_most_weight(order):
    blend = Blend(np.zeros(3), {"a": 0.9, "b": 0.1}, None, 1.0)
    of = {"a": Estimate(np.zeros((1, 4, 3)), np.full((4, 3), 2.0)), "b": Estimate(np.zeros((1, 4, 3)), np.ones((4, 3)))}
    np.testing.assert_array_equal(blend.find_variance({name: of[name] for name in order}), 2.0)
    assert blend.find_variance({"a": Estimate(np.zeros((1, 4, 3)), None)}) is None
