"""The member that is not trained on a section."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from spabit_jax.config import Config
from spabit_jax.data.section import Places, make_section
from spabit_jax.data.split import split_spots
from spabit_jax.ensemble import pretrained
from spabit_jax.ensemble.pretrained import WEIGHTS, Pretrained, Scores
from spabit_jax.errors import InputError
from spabit_jax.evaluation.metrics import gene_metrics
from spabit_jax.kriging import passes, solved
from spabit_jax.kriging.bank import draw_bank
from spabit_jax.kriging.passes import MOST
from spabit_jax.models.in_context import new_network, save_weights
from spabit_jax.readers import read_section


@pytest.fixture(scope="module")
def config():
    config = Config()
    config.data.n_genes = 30
    return config


@pytest.fixture
def fitted(section_data, config):
    def fit(features=7, edit=lambda section: section):
        section = edit(section_data(config, features))
        return section, Pretrained(config).fit(section, seeds=[0])

    return fit


def places(section, spots) -> Places:
    return section.places(np.asarray(spots))


@pytest.mark.parametrize("features", [7, 0])
def test_it_predicts_with_an_honest_sd(fitted, features):
    section, member = fitted(features)
    train = section.train_spots
    held = member.held_out()
    assert held.estimate.mean.shape == (1, len(train), 30) and held.unseen.all()
    truth = section.expression[train]
    scores = gene_metrics(truth, held.estimate.mean[0])
    assert scores["mse"].mean() < np.var(truth, axis=0).mean()
    inside = np.abs(truth - held.estimate.mean[0]) <= 1.645 * np.sqrt(held.estimate.variance)
    assert 0.8 < inside.mean() < 0.98
    there = member.predict(places(section, np.flatnonzero(~section.is_train)))
    assert np.isfinite(there.mean).all() and (there.variance > 0).all()


def test_expression_that_is_chance_is_predicted_as_genes_share_it():
    """Depth alone varies: genes follow it alike, and what each seems to have of its own is noise."""
    rng = np.random.default_rng(0)
    depth = rng.normal(size=(40, 1))
    noisy = (2 + depth + rng.normal(size=(40, 200))).astype(np.float32)
    scores = Scores.fit(noisy, np.ones(40, np.float32))
    seen = scores.space.encode(noisy)
    found, before = seen @ scores.loadings, seen @ scores.space.loadings
    shared = depth - depth.mean()
    assert np.mean((found - shared) ** 2) < 0.3 * np.mean((before - shared) ** 2)


def test_a_gene_that_does_not_vary_is_predicted_as_it_is():
    expression = np.random.default_rng(0).normal(3, 1, (25, 60)).astype(np.float32)
    expression[:, 7] = 0.7
    assert np.abs(Scores.fit(expression, np.ones(25, np.float32)).loadings[:, 7]).max() < 1e-6


@pytest.mark.parametrize("n_spots", [1, 2, 3, 6])
def test_few_spots_have_half_as_many_components(n_spots):
    expression = np.random.default_rng(0).normal(size=(n_spots, 9)).astype(np.float32)
    scores = Scores.fit(expression, np.ones(n_spots, np.float32))
    assert len(scores.loadings) == max(1, n_spots // 2)
    assert np.isfinite(scores.loadings).all()


def test_held_out_spots_do_not_see_themselves(fitted):
    """Nor does anything found from their own fold: another value at a spot leaves its prediction as it was."""
    section, member = fitted()
    fold = member.folds[0]
    spot = section.train_spots[fold[0]]

    def louder(section):
        expression = section.expression.copy()
        expression[spot] += 0.5
        return section._replace(expression=expression)

    _, other = fitted(edit=louder)
    one, two = (m.held_out().estimate.mean[0] for m in (member, other))
    np.testing.assert_allclose(one[fold[0]], two[fold[0]], atol=0.02)
    assert np.abs(one - two).max() > 0.05  # at its neighbours


@pytest.mark.parametrize("many", [False, True])
def test_a_place_does_not_depend_on_the_others_nor_on_the_order_of_spots(fitted, monkeypatch, many):
    if many:
        monkeypatch.setattr(passes, "N_FIRST", 20)
        monkeypatch.setattr(solved, "N_WEIGHED", 30)
        monkeypatch.setattr(pretrained, "MAX_EXACT", 30)
    section, member = fitted()
    asked = np.flatnonzero(~section.is_train)[:9]
    together, alone = member.predict(places(section, asked)), member.predict(places(section, asked[4:5]))
    np.testing.assert_allclose(alone.mean[0, 0], together.mean[0, 4], atol=1e-5)
    order = np.random.default_rng(0).permutation(len(section.xy))
    rank = np.argsort(order)
    parts = {name: getattr(section, name)[order] for name in ("expression", "image", "xy", "noise", "is_train")}
    shuffled = section._replace(**parts, context=rank[section.context[order]])
    again = Pretrained(Config()).fit(shuffled).predict(shuffled.places(rank[asked]))
    np.testing.assert_allclose(again.mean, together.mean, atol=2e-3)


def test_how_many_neighbours_the_trained_network_sees_changes_nothing(fitted):
    section, member = fitted()
    asked = places(section, np.flatnonzero(~section.is_train))
    few = asked._replace(context=asked.context[:, :2])
    np.testing.assert_allclose(member.predict(few).mean, member.predict(asked).mean, atol=2e-3)


def test_a_turned_section_has_the_same_prediction(fitted):
    section, member = fitted()
    turn = np.array([[0.6, 0.8], [0.8, -0.6]], np.float32)
    _, other = fitted(edit=lambda section: section._replace(xy=section.xy @ turn))
    asked = places(section, np.flatnonzero(~section.is_train))
    apart = np.abs(other.predict(asked._replace(xy=asked.xy @ turn)).mean - member.predict(asked).mean)
    assert np.quantile(apart, 0.99) < 1e-2 and apart.max() < 0.05  # single precision, where a process has little noise


def test_noisier_spots_count_for_less(fitted):
    """Two spots, each alone in its corner: the prediction beside the noisy one is nearer to the mean."""
    section, member = fitted()
    train = section.train_spots
    noisy = np.flatnonzero(np.linalg.norm(section.xy[train] - section.xy[train].mean(axis=0), axis=1) > 4)[0]

    def with_noise(section):
        noise = section.noise.copy()
        noise[train[noisy]] = 5
        return section._replace(noise=noise)

    _, other = fitted(edit=with_noise)
    at = places(section, train[[noisy]])
    measured = section.expression[train[noisy]]
    far, near = (np.mean((m.predict(at).mean[0, 0] - measured) ** 2) for m in (other, member))
    assert far > near


def test_the_network_is_asked_in_pieces_of_any_size(fitted, monkeypatch):
    section, member = fitted()
    assert (member.passes.share < 0.99 * MOST).any()  # otherwise it is not asked
    at = places(section, np.flatnonzero(~section.is_train))
    whole = member.predict(at)
    monkeypatch.setattr(pretrained, "QUERIES", 61)
    for mine, other in zip(member.predict(at), whole, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-4)


def test_the_network_is_believed_as_far_as_is_said(fitted, monkeypatch):
    section, member = fitted()
    at = places(section, np.flatnonzero(~section.is_train))
    apply, found = pretrained._apply, {}
    for strength in (0.0, 1.0, pretrained.STRENGTH):
        monkeypatch.setattr(pretrained, "STRENGTH", strength)
        apply.clear_cache()  # the program holds the number
        found[strength] = member.predict(at).mean
    apply.clear_cache()
    apart = [np.abs(found[strength] - found[0.0]).mean() for strength in found]
    assert 0 == apart[0] < 1.5 * apart[1] < apart[2]


@pytest.mark.parametrize("n_more", [1, 20])  # than are solved exactly; without a fold fewer are
def test_large_sections_are_predicted_from_the_nearest(fitted, monkeypatch, n_more):
    section, exact = fitted()
    monkeypatch.setattr(pretrained, "MAX_EXACT", len(section.train_spots) - n_more)
    _, near = fitted()
    asked = places(section, np.flatnonzero(~section.is_train))
    one, two = exact.predict(asked).mean[0], near.predict(asked).mean[0]
    assert np.corrcoef(one.ravel(), two.ravel())[0, 1] > 0.99
    assert near.held_out().estimate.mean.shape == (1, len(section.train_spots), 30)


def test_weights_are_the_packages_or_those_that_are_named(section_data, config, tmp_path):
    config.model.pretrained = str(WEIGHTS)
    Pretrained(config).fit(section_data(config))
    config.model.pretrained = str(tmp_path / "nowhere.npz")
    with pytest.raises(InputError, match="no weights of a pretrained SpaBiT"):
        Pretrained(config).fit(section_data(config))
    config.model.pretrained = ""


def test_a_run_folder_is_of_its_weights(section_data, config, tmp_path):
    section, weights = section_data(config), tmp_path / "weights.npz"
    bank = draw_bank(np.random.default_rng(1), 4)
    save_weights(weights, (bank, bank), new_network(0)[1])
    (tmp_path / "run").mkdir()
    Pretrained(config).fit(section, folder=tmp_path / "run")
    Pretrained(config).fit(section, folder=tmp_path / "run")
    other = Config()
    other.model.pretrained = str(weights)
    with pytest.raises(InputError, match="other weights of the pretrained SpaBiT"):
        Pretrained(other).fit(section, folder=tmp_path / "run")


def test_test_spots_reach_nothing(simulated, config):
    """With the counts of test spots shuffled, and with others, predictions are the same to the bit."""
    adata = read_section(simulated)
    is_train = split_spots(adata, "lattice")
    image = np.random.default_rng(0).standard_normal((adata.n_obs, 7))
    genes, predicted = list(adata.var_names[:30]), []
    for change in (lambda counts: counts, lambda counts: counts[::-1], lambda counts: 7 * counts + 3):
        changed = adata.copy()
        counts = adata.X.toarray()
        counts[~is_train] = change(counts[~is_train])
        changed.X = csr_matrix(counts)
        section = make_section(changed, genes, is_train, image, config)
        member = Pretrained(config).fit(section)
        held, there = member.held_out().estimate, member.predict(section.places(np.flatnonzero(~is_train)))
        predicted.append([held.mean, held.variance, there.mean, there.variance])
    for other in predicted[1:]:
        for mine, theirs in zip(predicted[0], other, strict=True):
            np.testing.assert_array_equal(mine, theirs)
