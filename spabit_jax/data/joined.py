"""Several sections as one: what is learned together from a section and from related ones.

Spots of different sections are too far apart to be neighbours, so that all which works by distance stays within a
section; components of image and expression, and what the one says of the other, are shared.
"""

from __future__ import annotations

from collections.abc import Sequence

import anndata
import numpy as np
import pandas as pd
from absl import logging
from anndata import AnnData
from scipy import sparse
from scipy.spatial import KDTree

from spabit_jax.data.components import expression_space, standardised
from spabit_jax.data.genes import match_genes
from spabit_jax.data.registration import register
from spabit_jax.data.section import Frame, Places, Section
from spabit_jax.neighbours import Context, spot_pitch
from spabit_jax.scale import TOTAL, total_counts

APART = 1000.0  # pitches between two sections: correlation in space, and all weights by distance, are 0 there

N_VALUES = 8  # of expression and of the image, by which sections are put where they lie
IMAGE_SHARE = 0.7  # of an image component's unit, beside that of a score of expression


def join(sections: Sequence[AnnData], genes: list[str]) -> AnnData:
    """The spots of all sections in the pixels of the first: the others beside it, scaled to its spot pitch.

    Args:
      sections: counts in ``X``, ``obsm["spatial"]``; array coordinates are those of each.
      genes: the panel, names as in the first; a gene that another has not measured has no counts there.

    Returns:
      AnnData (N, G): the spots of the first section, then those of the next; ``varm["measured"]`` (G, sections) bool.
    """
    pitch = spot_pitch(np.asarray(sections[0].obsm["spatial"], np.float64))
    places, counts, measured, right = [], [], [], 0.0
    for i, adata in enumerate(sections):
        xy = np.asarray(adata.obsm["spatial"], np.float64)
        if i:
            xy = (xy - xy.min(axis=0)) * pitch / spot_pitch(xy) + [right + APART * pitch, 0]
        right = xy[:, 0].max()
        places.append(xy)
        column = match_genes(adata, sections[0].var.reindex(genes))
        measured.append(column >= 0)
        here = sparse.csr_matrix(adata.X)[:, np.maximum(column, 0)]
        counts.append(here @ sparse.diags(measured[-1].astype(np.float32), format="csr"))
        if lacking := int((column < 0).sum()):
            name = adata.uns["spabit"]["name"]
            logging.warning("%d of %d genes are not measured in section %s", lacking, len(genes), name)
    names = [f"{i}:{name}" if i else name for i, adata in enumerate(sections) for name in adata.obs_names]
    array = np.concatenate([adata.obs[["array_row", "array_col"]].to_numpy(np.float64) for adata in sections])
    totals = np.concatenate([total_counts(adata) for adata in sections])
    return anndata.AnnData(
        X=sparse.vstack(counts, format="csr"),
        obs=pd.DataFrame(array, names, ["array_row", "array_col"]).assign(**{TOTAL: totals}),
        var=pd.DataFrame(index=genes),
        obsm={"spatial": np.concatenate(places)},
        varm={"measured": np.stack(measured, axis=1)},
        uns={"spabit": sections[0].uns["spabit"]},
    )


