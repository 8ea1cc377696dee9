"""What the network is averaged with: kriging, and ridge regression on image and neighbours.

Both predict test spots from all train spots, and a train spot from all other train spots with parameters that come from
a fit without it and the rest of its fold: their errors there are those at spots never seen.
"""

from __future__ import annotations

import numpy as np

from spabit_jax.data.section import SectionData
from spabit_jax.evaluation.baselines import OnNeighbours, Spots, ridge_neighbours
from spabit_jax.kriging.bag import Bag, fit_bag
from spabit_jax.kriging.process import Fitted

FOLDS = 5


def draw_folds(section: SectionData, seed: int) -> list[np.ndarray]:
    """Train spots in random order, in ``FOLDS`` parts."""
    order = np.random.default_rng(seed).permutation(np.flatnonzero(section.is_train))
    return np.array_split(order, min(FOLDS, len(order)))


def fit_kriging(section: SectionData, n_components: int, seed: int = 0) -> list[Fitted]:
    """What kriging learns from the train spots.

    Args:
      section: N spots, G genes; its features are image components.
      n_components: of expression.
      seed: of the folds.
    """
    known, folds = _known(section, seed)
    return fit_bag(*known, folds, n_components)


def kriging_bag(section: SectionData, fitted: list[Fitted]) -> Bag:
    """Kriging from all train spots, with what ``fit_kriging`` learned."""
    return Bag(fitted, *_known(section, 0)[0])


def kriged(section: SectionData, fitted: list[Fitted], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Expression of every spot by kriging: ``models.kriging_bag``.

    Args:
      section: N spots, G genes.
      fitted: of ``fit_kriging`` with the same seed.

    Returns:
      mean, variance: (N, G) float32; the variance is that of a measurement.
    """
    train, test = np.flatnonzero(section.is_train), np.flatnonzero(~section.is_train)
    bag = kriging_bag(section, fitted)
    mean, variance = np.empty_like(section.expression), np.empty_like(section.expression)
    mean[train], variance[train] = bag.left_out(_known(section, seed)[1])
    if len(test):
        mean[test], variance[test] = bag.at(section.xy[test], section.features[test])
    return mean, variance


def _known(section: SectionData, seed: int):
    train = np.flatnonzero(section.is_train)
    folds = [np.searchsorted(train, fold) for fold in draw_folds(section, seed)]
    return (section.xy[train], section.features[train], section.expression[train]), folds


def ridged(section: SectionData, seed: int = 0) -> np.ndarray:
    """Expression of every spot by ridge regression on image components and neighbours' expression: (N, G) float32."""
    spots = _spots(section)
    train, mean = np.flatnonzero(section.is_train), np.empty_like(section.expression)
    seen, expression = spots.at(train), section.expression[train]
    for fold in draw_folds(section, seed):
        others = np.setdiff1d(train, fold)
        model = ridge_neighbours().fit_mean(spots.at(others), section.expression[others])
        model.look_at(seen, expression)
        mean[fold] = model.predict_mean(seen, own=True)[np.searchsorted(train, fold)]
    test = np.flatnonzero(~section.is_train)
    if len(test):
        mean[test] = fit_ridge(section).predict_mean(spots.at(test))
    return mean


def fit_ridge(section: SectionData) -> OnNeighbours:
    """Ridge regression fitted to all train spots."""
    train = np.flatnonzero(section.is_train)
    return ridge_neighbours().fit_mean(_spots(section).at(train), section.expression[train])


def elsewhere(section: SectionData, bag: Bag, ridge: OnNeighbours, rows: np.ndarray):
    """What ``kriged`` and ``ridged`` say at (m,) rows of a section that are no train spots.

    Returns:
      name → (m, G) predictions of kriging and ridge; (m, G) variance of a measurement, by kriging.
    """
    places = _spots(section).at(rows)
    mean, variance = bag.at(places.xy, places.components)
    return {"kriging": mean, "ridge": ridge.predict_mean(places)}, variance


def _spots(section: SectionData) -> Spots:
    return Spots(section.xy, section.features, section.features)
