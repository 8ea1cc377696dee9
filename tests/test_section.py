import numpy as np
import pytest

from spabit_jax.genes import select_genes
from spabit_jax.readers import read_section
from spabit_jax.section import image_features, make_section
from spabit_jax.split import split_spots


def test_expression_of_test_spots_does_not_enter(simulated, tiny_config):
    adata = read_section(simulated)
    is_train = split_spots(adata, "lattice")
    genes = select_genes(adata, "train_spots", 13, is_train)
    tiny_config.gat.joint = False
    section = make_section(adata, genes, is_train, None, tiny_config)
    np.testing.assert_array_equal(np.isnan(section.expression).all(axis=1), ~is_train)
    np.testing.assert_allclose(section.expression[is_train], np.log2(adata[is_train, genes].X.toarray() + 1), rtol=1e-6)

    shuffled = adata.copy()
    x = shuffled.X.toarray()
    x[~is_train] = np.random.default_rng(0).permutation(x[~is_train])
    shuffled.X = type(adata.X)(x)
    other = make_section(shuffled, genes, is_train, None, tiny_config)
    for name in ("expression", "imputed", "gene_mean", "gene_sd"):
        np.testing.assert_array_equal(getattr(section, name), getattr(other, name))


def test_context_consists_of_train_spots(section_data, tiny_config):
    section = section_data(tiny_config)
    assert section.is_train[section.context].all()
    assert (section.context != np.arange(len(section.xy))[:, None]).all()
    assert section.context.shape[1] == 2 * tiny_config.model.n_context


def test_image_features_are_standardised_or_as_the_reference_takes_them(tiny_config):
    x = np.random.default_rng(0).normal(3, 5, (31, 7))
    x[:, 2] = 4.0  # constant
    standardised = image_features(x, 31, tiny_config)
    np.testing.assert_allclose(standardised.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(np.delete(standardised.std(axis=0), 2), 1, rtol=1e-5)
    assert not standardised[:, 2].any()
    assert image_features(None, 31, tiny_config).shape == (31, 0)

    tiny_config.data.image_transform = "reference"
    projected = image_features(x, 31, tiny_config)
    assert projected.shape == (31, 12)
    gaussian = np.random.default_rng(0).standard_normal((7, 12)) / np.sqrt(7)
    np.testing.assert_allclose(projected, standardised @ gaussian, rtol=1e-4, atol=1e-5)
    fits = np.random.default_rng(1).normal(size=(31, 12)).astype(np.float32)
    np.testing.assert_array_equal(image_features(fits, 31, tiny_config), fits)
    assert not image_features(None, 31, tiny_config).any()


def test_genes_are_standardised_over_train_spots(section_data, tiny_config):
    section = section_data(tiny_config)
    train = section.expression[section.is_train]
    np.testing.assert_allclose(section.gene_mean, train.mean(axis=0), rtol=1e-5)
    assert (section.gene_sd >= train.std(axis=0) - 1e-6).all()
    tiny_config.data.standardise_genes = False
    assert section_data(tiny_config).gene_sd == pytest.approx(1)
