"""Tumour regions: a classifier that learns from the labelled train spots says what the other spots are."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from spabit_jax.downstream.expression import OWN_MEASUREMENT, interpolated, train_spots

MIN_SPOTS = 5  # of each class among the train spots: one for each fold
COLUMNS = ["input", "n_train", "n_test", "n_tumour", "auroc", "average_precision", "f1"]


def find_tumour(predictions: AnnData, is_tumour: np.ndarray) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Probability of tumour at the test spots, by what is known of their expression.

    ``predicted``: a classifier is fitted to what is predicted at the labelled train spots and given what is predicted
    at the test spots, so that it learns from what it will be given. ``neighbour labels`` needs no expression: the
    share of tumour among the 6 nearest labelled train spots. Another classifier, fitted to the measured expression of
    the train spots, is given ``nearest``, the mean of the 6 nearest train spots; ``predicted, trained on
    measurements``; and ``own measurement``, which a model does not have.

    Args:
      predictions: content of predictions.h5ad, N spots.
      is_tumour: (N,) 1, 0, or NaN where there is no label.

    Returns:
      A row for each input, in this order, scored on the labelled test spots, with columns ``COLUMNS`` (f1 at
      probability 0.5); and input → (N,) probability, NaN at train spots. None and {} where a class has fewer than
      ``MIN_SPOTS`` train spots or no test spot.
    """
    is_train, known = train_spots(predictions), np.isfinite(is_tumour)
    train, test = np.flatnonzero(is_train & known), np.flatnonzero(~is_train)
    truth, xy = predictions.layers["truth"], np.asarray(predictions.obsm["spatial"], float)
    labels, scored = is_tumour[train].astype(int), known[test]
    answers = is_tumour[test][scored].astype(int)
    if np.bincount(labels, minlength=2).min() < MIN_SPOTS or np.bincount(answers, minlength=2).min() == 0:
        return None, {}
    predicted = np.asarray(predictions.X)
    of_predicted, of_measured = fit_classifier(predicted[train], labels), fit_classifier(truth[train], labels)
    of_places = KNeighborsClassifier(min(6, len(train))).fit(xy[train], labels)
    found = {
        name: classifier.predict_proba(given)[:, 1]
        for name, classifier, given in (
            ("predicted", of_predicted, predicted[test]),
            ("neighbour labels", of_places, xy[test]),
            ("nearest", of_measured, interpolated(predictions)),
            ("predicted, trained on measurements", of_measured, predicted[test]),
            (OWN_MEASUREMENT, of_measured, truth[test]),
        )
    }
    rows, maps = [], {}
    for name, probability in found.items():
        p = probability[scored]
        scores = (roc_auc_score(answers, p), average_precision_score(answers, p), f1_score(answers, p > 0.5))
        rows.append((name, len(train), len(answers), answers.sum(), *scores))
        maps[name] = np.full(len(xy), np.nan)
        maps[name][test] = probability
    return pd.DataFrame(rows, columns=COLUMNS), maps


def fit_classifier(values: np.ndarray, labels: np.ndarray):
    """Logistic regression on principal components, (n, G) expression and (n,) labels 0 or 1.

    The number of components and the penalty are those with the highest AUROC in five-fold cross-validation over these
    spots. Classes weigh the same, whatever their size.
    """
    model = make_pipeline(
        StandardScaler(), PCA(svd_solver="full"), LogisticRegression(max_iter=5000, class_weight="balanced")
    )
    most = min(len(values) * 4 // 5 - 1, values.shape[1])
    grid = {
        "pca__n_components": sorted({min(n, most) for n in (5, 10, 20)}),
        "logisticregression__C": np.logspace(-3, 1, 5),
    }
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    with threadpool_limits(1):  # matrices this small are slower on several threads
        return GridSearchCV(model, grid, scoring="roc_auc", cv=folds).fit(values, labels)
