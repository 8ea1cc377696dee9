"""SpaBiT that is not trained on a section: ``models.in_context`` and its bank of processes, as a member."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property, partial
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from spabit_jax.chunks import slices
from spabit_jax.config import Config
from spabit_jax.data.components import Space, expression_space
from spabit_jax.data.section import Places, Section
from spabit_jax.ensemble.interface import Estimate, HeldOut, draw_folds
from spabit_jax.errors import InputError
from spabit_jax.files import sha256, write_json
from spabit_jax.kriging.bank import Answers, Solved, without_image
from spabit_jax.models.in_context import N_CONTEXT, load_weights, make_query, pad
from spabit_jax.models.layers import merged

N_COMPONENTS = 20  # of expression
CHUNK = 256  # places in one call of the network
SIZES = (16, 32, 64)  # numbers of processes that the network is compiled for
WEIGHTS = files("spabit_jax") / "ensemble" / "pretrained.npz"


class Scores(NamedTuple):
    """Expression of n train spots as the processes have it."""

    space: Space  # scores of mean 0, by the spots' noise, and variance 1 → expression
    residual: np.ndarray  # (G,) variance of expression that the scores do not hold

    @classmethod
    def fit(cls, expression: np.ndarray, noise: np.ndarray) -> Scores:
        """Of (n, G) expression with noise of (n,) relative variance."""
        mean, loadings = expression_space(expression, N_COMPONENTS)
        found = Space(mean, loadings).encode(expression)
        centre = np.average(found, axis=0, weights=1 / noise).astype(np.float32)
        sd = np.maximum(found.std(axis=0), 1e-6)
        space = Space(mean + centre @ loadings, loadings * sd[:, None])
        return cls(space, np.mean((expression - space.decode(space.encode(expression))) ** 2, axis=0))


@partial(jax.jit, static_argnames="graphdef")
def _apply(graphdef, params, query):
    return merged(graphdef, params, training=False)(query)


class Pretrained:
    """SpaBiT in context.

    Args:
      config: ``model.pretrained`` names a file of weights; the package's own where it is empty.
    """

    def __init__(self, config: Config):
        self.weights = config.model.pretrained or WEIGHTS

    def fit(self, section: Section, *, seeds: Sequence[int] = (), folder: Path | None = None) -> FittedPretrained:
        """Nothing but scores is fitted to the section; in a folder, an earlier fit must have had the same weights."""
        fitted = FittedPretrained(section, self.weights)
        if folder is not None:
            fitted.save(folder)
        return fitted


def read_digest(path: Path) -> str | None:
    """What ``FittedPretrained.save`` noted; None where the file is damaged."""
    try:
        return json.loads(path.read_text())["weights_sha256"]
    except (ValueError, KeyError, TypeError):
        return None


class FittedPretrained:
    """The pretrained network and its processes, given the train spots of a section."""

    def __init__(self, section: Section, weights: str | Path):
        self.bank, self.graphdef, self.params = load_weights(weights)
        self.digest = sha256(weights)
        self.section, train = section, section.train_spots
        self.xy, self.image, self.noise = section.xy[train], section.image[train], section.noise[train]
        self.expression, self.folds = section.expression[train], draw_folds(section)
        self.whole = Scores.fit(self.expression, self.noise)
        self.known = self.whole.space.encode(self.expression)

    @cached_property
    def solved(self) -> Solved:
        """The processes given the train spots: when they are first asked, as a run fits before it predicts."""
        bank = self.bank if self.image.shape[1] else without_image(self.bank)
        return Solved(bank, self.xy, self.image, self.noise, self.known)

    def save(self, folder: Path) -> None:
        """Notes the hash of the weights, all that a run folder needs; InputError where it is of others."""
        path = folder / "pretrained.json"
        if not path.exists():
            write_json(path, {"weights_sha256": self.digest})
        elif read_digest(path) != self.digest:
            raise InputError(
                f"{path}: the run was made with other weights of the pretrained SpaBiT: give them with "
                "config.model.pretrained, or make the run again in another folder"
            )

    def predict(self, places: Places) -> Estimate:
        """At n places; of a place, whatever other places are asked for."""
        return self._estimate(self.whole, self.known, places, self.solved.at(places.xy, places.image))

    def held_out(self) -> HeldOut:
        """Each train spot from all others, in components and with weights that were found without its fold.

        Of its fold is known only which processes have no weight worth solving them for.
        """
        mean, variance = np.empty((2, *self.expression.shape), np.float32)
        outside = [np.setdiff1d(np.arange(len(self.xy)), fold) for fold in self.folds]
        scores = [Scores.fit(self.expression[others], self.noise[others]) for others in outside]
        known = [of_fold.space.encode(self.expression) for of_fold in scores]
        answers = self.solved.left_out_in(list(zip(self.folds, known, strict=True)))
        for fold, *of_fold, part in zip(self.folds, scores, known, answers, strict=True):
            found = self._estimate(*of_fold, self.section.places(self.section.train_spots[fold]), part)
            mean[fold], variance[fold] = found.mean[0], found.variance
        return HeldOut(Estimate(mean[None], variance), np.ones((1, len(mean)), bool))

    def _estimate(self, scores: Scores, known, places: Places, answers: Answers) -> Estimate:
        """At n places, from (n_train, P) known scores and the processes' answers at the places."""
        space, n_scores, xy, image = scores.space, known.shape[1], places.xy, places.image
        near = np.searchsorted(self.section.train_spots, places.context[:, :N_CONTEXT])
        size = next(size for size in SIZES if size >= len(answers.mean))
        mean, variance = np.empty((2, len(xy), len(space.mean)), np.float32)
        for rows in slices(len(xy), CHUNK):
            filled = np.minimum(np.arange(rows.start, rows.start + CHUNK), len(xy) - 1)
            part = Answers(answers.mean[:, filled], answers.variance[:, filled], answers.log_weight)
            query = make_query((self.xy, self.image, known), near[filled], xy[filled], image[filled], part,
                               self.solved.bank)  # fmt: skip
            found = _apply(self.graphdef, self.params, pad(query, size))
            n = rows.stop - rows.start
            of_mean, of_variance = (
                np.asarray(values).reshape(CHUNK, n_scores)[:n] for values in (found.mean, found.variance + found.noise)
            )
            mean[rows] = space.decode(of_mean)
            variance[rows] = of_variance @ space.loadings**2 + scores.residual
        return Estimate(mean[None], variance)
