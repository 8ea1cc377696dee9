"""The kinds of expression that an analysis is made on, and the labels that it is compared with."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from anndata import AnnData
from sklearn.neighbors import KNeighborsRegressor

CEILING = "ceiling"
NO_LABEL = ("", "na", "nan", "undetermined", "unknown", "unlabelled")  # what annotators write where they could not tell


class Kind(NamedTuple):
    """Expression of some spots."""

    spots: np.ndarray  # (n,) indices
    values: np.ndarray  # (n, G) log2(count + 1)


def kinds(predictions: AnnData) -> dict[str, Kind]:
    """Expression as it is known without a model, with one, and as it would be known had every spot been measured.

    Args:
      predictions: content of predictions.h5ad, N spots.

    Returns:
      ``measured``: the train spots alone; ``predicted``: every spot, a train spot without its own expression;
      ``merged``: measured at train spots, predicted at the others; ``ceiling``: measured at every spot, the truth that
      a model does not have.
    """
    is_train = train_spots(predictions)
    everywhere = np.arange(predictions.n_obs)
    truth, predicted = predictions.layers["truth"], np.asarray(predictions.X)
    return {
        "measured": Kind(np.flatnonzero(is_train), truth[is_train]),
        "predicted": Kind(everywhere, predicted),
        "merged": Kind(everywhere, np.where(is_train[:, None], truth, predicted)),
        CEILING: Kind(everywhere, truth),
    }


def centred(values: np.ndarray) -> np.ndarray:
    """(n, G) less each spot's mean over the genes, which takes the library size out of logs.

    Without it domains are levels of library size, and tissue with few counts has no marker genes.
    """
    return values - values.mean(axis=1, keepdims=True)


def train_spots(predictions: AnnData) -> np.ndarray:
    """(N,) bool."""
    return (predictions.obs["split"] == "train").to_numpy()


def interpolated(predictions: AnnData) -> np.ndarray:
    """(n, G) expression of the test spots as the mean of their 6 nearest train spots: a prediction without a model."""
    is_train, xy = train_spots(predictions), predictions.obsm["spatial"]
    nearest = KNeighborsRegressor(min(6, is_train.sum())).fit(xy[is_train], predictions.layers["truth"][is_train])
    return nearest.predict(xy[~is_train])


def known_labels(predictions: AnnData) -> np.ndarray:
    """(N,) str, "" where ``obs["label"]`` is missing or says that the annotator could not tell."""
    if "label" not in predictions.obs:
        return np.full(predictions.n_obs, "", object)
    labels = predictions.obs["label"].astype(object)
    text = labels.where(labels.notna(), "").astype(str).str.strip()
    return text.where(~text.str.lower().isin(NO_LABEL), "").to_numpy(object)