def join_features(features: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Image features of each section at mean 0 and sd 1 (stains differ), one below the other; None without images."""
    if features[0] is None:
        return None
    return np.concatenate([standardised(part) for part in features])


def align(section: Section, sizes: Sequence[int], measured: np.ndarray | None = None) -> Section:
    """Moves the expression of each section's train spots so that every gene has the mean that it has in the first.

    That is the first related section where the section itself has none. A gene that a section lacks is as at the most
    similar train spots of the first that has it (hot deck imputation; Andridge and Little, 2010): at its mean
    everywhere it would seem to vary less than it does.

    Args:
      section: N spots.
      sizes: spots of each section, in order, the first ones of the N.
      measured: (G, sections) bool; None: all.
    """
    if len(sizes) == 1:
        return section
    expression = section.expression.copy()
    parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    parts = [part[section.is_train[part]] for part in parts]
    known = [i for i, part in enumerate(parts) if len(part)]
    mean = expression[parts[known[0]]].mean(axis=0)
    for i in known[1:]:
        expression[parts[i]] += mean - expression[parts[i]].mean(axis=0)
    if measured is None or measured.all():
        return section._replace(expression=expression)
    before = expression.copy()
    for i in known:
        lacking = ~measured[:, i]
        for j in known:
            shared, genes = measured[:, i] & measured[:, j], np.flatnonzero(lacking & measured[:, j])
            if not (len(genes) and shared.any()):
                continue
            space = expression_space(before[parts[j]][:, shared], N_VALUES)
            here, there = (space.encode(before[parts[k]][:, shared]) for k in (i, j))
            found = before[parts[j]][KDTree(there).query(here)[1]][:, genes]
            expression[np.ix_(parts[i], genes)] = found + mean[genes] - found.mean(axis=0)
            lacking[genes] = False
    return section._replace(expression=expression)


def registered(
    section: Section, frame: Frame, sizes: Sequence[int], distance: float, aligned: Sequence[np.ndarray | None]
) -> tuple[Section, Frame]:
    """Sections that lie far apart, put where they lie: the first in a plane, the others in planes above and below it.

    Where an alignment does not say it, it is found by what is known: image components at all spots, expression at train
    spots.

    Args:
      section, frame: of all spots, each section within its own coordinates.
      sizes: spots of each section, in order.
      distance: pitches between one plane and the next.
      aligned: of each other section its spots (n, 2) in full-resolution pixels of the first, None where not known.

    Returns:
      The same with coordinates (N, 3), and with the nearest train spots of all sections as context.
    """
    train = section.is_train
    space = expression_space(section.expression[train], N_VALUES)
    values = np.full((len(train), len(space.loadings)), np.nan)
    values[train] = space.encode(section.expression[train])
    values = np.concatenate([values, IMAGE_SHARE * section.image[:, :N_VALUES]], axis=1)
    own, *others = np.split(np.arange(len(train)), np.cumsum(sizes)[:-1])
    xy = np.pad(section.xy.astype(np.float64), ((0, 0), (0, 1)))
    for i, (other, placed) in enumerate(zip(others, aligned, strict=True)):
        if placed is None:
            xy[other, :2] = register(xy[own, :2], values[own], xy[other, :2], values[other])
        else:
            xy[other, :2] = frame.in_pitches(placed)
        xy[other, 2] = distance * (i // 2 + 1) * (-1) ** i
    in_px = xy * frame.pitch + [*frame.centre, 0]
    context = Context.of(in_px, train, frame.context.k)
    section = section._replace(xy=xy.astype(np.float32), context=context.of_spots(in_px))
    return section, frame._replace(context=context)


def parts_of(section: Section, sizes: Sequence[int]) -> list[np.ndarray]:
    """The train spots of each related section, (m,) indices; of a single one those of its left and its right half."""
    _, *others = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    parts = [other[section.is_train[other]] for other in others]
    if len(parts) == 1:
        from_left = parts[0][np.argsort(section.xy[parts[0], 0], kind="stable")]
        parts = [np.sort(half) for half in np.array_split(from_left, 2)]
    return parts


def leave_out(section: Section, frame: Frame, spots: np.ndarray) -> tuple[Section, Places]:
    """The section as if these train spots, (m,) indices, were not measured; and these as places far from all others."""
    is_train, expression, noise = section.is_train.copy(), section.expression.copy(), section.noise.copy()
    is_train[spots], expression[spots], noise[spots] = False, np.nan, np.nan
    xy = section.xy.copy()
    xy[spots, 1] += APART + np.ptp(xy[:, 1])
    in_px = xy.astype(np.float64) * frame.pitch + frame.centre
    context = Context.of(in_px, is_train, frame.context.k)
    section = section._replace(
        expression=expression, noise=noise, xy=xy, is_train=is_train, context=context.of_spots(in_px)
    )
    return section, section.places(spots)
