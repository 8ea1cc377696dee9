import numpy as np
import pytest
from scipy.stats import norm

from spabit_jax.inference import combine


@pytest.fixture
def case(section_data, tiny_config):
    """A section of 2,000 spots whose truth is signal + noise of sd 0.5."""
    rng = np.random.default_rng(0)
    n, n_genes = 2000, 7
    signal = rng.normal(size=(n, n_genes)).astype(np.float32)
    truth = signal + 0.5 * rng.normal(size=signal.shape).astype(np.float32)
    is_train = np.arange(n) % 2 == 0
    section = section_data(tiny_config)._replace(
        expression=np.where(is_train[:, None], truth, np.nan), is_train=is_train
    )
    return section, signal, truth, np.flatnonzero(is_train)


def test_the_weight_goes_to_the_better_part(case):
    section, signal, _, train = case
    kriged = signal + 1.0, np.full_like(signal, 0.25)
    held_out = [train[::3], train[1::3]]
    assert combine(section, np.stack([signal, signal]), held_out, kriged).weight == pytest.approx(1, abs=0.05)
    good = signal, kriged[1]
    assert combine(section, np.stack([signal + 1.0] * 2), held_out, good).weight == pytest.approx(0, abs=0.05)
    rng = np.random.default_rng(1)
    noisy = [signal + rng.normal(size=signal.shape).astype(np.float32) for _ in range(3)]
    found = combine(section, np.stack(noisy[:2]), held_out, (noisy[2], kriged[1]))
    assert found.weight == pytest.approx(0.5, abs=0.05)
    np.testing.assert_allclose(found.mean, noisy[2] + found.weight * (np.mean(noisy[:2], 0) - noisy[2]), atol=1e-5)
    assert combine(section, np.stack(noisy[:2]), held_out).weight == 1


@pytest.mark.parametrize("with_kriging", [True, False])
def test_intervals_cover_what_they_say(case, with_kriging):
    section, signal, truth, train = case
    kriged = (signal, np.full_like(signal, 9.0)) if with_kriging else None  # its variance is far too large
    found = combine(section, np.stack([signal, signal]), [train[::3], train[1::3]], kriged)
    test = ~section.is_train
    inside = np.abs(truth - found.mean) <= norm.ppf(0.95) * found.sd
    assert inside[test].mean() == pytest.approx(0.9, abs=0.02)


def test_test_spots_decide_nothing(case):
    section, signal, _, train = case
    changed = signal.copy()
    changed[~section.is_train] = 100.0
    kriged = signal + 0.3, np.full_like(signal, 0.25)
    a, b = (combine(section, np.stack([s, s]), [train[::2], train[1::2]], kriged) for s in (signal, changed))
    assert a.weight == b.weight
    np.testing.assert_array_equal(a.sd[section.is_train], b.sd[section.is_train])
