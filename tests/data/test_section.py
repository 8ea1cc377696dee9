import numpy as np
import pytest
import scanpy as sc
from sklearn.decomposition import PCA

from spabit_jax import neighbours as graph
from spabit_jax.data import section
from spabit_jax.data.genes import select_genes
from spabit_jax.data.locations import Locations, with_locations
from spabit_jax.data.section import expression_space, image_components, image_features, make_section
from spabit_jax.data.split import split_spots
from spabit_jax.readers import read_section


@pytest.mark.parametrize("scale", ["log2_count", "log1p_normalised"])
def test_expression_of_test_spots_does_not_enter(simulated, tiny_config, scale):
    tiny_config.data.scale = scale
    adata = read_section(simulated)
    is_train = split_spots(adata, "lattice")
    genes = select_genes(adata, "train_spots", 13, is_train)
    tiny_config.gat.joint = False
    section = make_section(adata, genes, is_train, None, tiny_config)
    np.testing.assert_array_equal(np.isnan(section.expression).all(axis=1), ~is_train)
    counts = adata[is_train].copy()
    if scale == "log2_count":
        expected = np.log2(counts[:, genes].X.toarray() + 1)
    else:
        sc.pp.normalize_total(counts)  # to the median of these spots
        expected = np.log1p(counts[:, genes].X.toarray())
    np.testing.assert_allclose(section.expression[is_train], expected, rtol=1e-5, atol=1e-6)

    shuffled = adata.copy()
    x = shuffled.X.toarray()
    x[~is_train] = np.random.default_rng(0).permutation(x[~is_train])
    shuffled.X = type(adata.X)(x)
    other = make_section(shuffled, genes, is_train, None, tiny_config)
    for name in ("expression", "imputed"):
        np.testing.assert_array_equal(getattr(section, name), getattr(other, name))


def test_context_consists_of_train_spots(section_data, tiny_config):
    section = section_data(tiny_config)
    assert section.is_train[section.context].all()
    assert (section.context != np.arange(len(section.xy))[:, None]).all()
    assert section.context.shape[1] == 2 * tiny_config.model.n_context


def test_image_features_as_the_reference_takes_them(tiny_config):
    x = np.random.default_rng(0).normal(3, 5, (31, 7))
    x[:, 2] = 4.0  # constant
    xy = np.zeros((31, 2))
    tiny_config.data.image_transform = "reference"
    projected = image_features(xy, x, tiny_config)
    assert projected.shape == (31, 12)
    sd = x.std(axis=0)
    expected = (x - x.mean(axis=0)) / np.where(sd > 0, sd, 1)
    gaussian = np.random.default_rng(0).standard_normal((7, 12)) / np.sqrt(7)
    np.testing.assert_allclose(projected, expected @ gaussian, rtol=1e-4, atol=1e-5)
    fits = np.random.default_rng(1).normal(size=(31, 12)).astype(np.float32)
    np.testing.assert_array_equal(image_features(xy, fits, tiny_config), fits)
    assert not image_features(xy, None, tiny_config).any()


@pytest.mark.parametrize("chunk", [16384, 13])
def test_image_components_hold_the_spot_and_its_surroundings(monkeypatch, chunk):
    monkeypatch.setattr(section, "CHUNK", chunk)
    monkeypatch.setattr(graph, "CHUNK", chunk)
    rng = np.random.default_rng(0)
    xy = np.stack(np.meshgrid(np.arange(9.0), np.arange(8.0)), -1).reshape(-1, 2)
    x = rng.normal(3, 5, (72, 4))
    standard = (x - x.mean(axis=0)) / x.std(axis=0)
    every = [standard]
    for sd in (1, 2):
        distance = np.linalg.norm(xy[:, None] - xy, axis=-1)
        weight = np.where(distance <= 3 * sd, np.exp(-0.5 * (distance / sd) ** 2), 0)
        every.append(weight @ standard / weight.sum(axis=1, keepdims=True))
    expected = PCA(5, svd_solver="full").fit_transform(np.concatenate(every, axis=1))
    expected /= expected[:, 0].std()
    found = image_components(xy, x, 5)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.abs(found), np.abs(expected), rtol=1e-3, atol=1e-4)  # signs are free
    assert image_components(xy, None).shape == (72, 0)
    assert image_components(xy, np.ones((72, 3)), 5).shape == (72, 0)  # an image that says nothing


def test_expression_space_is_that_of_principal_components():
    x = np.random.default_rng(0).normal(2, 3, (31, 13)).astype(np.float32)
    pca = PCA(4).fit(x)
    space = expression_space(x, 4)
    np.testing.assert_allclose(space.decode(space.encode(x)), pca.inverse_transform(pca.transform(x)), atol=1e-4)
    scores = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_allclose(space.encode(space.decode(scores)), scores, atol=1e-5)
    assert space.encode(x)[:, 0].std() == pytest.approx(1, rel=1e-4)
    assert len(expression_space(x[:3], 4).loadings) == 2
    genes = expression_space(x, 0)
    np.testing.assert_array_equal(genes.encode(x), x)
    np.testing.assert_array_equal(genes.decode(x), x)


@pytest.mark.parametrize("transform", ["components", "reference"])
@pytest.mark.parametrize("n_spots", [90, 9])
def test_new_locations_change_nothing_at_the_spots(simulated, tiny_config, n_spots, transform):
    """Also where there are fewer spots than image features."""
    tiny_config.data.image_transform = transform
    adata = read_section(simulated)[:n_spots].copy()
    rng = np.random.default_rng(0)
    is_train, genes = rng.random(n_spots) < 0.5, list(adata.var_names[:13])
    xy, image = adata.obsm["spatial"], rng.normal(3, 5, (n_spots, 21))
    alone = make_section(adata, genes, is_train, image, tiny_config)

    # three spots again, and two places between spots
    places = Locations(np.arange(5).astype(str), np.concatenate([xy[:3], xy[3:5] + [7, -5]]), np.zeros((5, 2)))
    seen = np.concatenate([image, image[:3], rng.normal(3, 5, (2, 21))])
    both = make_section(
        with_locations(adata, places), genes, np.append(is_train, [False] * 5), seen, tiny_config, n_spots
    )
    for name in ("expression", "features", "xy", "is_train", "context"):
        np.testing.assert_array_equal(getattr(both, name)[:n_spots], getattr(alone, name))
    again = slice(n_spots, n_spots + 3)
    np.testing.assert_allclose(both.features[again], alone.features[:3], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(both.xy[again], alone.xy[:3])
    test = np.flatnonzero(~is_train[:3])
    np.testing.assert_array_equal(both.context[again][test], alone.context[test])
    assert np.isfinite(both.features).all() and np.isnan(both.expression[n_spots:]).all()


def test_what_does_not_vary_over_the_spots_says_nothing_elsewhere():
    xy = np.stack(np.meshgrid(np.arange(6.0), np.arange(5.0)), -1).reshape(-1, 2)
    features = np.random.default_rng(0).normal(size=(30, 4))
    features[:, 1] = 2.0
    moved = features[:1] + [0, 9, 0, 0]
    both = image_components(np.concatenate([xy, xy[:1]]), np.concatenate([features, moved]), 20, n_spots=30)
    np.testing.assert_allclose(both[30], both[0], atol=1e-4)
