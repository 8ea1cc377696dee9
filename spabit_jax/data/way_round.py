"""Whether the image explains more of expression another way round than as it lies: a look at train spots alone.

Where tissue fills the picture, or is symmetric, its outline (``readers.orientation``) shows nothing.
"""

from __future__ import annotations

import numpy as np
from absl import logging
from scipy.ndimage import uniform_filter

from spabit_jax.data.components import expression_space
from spabit_jax.data.prepared import Prepared
from spabit_jax.readers.orientation import open_used
from spabit_jax.readers.turns import TURNS, after, inverse, quarters, turned_xy

LOOK_PX = 1000
WINDOWS = (1, 3)  # spot diameters
N_SCORES = 5
PENALTIES = np.geomspace(1, 1e4, 9)
# On the six real sections of 190 to 740 train spots the right way had an R² of 0.27 to 0.64, 0.06 to 0.49 more than any
# other; on three of 44 to 46 spots it was not always the first.
LEAST_SPOTS = 100
MARGIN = 0.1
LEAST_INSIDE = 0.95


def check_way_round(prepared: Prepared) -> None:
    """Warns where the image, another way round, explains clearly more of expression at the train spots.

    By a ridge regression from mean and sd of colours around the spots to scores of expression, each spot left out once.
    """
    info, n = prepared.adata.uns["spabit"], prepared.is_train.sum()
    if n < LEAST_SPOTS or not prepared.patch_px or not prepared.windows:
        return
    expression = prepared.section().expression[: len(prepared.is_train)][prepared.is_train]
    scores = expression_space(expression, N_SCORES).encode(expression)
    small, shrunk = open_used(info).thumbnail(LOOK_PX)
    scale = info["image_scale"] * shrunk
    colours, xy = _colours(small, info["spot_px"] * scale), prepared.adata.obsm["spatial"][prepared.is_train] * scale
    explained = {}
    for turn in TURNS:
        height, width = small.shape[:2]
        at = turned_xy(xy, inverse(turn), (height, width) if quarters(turn) % 2 else (width, height))
        if turn == "0" or ((at >= 0) & (at < [width, height])).all(axis=1).mean() >= LEAST_INSIDE:
            column, row = np.clip(at, 0, [width - 1, height - 1]).astype(int).T
            explained[turn] = _explained(colours[row, column], np.asarray(scores, np.float64))
    best = max(explained, key=explained.get)
    if explained[best] > max(explained["0"], 0) + MARGIN:
        total = after(info.get("turn", "0"), best)
        logging.warning(
            "section %s: another way round its image explains more of expression at train spots (R² %.2f, as it is "
            "%.2f): look at the picture, and %s if so", prepared.name, explained[best], explained["0"],
            "leave --turn out" if total == "0" else f"give --turn={total}",
        )  # fmt: skip


def _colours(image: np.ndarray, diameter: float) -> np.ndarray:
    """(h, w, 12): mean and sd of each colour in ``WINDOWS`` around each pixel of an image (h, w, 3), white outside."""
    pixels, parts = 255 - image.astype(np.float32), []
    for width in WINDOWS:
        size = (max(1, round(width * diameter)),) * 2 + (1,)
        mean = uniform_filter(pixels, size, mode="constant")
        parts += [mean, np.sqrt(np.maximum(uniform_filter(pixels**2, size, mode="constant") - mean**2, 0))]
    return np.concatenate(parts, axis=2)


def _explained(features: np.ndarray, scores: np.ndarray) -> float:
    """R² of scores (n, P) at spots left out one by one, by ridge regression from features and their squares (n, C).

    Of the penalties the best.
    """
    from sklearn.linear_model import RidgeCV

    features = _standardised(np.concatenate([(f := _standardised(features)), f**2], axis=1))
    error = -RidgeCV(PENALTIES).fit(features, scores).best_score_
    return 1 - error / scores.var(axis=0).mean()


def _standardised(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(axis=0)) / np.maximum(values.std(axis=0), 1e-6)
