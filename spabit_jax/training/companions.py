"""What the network is averaged with: kriging, and ridge regression on image and neighbours.

Both predict test spots from all train spots, and a train spot from all other train spots with parameters that come from
a fit without it and the rest of its fold: their errors there are those at spots never seen.
"""

from __future__ import annotations

import numpy as np
from absl import logging

from spabit_jax.baselines import Spots, ridge_neighbours
from spabit_jax.models import kriging
from spabit_jax.section import SectionData

FOLDS = 5
MAX_SPOTS = 1500  # of which kriging makes its process: its cost grows with the cube


def draw_folds(section: SectionData, seed: int) -> list[np.ndarray]:
    """Train spots in random order, in ``FOLDS`` parts."""
    order = np.random.default_rng(seed).permutation(np.flatnonzero(section.is_train))
    return np.array_split(order, min(FOLDS, len(order)))


def kriged(section: SectionData, n_components: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Expression of every spot by kriging; the mean of one process for each fold.

    Args:
      section: N spots, G genes; its features are image components.
      n_components: of expression.
      seed: of the folds, and of the train spots that are used where there are more than ``MAX_SPOTS``.

    Returns:
      mean, variance: (N, G) float32; the variance is that of a measurement.
    """
    folds = draw_folds(section, seed)
    used, part = np.concatenate(folds), np.repeat(np.arange(len(folds)), [len(fold) for fold in folds])
    if len(used) > MAX_SPOTS:
        logging.warning("kriging uses %d of %d train spots, drawn at random", MAX_SPOTS, len(used))
        chosen = np.sort(np.random.default_rng(seed).permutation(len(used))[:MAX_SPOTS])
        used, part = used[chosen], part[chosen]
    mean, variance = np.empty_like(section.expression), np.empty_like(section.expression)

    def at(spots):
        return section.xy[spots], section.features[spots]

    inside = [np.flatnonzero(part == i) for i in range(len(folds))]
    bag = kriging.fit_bag(*at(used), section.expression[used], inside, n_components)
    for fold, own, process in zip(folds, inside, bag, strict=True):
        left_out = kriging.leave_one_out(process)
        mean[used[own]], variance[used[own]] = (np.asarray(values)[own] for values in left_out)
        others = np.setdiff1d(fold, used)
        mean[others], variance[others] = kriging.predict_bag([process], *at(others))
    test = np.flatnonzero(~section.is_train)
    mean[test], variance[test] = kriging.predict_bag(bag, *at(test))
    return mean, variance


def ridged(section: SectionData, seed: int = 0) -> np.ndarray:
    """Expression of every spot by ridge regression on image components and neighbours' expression: (N, G) float32."""
    spots = Spots(section.xy, section.features, section.features)
    train, mean = np.flatnonzero(section.is_train), np.empty_like(section.expression)
    seen, expression = spots.at(train), section.expression[train]
    for fold in draw_folds(section, seed):
        others = np.setdiff1d(train, fold)
        model = ridge_neighbours().fit_mean(spots.at(others), section.expression[others])
        model.look_at(seen, expression)
        mean[fold] = model.predict_mean(seen, own=True)[np.searchsorted(train, fold)]
    test = np.flatnonzero(~section.is_train)
    if len(test):
        mean[test] = ridge_neighbours().fit_mean(seen, expression).predict_mean(spots.at(test))
    return mean
