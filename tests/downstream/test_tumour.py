import numpy as np
import pytest

from spabit_jax.downstream.expression import interpolated, known_labels
from spabit_jax.downstream.tumour import find_tumour, fit_classifier


@pytest.fixture
def is_tumour(predictions):
    labels = known_labels(predictions)
    return np.where(labels == "", np.nan, labels == "invasive cancer").astype(float)


def test_a_planted_tumour_is_found_and_the_scores_are_those_of_the_test_spots(predictions, is_tumour):
    rng = np.random.default_rng(0)
    predictions.X = predictions.X + rng.normal(0, 2.0, predictions.X.shape).astype(np.float32)
    table, maps = find_tumour(predictions, is_tumour)
    table = table.set_index("input")
    test = (predictions.obs["split"] == "test").to_numpy() & np.isfinite(is_tumour)
    assert (table["n_test"] == test.sum()).all() and (table["n_tumour"] == is_tumour[test].sum()).all()
    assert (table.loc[["nearest", "own measurement", "neighbour labels"], "auroc"] > 0.95).all()
    p, tumour = maps["predicted"], is_tumour == 1
    # the area under the curve is the share of pairs in which the tumour spot has the higher probability
    higher = (p[test & tumour][:, None] > p[test & ~tumour]).mean()
    assert table.loc["predicted", "auroc"] == pytest.approx(higher, abs=1e-6)
    called = p[test] > 0.5
    right = (called & tumour[test]).sum()
    assert table.loc["predicted", "f1"] == pytest.approx(2 * right / (called.sum() + tumour[test].sum()))
    assert np.isnan(p[(predictions.obs["split"] == "train").to_numpy()]).all()


def test_expression_and_labels_of_test_spots_reach_nothing_but_own_measurement_and_the_score(predictions, is_tumour):
    _, before = find_tumour(predictions, is_tumour)
    test = np.flatnonzero(predictions.obs["split"] == "test")
    predictions.layers["truth"][test] += 3 * np.random.default_rng(0).standard_normal((len(test), 24))
    is_tumour[test] = np.random.default_rng(0).permutation(is_tumour[test])
    _, after = find_tumour(predictions, is_tumour)
    for name in before:
        same = np.array_equal(before[name], after[name], equal_nan=True)
        assert same == (name != "own measurement"), name


def test_the_classifier_without_a_shift_comes_first(predictions, is_tumour, monkeypatch):
    from spabit_jax.downstream import plots

    predictions.X = predictions.X + np.random.default_rng(0).normal(0, 2.0, predictions.X.shape).astype(np.float32)
    table, maps = find_tumour(predictions, is_tumour)
    names = ["predicted", "neighbour labels", "nearest", "predicted, trained on measurements", "own measurement"]
    assert list(table["input"]) == list(maps) == names
    train = ((predictions.obs["split"] == "train") & np.isfinite(is_tumour)).to_numpy()
    test = (predictions.obs["split"] == "test").to_numpy()
    truth, predicted = predictions.layers["truth"], predictions.X
    for name, learned, given in (("predicted", predicted, predicted), (names[3], truth, predicted)):
        classifier = fit_classifier(learned[train], is_tumour[train].astype(int))
        np.testing.assert_allclose(maps[name][test], classifier.predict_proba(given[test])[:, 1])
    made = []
    monkeypatch.setattr(plots, "save", lambda figure, path: made.append(figure))
    plots.plot_roc(is_tumour, maps, table.set_index("input")["auroc"], "unused.png")
    words = [text.get_text().split(":")[0] for text in made[0].axes[0].get_legend().get_texts()]
    assert words == names
    plots.plot_probability(predictions, is_tumour, maps["predicted"], "unused.png")
    annotation, probability, bar = made[1].axes
    assert "annotation" in annotation.get_title(loc="left") and bar.get_ylabel() == "probability of tumour"
    np.testing.assert_array_equal(probability.collections[-1].get_array(), maps["predicted"][test])


def test_interpolated_expression_is_the_mean_of_the_six_nearest_train_spots(predictions):
    train = np.flatnonzero(predictions.obs["split"] == "train")
    test = np.flatnonzero(predictions.obs["split"] == "test")
    xy, found = predictions.obsm["spatial"], interpolated(predictions)
    spot = next(i for i, s in enumerate(test) if (xy[s] == [900, 700]).all())  # in the middle of four, then ties
    distance = np.linalg.norm(xy[train] - xy[test[spot]], axis=1)
    near = train[np.argsort(distance)[:4]]
    assert found.shape == (len(test), 24)
    rest = 6 * found[spot] - predictions.layers["truth"][near].sum(axis=0)
    candidates = predictions.layers["truth"][train[(distance > 200) & (distance < 400)]]
    pairs = candidates[:, None] + candidates[None]
    assert np.abs(pairs - rest).max(axis=-1).min() < 1e-9


def test_too_few_spots_of_a_kind_give_nothing(predictions, is_tumour):
    train = np.flatnonzero((predictions.obs["split"] == "train") & (is_tumour == 1))
    is_tumour[train[4:]] = np.nan
    assert find_tumour(predictions, is_tumour) == (None, {})
