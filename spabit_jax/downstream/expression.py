"""The kinds of expression that an analysis is made on, and the labels that it is compared with."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from anndata import AnnData
from sklearn.neighbors import KNeighborsRegressor

OWN_MEASUREMENT = "own measurement"
LEAST_GENES = 20  # of which the mean says how much was counted
NO_LABEL = ("", "na", "nan", "undetermined", "unknown", "unlabelled")  # what annotators write where they could not tell


class Kind(NamedTuple):
    """Expression of some spots."""

    spots: np.ndarray  # (n,) indices
    values: np.ndarray  # (n, G), on the scale of the run


def kinds(predictions: AnnData) -> dict[str, Kind]:
    """Expression as it is known without a model, with one, and as it would be known had every spot been measured.

    Args:
      predictions: content of predictions.h5ad, N spots.

    Returns:
      ``measured``: the train spots alone; ``predicted``: every spot, a train spot without its own expression;
      ``merged``: measured at train spots, predicted at the others; ``own measurement``: measured at every spot, which a
      model does not have. It is no bound: it has the noise of a measurement, which a prediction has not.
    """
    is_train = train_spots(predictions)
    everywhere = np.arange(predictions.n_obs)
    truth, predicted = predictions.layers["truth"], np.asarray(predictions.X)
    return {
        "measured": Kind(np.flatnonzero(is_train), truth[is_train]),
        "predicted": Kind(everywhere, predicted),
        "merged": Kind(everywhere, np.where(is_train[:, None], truth, predicted)),
        OWN_MEASUREMENT: Kind(everywhere, truth),
    }


def centred(values: np.ndarray, scale: str = "log2_count") -> np.ndarray:
    """(n, G) expression without the library size.

    From log2_count each spot's mean over the genes is taken: without that domains are levels of library size, and
    tissue with few counts has no marker genes. Values stay as they are in log1p_normalised, where it is out already,
    and where genes are fewer than ``LEAST_GENES``: their mean says what they are, not how much was counted.
    """
    if scale != "log2_count" or values.shape[1] < LEAST_GENES:
        return values
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
