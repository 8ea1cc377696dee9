import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from spabit_jax.downstream.domains import METHODS, agreement, find_domains, principal_components, smooth
from spabit_jax.downstream.expression import centred, kinds, known_labels
from spabit_jax.downstream.plots import matched, plot_domains
from spabit_jax.predictions import scale_of


@pytest.fixture
def band(predictions):
    return (predictions.obsm["spatial"][:, 1] // 500).astype(int)


@pytest.mark.parametrize("method", METHODS)
def test_planted_domains_are_found_whatever_the_library_size(predictions, band, method):
    values = predictions.layers["truth"]
    for seed in (0, 1):
        found = METHODS[method](principal_components(centred(values)), 3, seed)
        assert len(np.unique(found)) == 3
        assert adjusted_rand_score(band, found) > 0.97
    rescaled = values + np.random.default_rng(1).normal(0, 5, (len(values), 1))  # depth, which would be the first PC
    assert adjusted_rand_score(band, METHODS[method](principal_components(centred(rescaled)), 3, 0)) > 0.97


def test_smoothing_is_a_gaussian_mean_over_pitches(predictions):
    xy = predictions.obsm["spatial"]
    impulse = np.zeros((len(xy), 1))
    centre = np.flatnonzero((xy == [1000, 700]).all(axis=1))[0]
    impulse[centre] = 1
    found = smooth(xy, impulse)[:, 0]
    neighbour = np.flatnonzero((xy == [1100, 700]).all(axis=1))[0]
    assert found[neighbour] / found[centre] == pytest.approx(np.exp(-0.5), rel=1e-6)
    np.testing.assert_allclose(smooth(3 * xy, np.ones((len(xy), 2))), 1)


def test_spots_without_a_label_are_left_out_of_the_score():
    domains = np.array([0, 0, 1, 1, 2, 2])
    labels = np.array(["a", "a", "b", "b", "", ""], object)
    assert agreement(domains, labels) == (4, 1.0, 1.0)
    # pairs of (0, 0, 1, 1) against (a, b, a, b): Rand index 2/6, expected 10/18 by chance: ARI -0.5
    assert agreement(domains[:4], np.array(list("abab"), object))[1] == pytest.approx(-0.5)
    n, ari, nmi = agreement(domains, np.full(6, "", object))
    assert n == 0 and np.isnan([ari, nmi]).all()


def test_what_annotators_write_for_unknown_is_no_label(predictions):
    labels = known_labels(predictions)
    assert (labels[:7] == "").all() and set(labels[7:]) == {"stroma", "invasive cancer", "adipose"}
    del predictions.obs["label"]
    assert (known_labels(predictions) == "").all()


def test_only_own_measurements_see_the_truth_of_test_spots(predictions):
    labels = known_labels(predictions)
    before, _ = find_domains(predictions, labels, 3, 1)
    test = np.flatnonzero(predictions.obs["split"] == "test")
    truth = predictions.layers["truth"]
    truth[test] = truth[np.random.default_rng(0).permutation(test)]
    after, _ = find_domains(predictions, labels, 3, 1)
    changed = (before["ari"] != after["ari"]).groupby(before["expression"]).any()
    assert changed.to_dict() == {"measured": False, "predicted": False, "merged": False, "own measurement": True}


def test_the_table_says_which_spots_are_scored(predictions):
    table, maps = find_domains(predictions, known_labels(predictions), 3, 2)
    assert len(table) == (1 + 3 * 3) * 2 * 3 * 2  # sets of spots, smoothing, methods, seeds
    sizes = table.groupby(["expression", "scored_on"])["n_spots"].unique().str[0]
    train = (predictions.obs["split"] == "train").sum() - 4  # of the seven without a label
    assert sizes["measured"].to_dict() == {"train": train}
    assert sizes["merged"].to_dict() == {"all": 293, "train": train, "test": 293 - train}
    assert (maps["measured", True, "kmeans"] >= 0).sum() == train + 4
    merged = kinds(predictions)["merged"].values
    is_train = (predictions.obs["split"] == "train").to_numpy()
    np.testing.assert_array_equal(merged[is_train], predictions.layers["truth"][is_train])
    np.testing.assert_array_equal(merged[~is_train], predictions.X[~is_train])


def test_domains_take_the_number_of_the_group_that_they_share_most_with():
    reference = np.array([0, 0, 0, 1, 1, 2, 2, -1])
    domains = np.array([2, 2, 2, 0, 0, 1, 3, -1])
    found = matched(domains, reference)
    np.testing.assert_array_equal(found[:5], reference[:5])
    assert {found[5], found[6]} == {2, 3} and found[7] == -1


def test_library_size_is_taken_out_of_raw_counts_only(predictions):
    values = predictions.layers["truth"]
    assert scale_of(predictions).name == "log2_count"
    np.testing.assert_allclose(centred(values, "log2_count").mean(axis=1), 0, atol=1e-12)
    assert centred(values[:, :2], "log2_count") is not values and (centred(values[:, :2]) == values[:, :2]).all()
    predictions.uns["spabit"] = {"scale": "log1p_normalised"}
    assert centred(values, scale_of(predictions).name) is values


@pytest.fixture
def figure(monkeypatch):
    """The figure that is made, instead of a file."""
    from spabit_jax.downstream import plots

    made = []
    monkeypatch.setattr(plots, "save", lambda figure, path: made.append(figure))
    return made


def colour_of(legend) -> dict:
    names = [text.get_text() for text in legend.get_texts()]
    return dict(zip(names, [line.get_color() for line in legend.get_lines()], strict=True))


def test_domains_have_numbers_and_the_annotation_its_own_names(predictions, band, figure):
    names = ["adipose", "stroma"]
    annotation = np.minimum(band, 1)
    annotation[:7] = -1
    predictions.uns["spabit"] = {"um_per_px": 1.0, "spot_px": 50.0}
    plot_domains(predictions, {"merged, ARI 0.36": band}, annotation, names, "unused.png")
    of_annotation, of_domains = figure[0].axes
    assert (of_annotation.get_title(loc="left"), of_domains.get_title(loc="left")) == ("annotation", "merged, ARI 0.36")
    own, (shared,) = of_annotation.get_legend(), figure[0].legends
    assert list(colour_of(own)) == names and list(colour_of(shared)) == ["domain 1", "domain 2", "domain 3"]
    assert colour_of(own)["stroma"] == colour_of(shared)["domain 2"] != colour_of(shared)["domain 3"]
    assert of_domains.get_legend() is None
    assert len(of_annotation.lines) == 1 and not of_domains.lines  # the scale bar
    for ax in (of_annotation, of_domains):
        for number, colour in enumerate(colour_of(shared).values()):
            places = ax.collections[-1]
            assert places.cmap(places.norm(number))[:3] == pytest.approx(colour)


def test_without_an_annotation_domains_stand_alone(predictions, band, figure):
    plot_domains(predictions, {"merged": band, "measured": band}, np.full(300, -1), [], "unused.png")
    assert [ax.get_title(loc="left") for ax in figure[0].axes] == ["merged", "measured"]
    assert all(ax.get_legend() is None for ax in figure[0].axes)
