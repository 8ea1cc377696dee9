"""AnnData → SectionData: the arrays that enter JAX."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from anndata import AnnData
from jaxtyping import Bool, Float, Int

from spabit_jax.config import Config
from spabit_jax.graph import context_spots, impute_from_train, knn_graph, spot_pitch
from spabit_jax.models.gat import GraphsTuple, make_graph

N_POOL = 2  # context spots are drawn from a pool this many times as large when a training step hides some


class SectionData(NamedTuple):
    """A section as a pytree of arrays: N spots, G genes of the panel, D image features.

    The expression of test spots is NaN: it never enters JAX, and whatever touched it would show.
    """

    expression: Float[np.ndarray, "N G"]  # log2(count + 1); NaN at test spots
    features: Float[np.ndarray, "N D"]  # image features; D is 0 without an image
    gene_mean: Float[np.ndarray, "G"]  # the model works on (expression - gene_mean) / gene_sd
    gene_sd: Float[np.ndarray, "G"]
    xy: Float[np.ndarray, "N 2"]  # in units of the spot pitch, from the section's centre
    is_train: Bool[np.ndarray, "N"]
    context: Int[np.ndarray, "N K"]  # nearest train spots of each spot, nearest first, never itself
    imputed: Float[np.ndarray, "N G"] | None  # of the separate GAT: expression, at test spots imputed from train spots
    graph: GraphsTuple | None  # of the separate GAT: N nodes without features


def make_section(adata: AnnData, genes: list[str], is_train: np.ndarray, features, config: Config) -> SectionData:
    """Turns a section into arrays.

    Args:
      adata: the section; raw counts in ``X``, ``obsm["spatial"]``, array coordinates.
      genes: the panel, G names.
      is_train: (N,) bool.
      features: (N, D) image features as extracted, or None without an image.
      config: its ``data``, ``gat`` and ``faults`` parts decide on panel, neighbours and image transform.
    """
    xy = np.asarray(adata.obsm["spatial"], np.float64)
    counts = np.zeros((adata.n_obs, len(genes)))
    counts[is_train] = adata[is_train, genes].X.toarray()
    expression = np.log2(counts + 1).astype(np.float32)
    expression[~is_train] = np.nan

    gene_mean, gene_sd = np.zeros(len(genes), np.float32), np.ones(len(genes), np.float32)
    if config.data.standardise_genes:
        gene_mean, gene_sd = expression[is_train].mean(axis=0), expression[is_train].std(axis=0)
        # a gene seen in one or two train spots would weigh more than all others together
        gene_sd = np.maximum(gene_sd, max(0.25 * np.median(gene_sd), 1e-3))
    k = config.gat.n_neighbours
    near = neighbour_coordinates(adata, config)
    n_pool = config.model.n_context * (N_POOL if config.train.neighbour_dropout else 1)
    return SectionData(
        expression=expression,
        features=image_features(features, adata.n_obs, config),
        gene_mean=gene_mean,
        gene_sd=gene_sd,
        xy=((xy - xy.mean(axis=0)) / spot_pitch(xy)).astype(np.float32),
        is_train=is_train,
        context=context_spots(near, is_train, n_pool),
        imputed=None if config.gat.joint else impute_from_train(counts, near, is_train, k),
        graph=None if config.gat.joint else make_graph(*knn_graph(near, k), n_node=len(xy)),
    )


def neighbour_coordinates(adata: AnnData, config: Config) -> np.ndarray:
    """(N, 2) coordinates by which neighbours are found: pixels, or the array's with ``faults.array_neighbours``."""
    if config.faults.array_neighbours:
        return adata.obs[["array_row", "array_col"]].to_numpy(np.float64)
    return np.asarray(adata.obsm["spatial"], np.float64)


def image_features(features, n_spots: int, config: Config) -> np.ndarray:
    """Image features as the model takes them: (N, D) float32.

    ``standardise`` brings each feature to mean 0 and sd 1 over all spots of the section; without an image D is 0.
    ``reference`` gives the ``model.width`` features that the reference insists on: as they are where there are that
    many, else standardised and projected by a fixed Gaussian matrix over √D; zeros without an image.
    """
    reference = config.data.image_transform == "reference"
    width = config.model.width
    if features is None:
        return np.zeros((n_spots, width if reference else 0), np.float32)
    features = np.asarray(features, np.float32)
    if reference and features.shape[1] == width:
        return features
    sd = features.std(axis=0)
    features = (features - features.mean(axis=0)) / np.where(sd > 0, sd, 1)
    if reference:
        gaussian = np.random.default_rng(0).standard_normal((features.shape[1], width))
        features = features @ (gaussian / np.sqrt(features.shape[1]))
    return features.astype(np.float32)
