"""Kriging of a section: at test spots from all train spots, at train spots without their own expression."""

from __future__ import annotations

import numpy as np
from absl import logging

from spabit_jax.models import kriging
from spabit_jax.section import SectionData

FOLDS = 5
CHUNK = 1024  # spots predicted in one call
MAX_SPOTS = 1500  # of which a process is made: its cost grows with the cube


def kriged(section: SectionData, n_components: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Expression of every spot by kriging.

    A train spot is predicted from all other train spots; components and parameters that are used for it are those of a
    fit without it (and without the rest of its fold), so that its error is that of a spot never seen.

    Args:
      section: N spots, G genes; its features are image components.
      n_components: of expression.
      seed: of the folds, and of the train spots that are used where there are more than ``MAX_SPOTS``.

    Returns:
      mean, variance: (N, G) float32; the variance is that of a measurement.
    """
    order = np.random.default_rng(seed).permutation(np.flatnonzero(section.is_train))
    if len(order) > MAX_SPOTS:
        logging.warning("kriging uses %d of %d train spots, drawn at random", MAX_SPOTS, len(order))
    used = order[:MAX_SPOTS]
    mean, variance = np.empty_like(section.expression), np.empty_like(section.expression)

    def at(spots):
        return section.xy[spots], section.features[spots]

    def predict(process, spots):
        for start in range(0, len(spots), CHUNK):
            part = spots[start : start + CHUNK]
            mean[part], variance[part] = kriging.predict(process, *at(part))

    folds = np.array_split(order, min(FOLDS, len(order)))
    n_fit = len(used) - max(np.isin(used, fold).sum() for fold in folds)  # the same for all: one compilation
    for fold in folds:
        fit_spots = used[~np.isin(used, fold)][:n_fit]
        fitted = kriging.fit(*at(fit_spots), section.expression[fit_spots], n_components)
        process = kriging.condition(fitted.params, fitted.space, fitted.residual, *at(used), section.expression[used])
        inside = np.isin(used, fold)
        own_mean, own_variance = kriging.leave_one_out(process)
        mean[used[inside]], variance[used[inside]] = own_mean[inside], own_variance[inside]
        predict(process, np.setdiff1d(fold, used))
    process = kriging.fit(*at(used), section.expression[used], n_components)
    predict(process, np.flatnonzero(~section.is_train))
    return mean, variance
