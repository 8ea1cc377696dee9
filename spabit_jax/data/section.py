"""AnnData → Section and Places: the arrays that enter JAX."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from anndata import AnnData
from jaxtyping import Bool, Float, Int

from spabit_jax.config import Config
from spabit_jax.data.components import ImageComponents, ImageModel, NoImage, ReferenceFeatures
from spabit_jax.data.graphs import GraphsTuple, make_graph
from spabit_jax.neighbours import Context, impute_from_train, knn_graph, spot_pitch
from spabit_jax.scale import LOG, Scale, find_scale, total_counts

N_POOL = 2  # context spots are drawn from a pool this many times as large when a training step hides some


def shapes(arrays) -> str:
    """What is shown of a NamedTuple of arrays: the name and shape of each."""
    shown = (f"{name} {value.shape}" for name, value in arrays._asdict().items() if hasattr(value, "shape"))
    return f"{type(arrays).__name__}({', '.join(shown)})"


class Places(NamedTuple):
    """Where something is predicted: n places, measured or not, and what is known there without measuring."""

    xy: Float[np.ndarray, "n d"]  # in units of the spot pitch, from the section's centre; d is 3 with sections above it
    image: Float[np.ndarray, "n C"]  # image components; C is 0 without an image
    context: Int[np.ndarray, "n K"]  # rows of the section: the nearest train spots, nearest first, never itself

    __repr__ = shapes


class Section(NamedTuple):
    """The spots of a section as a pytree of arrays: N spots, G genes of the panel, C image components.

    The expression of test spots is NaN: it never enters JAX, and whatever touched it would show.
    """

    expression: Float[np.ndarray, "N G"]  # on the scale of ``config.data.scale``; NaN at test spots
    image: Float[np.ndarray, "N C"]  # image components; C is 0 without an image
    xy: Float[np.ndarray, "N d"]  # in units of the spot pitch, from the section's centre; d as of places
    noise: Float[np.ndarray, " N"]  # relative variance of a measurement's noise (``Scale.noise``); NaN at test spots
    is_train: Bool[np.ndarray, " N"]
    context: Int[np.ndarray, "N K"]  # nearest train spots of each spot, nearest first, never itself
    imputed: Float[np.ndarray, "N G"] | None  # of the separate GAT: expression, at test spots imputed from train spots
    graph: GraphsTuple | None  # of the separate GAT: N nodes without features

    __repr__ = shapes

    def places(self, spots) -> Places:
        """The places of (n,) spots."""
        return Places(self.xy[spots], self.image[spots], self.context[spots])

    @property
    def train_spots(self) -> np.ndarray:
        """(n,) indices."""
        return np.flatnonzero(self.is_train)


class Frame(NamedTuple):
    """How pixels of a section become what a model sees: fitted to its spots, applied to any place."""

    centre: np.ndarray  # (2,) px
    pitch: float  # px
    image: ImageModel
    context: Context

    def places(self, xy: np.ndarray, features) -> Places:
        """New places.

        Args:
          xy: (n, 2) full-resolution pixels.
          features: (n, D) image features as extracted, or None without an image.
        """
        xy = np.asarray(xy, np.float64)
        in_pitches, image = self.in_pitches(xy), self.image.at(self.in_pitches(xy), features)
        plane = ((0, 0), (0, self.context.tree.m - xy.shape[1]))  # where sections lie above each other, its own is at 0
        return Places(np.pad(in_pitches, plane), image, self.context.at(np.pad(xy, plane)))

    def in_pitches(self, xy: np.ndarray) -> np.ndarray:
        return ((np.asarray(xy, np.float64) - self.centre) / self.pitch).astype(np.float32)


def make_section(
    adata: AnnData, genes: list[str], is_train: np.ndarray, features, config: Config, scale: Scale | None = None
) -> Section:
    """Turns a section into arrays: as ``make_section_and_frame``, without the frame."""
    return make_section_and_frame(adata, genes, is_train, features, config, scale)[0]


def make_section_and_frame(
    adata: AnnData, genes: list[str], is_train: np.ndarray, features, config: Config, scale: Scale | None = None
) -> tuple[Section, Frame]:
    """Turns a section into arrays, and says how further places become such.

    Args:
      adata: the section; raw counts in ``X``, ``obsm["spatial"]``, array coordinates.
      genes: the panel, G names.
      is_train: (N,) bool.
      features: (N, D) image features as extracted, or None without an image.
      config: its ``data``, ``gat`` and ``faults`` parts decide on scale, neighbours and image transform.
      scale: of expression; by default that of ``config.data.scale`` with these train spots.
    """
    xy = np.asarray(adata.obsm["spatial"], np.float64)
    scale = scale or find_scale(config.data.scale, adata, is_train)
    amounts = np.full((adata.n_obs, len(genes)), np.nan, np.float32)
    totals, noise = total_counts(adata)[is_train], np.full(adata.n_obs, np.nan, np.float32)
    amounts[is_train] = scale.amounts(adata[is_train, genes].X.toarray(), totals)
    noise[is_train] = scale.noise(totals)

    k = config.gat.n_neighbours
    near = neighbour_coordinates(adata, config)
    context = Context.of(near, is_train, config.model.n_context * (N_POOL if config.train.neighbour_dropout else 1))
    frame = Frame(xy.mean(axis=0), spot_pitch(xy), NoImage(), context)
    in_pitches = frame.in_pitches(xy)
    image, at_spots = image_model(in_pitches, features, config)
    section = Section(
        expression=LOG[scale.name](amounts),
        image=at_spots,
        xy=in_pitches,
        noise=noise,
        is_train=is_train,
        context=context.of_spots(near),
        imputed=None if config.gat.joint else impute_from_train(amounts, near, is_train, k, scale.name),
        graph=None if config.gat.joint else make_graph(*knn_graph(near, k), n_node=len(xy)),
    )
    return section, frame._replace(image=image)


def neighbour_coordinates(adata: AnnData, config: Config) -> np.ndarray:
    """(N, 2) coordinates by which neighbours are found: pixels, or the array's with ``faults.array_neighbours``."""
    if config.faults.array_neighbours:
        return adata.obs[["array_row", "array_col"]].to_numpy(np.float64)
    return np.asarray(adata.obsm["spatial"], np.float64)


def image_model(xy: np.ndarray, features, config: Config) -> tuple[ImageModel, np.ndarray]:
    """The image as ``config.data.image_transform`` has it, fitted to (N, 2) spots with (N, D) features, or to none.

    Returns:
      How it is taken at any place, and what it is at the spots, (N, C).
    """
    if config.data.image_transform == "components" and features is not None:
        return ImageComponents.fit(xy, features, config.data.image_components)
    width = config.model.width if config.data.image_transform == "reference" else 0
    model = NoImage(width) if features is None else ReferenceFeatures.fit(features, width)
    return model, model.at(xy, features)
