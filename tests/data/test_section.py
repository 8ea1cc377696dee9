import numpy as np
import pytest
import scanpy as sc
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression

from spabit_jax import neighbours as graph
from spabit_jax.data import components
from spabit_jax.data.components import ImageComponents, expression_space, shrunk
from spabit_jax.data.genes import select_genes
from spabit_jax.data.section import image_model, make_section, make_section_and_frame
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
    model, projected = image_model(xy, x, tiny_config)
    assert projected.shape == (31, 12)
    sd = x.std(axis=0)
    expected = (x - x.mean(axis=0)) / np.where(sd > 0, sd, 1)
    gaussian = np.random.default_rng(0).standard_normal((7, 12)) / np.sqrt(7)
    np.testing.assert_allclose(projected, expected @ gaussian, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(model.at(xy[:5], x[:5]), projected[:5])
    fits = np.random.default_rng(1).normal(size=(31, 12)).astype(np.float32)
    np.testing.assert_array_equal(image_model(xy, fits, tiny_config)[1], fits)
    assert not image_model(xy, None, tiny_config)[1].any()


@pytest.mark.parametrize("chunk", [16384, 13])
def test_image_components_hold_the_spot_and_its_surroundings(monkeypatch, chunk):
    monkeypatch.setattr(components, "CHUNK", chunk)
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
    model, found = ImageComponents.fit(xy, x, 5)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.abs(found), np.abs(expected), rtol=1e-3, atol=1e-4)  # signs are free
    np.testing.assert_allclose(model.at(xy[:9], x[:9]), found[:9], rtol=1e-5, atol=1e-5)
    assert ImageComponents.fit(xy, np.ones((72, 3)), 5)[1].shape == (72, 0)  # an image that says nothing


@pytest.mark.parametrize("n_spots", [31, 11])  # more than genes, and fewer
def test_expression_space_is_that_of_principal_components(n_spots):
    x = np.random.default_rng(0).normal(2, 3, (n_spots, 13)).astype(np.float32)
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


def test_loadings_shrink_to_what_genes_share():
    """Nearer to the true ones than those measured; all of them where nothing is chance; a line where all is."""
    rng = np.random.default_rng(0)
    mean = rng.uniform(0, 3, 400).astype(np.float32)
    own = np.concatenate([0.5 * rng.normal(size=(1, 400)), np.zeros((3, 400))])
    true = np.outer([1, 0.3, -0.2, 0], 1 + mean) + own
    measured = (true + 0.5 * rng.normal(size=true.shape)).astype(np.float32)
    found = shrunk(measured, mean, np.full(400, 0.25))
    before, after = (((loadings - true) ** 2).mean(axis=1) for loadings in (measured, found))
    assert after[0] < 0.6 * before[0] and (after[1:] < 0.05 * before[1:]).all()
    np.testing.assert_allclose(shrunk(measured, mean, np.zeros(400)), measured, atol=1e-5)
    line = LinearRegression().fit(mean[:, None], measured.T).predict(mean[:, None]).T
    np.testing.assert_allclose(shrunk(measured, mean, np.full(400, 1e3)), line, atol=1e-4)
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0].astype(np.float32)  # axes of the components do not matter
    np.testing.assert_allclose(shrunk(turn @ measured, mean, np.full(400, 0.25)), turn @ found, atol=1e-4)
    np.testing.assert_allclose(shrunk(measured[:, :1], mean[:1], np.full(1, 0.25)), measured[:, :1], atol=1e-6)
    measured[:, :40], chance = 0, np.r_[np.zeros(40), np.full(360, 0.25)]  # genes that do not vary
    np.testing.assert_allclose(shrunk(measured, mean, chance)[:, :40], 0, atol=1e-5)


@pytest.mark.parametrize("transform", ["components", "reference"])
@pytest.mark.parametrize("n_spots", [90, 9])
def test_places_are_taken_as_the_spots_are(simulated, tiny_config, n_spots, transform):
    """Also where there are fewer spots than image features."""
    tiny_config.data.image_transform = transform
    adata = read_section(simulated)[:n_spots].copy()
    rng = np.random.default_rng(0)
    is_train, genes = rng.random(n_spots) < 0.5, list(adata.var_names[:13])
    xy, image = adata.obsm["spatial"], rng.normal(3, 5, (n_spots, 21))
    section, frame = make_section_and_frame(adata, genes, is_train, image, tiny_config)
    # three spots again, and two places between spots
    at = np.concatenate([xy[:3], xy[3:5] + [7, -5]])
    places = frame.places(at, np.concatenate([image[:3], rng.normal(3, 5, (2, 21))]))
    np.testing.assert_allclose(places.image[:3], section.image[:3], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(places.xy[:3], section.xy[:3])
    test = np.flatnonzero(~is_train[:3])
    np.testing.assert_array_equal(places.context[test], section.context[test])
    for spot in np.flatnonzero(is_train[:3]):  # a place sees the train spot that lies there
        assert places.context[spot, 0] == spot and spot not in section.context[spot]
    assert np.isfinite(places.image).all() and is_train[places.context].all()
    again = make_section(adata, genes, is_train, image, tiny_config)
    for name in ("expression", "image", "xy", "is_train", "context"):
        np.testing.assert_array_equal(getattr(again, name), getattr(section, name))


def test_what_does_not_vary_over_the_spots_says_nothing_elsewhere():
    xy = np.stack(np.meshgrid(np.arange(6.0), np.arange(5.0)), -1).reshape(-1, 2)
    features = np.random.default_rng(0).normal(size=(30, 4))
    features[:, 1] = 2.0
    moved = features[:1] + [0, 9, 0, 0]
    model, at_spots = ImageComponents.fit(xy, features)
    np.testing.assert_allclose(model.at(xy[:1], moved), at_spots[:1], atol=1e-4)
