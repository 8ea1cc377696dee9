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
from tqdm.auto import tqdm

from spabit_jax.chunks import slices
from spabit_jax.config import Config
from spabit_jax.data.components import Space, expression_space, shrunk
from spabit_jax.data.section import Places, Section
from spabit_jax.ensemble.interface import Estimate, HeldOut, draw_folds
from spabit_jax.errors import InputError
from spabit_jax.files import sha256, write_json
from spabit_jax.kriging.bank import Bank, without_image
from spabit_jax.kriging.passes import MAX_EXACT, MOST, Passes
from spabit_jax.kriging.solved import NEGLIGIBLE, Answers
from spabit_jax.models.in_context import N_CONTEXT, load_weights, make_query, pad
from spabit_jax.models.layers import merged
from spabit_jax.neighbours import Context

N_COMPONENTS = 20  # of expression; at most half as many as spots, so that what they leave shows what noise there is
CHANCE = 2  # noise in loadings over its mean: leading components gather it
STRENGTH = 3.0  # of what the network says of processes: real tissue is less like them than simulated tasks are
QUERIES = 640  # scores at places in one call of the network
SIZES = (16, 32, 64)  # numbers of processes that the network is compiled for
WEIGHTS = files("spabit_jax") / "ensemble" / "pretrained.npz"


class Scores(NamedTuple):
    """Expression of n train spots as the processes have it."""

    space: Space  # expression → scores of mean 0, by the spots' noise, and variance 1
    loadings: np.ndarray  # (P, G) of predicted scores: those of ``space``, less what is chance in them
    residual: np.ndarray  # (G,) variance of expression that the scores do not hold

    @property
    def size(self) -> np.ndarray:
        """(P,) how much of expression each score is."""
        return np.linalg.norm(self.space.loadings, axis=1)

    @classmethod
    def fit(cls, expression: np.ndarray, noise: np.ndarray) -> Scores:
        """Of (n, G) expression with noise of (n,) relative variance."""
        n = len(expression)
        mean, loadings = expression_space(expression, max(1, min(N_COMPONENTS, n // 2)))
        found = Space(mean, loadings).encode(expression)
        centre = np.average(found, axis=0, weights=1 / noise).astype(np.float32)
        sd = np.maximum(found.std(axis=0), 1e-6)[:, None]
        space = Space(mean + centre @ loadings, loadings * sd)
        residual = np.mean((expression - space.decode(space.encode(expression))) ** 2, axis=0)
        left = max(n - len(sd) - 1, 1) * max(1 - len(sd) / len(residual), 1 / len(residual))  # of spots, of genes
        chance = np.where(np.ptp(expression, axis=0) > 0, CHANCE * residual / left, 0)  # of a constant: rounding
        return cls(space, shrunk(space.loadings, mean, chance), residual)


@partial(jax.jit, static_argnames="graphdef")
def _apply(graphdef, params, query):
    return merged(graphdef, params, training=False)(query, strength=STRENGTH)


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
        self.banks, self.graphdef, self.params = load_weights(weights)
        self.digest = sha256(weights)
        self.section, train = section, section.train_spots
        self.xy, self.image, self.noise = section.xy[train], section.image[train], section.noise[train]
        self.expression, self.folds = section.expression[train], draw_folds(section)
        self.whole = Scores.fit(self.expression, self.noise)

    @cached_property
    def passes(self) -> Passes:
        """The processes given the train spots: when they are first asked, as a run fits before it predicts."""
        banks = self.banks if self.image.shape[1] else tuple(without_image(bank) for bank in self.banks)
        return self._solve(banks, self.whole, slice(None))

    def _solve(self, banks: tuple[Bank, Bank], scores: Scores, spots) -> Passes:
        known = scores.space.encode(self.expression[spots])
        exact = len(self.xy) <= MAX_EXACT  # in folds, too
        return Passes(banks, self.xy[spots], self.image[spots], self.noise[spots], known, scores.size, exact)

    def save(self, folder: Path) -> None:
        """Notes the hash of the weights, all that a run folder needs; InputError where it is of others."""
        path = folder / "pretrained.json"
        if not path.exists():
            write_json(path, {"weights_sha256": self.digest}, sealed=True)
        elif read_digest(path) != self.digest:
            raise InputError(
                f"{path}: the run was made with other weights of the pretrained SpaBiT: give them with "
                "config.model.pretrained, or make the run again in another folder"
            )

    def predict(self, places: Places) -> Estimate:
        """At n places; of a place, whatever other places are asked for."""
        context = places.context[:, :N_CONTEXT]
        if context.shape[1] < min(N_CONTEXT, len(self.xy)):  # config.model.n_context is of the network that is trained
            context = Context.of(self.section.xy, self.section.is_train, N_CONTEXT).at(places.xy)
        near = np.searchsorted(self.section.train_spots, context)
        return self._estimate(self.whole, self.passes, places.xy, places.image, near)

    def held_out(self) -> HeldOut:
        """Each train spot from those outside its fold; of the fold is known only which processes count for nothing."""
        mean, variance = np.empty((2, *self.expression.shape), np.float32)
        for fold in tqdm(self.folds, "folds held out", disable=None, delay=5):
            is_outside = np.ones(len(self.xy), bool)
            is_outside[fold] = False
            outside = np.flatnonzero(is_outside)
            scores = Scores.fit(self.expression[outside], self.noise[outside])
            passes = self._solve(self.passes.banks, scores, outside)
            near = Context.of(self.xy, is_outside, N_CONTEXT).of_spots(self.xy)[fold]
            found = self._estimate(scores, passes, self.xy[fold], self.image[fold], np.searchsorted(outside, near))
            mean[fold], variance[fold] = found.mean[0], found.variance
        return HeldOut(Estimate(mean[None], variance), np.ones((1, len(mean)), bool))

    def _estimate(self, scores: Scores, passes: Passes, xy, image, near) -> Estimate:
        """At n places, (n, d) and (n, C), with (n, M) nearest of the spots that the passes were given."""
        first, second = passes.at(xy, image)
        mean, variance = _measured(second, passes.second.bank)
        if first is not None:
            before, spread = _measured(first, passes.first.bank)
            self._ask(passes, first, (xy, image, near), before, spread)
            both = (1 - passes.share) * before + passes.share * mean
            variance = passes.share * (variance + (mean - both) ** 2)
            mean, variance = both, variance + (1 - passes.share) * (spread + (before - both) ** 2)
        expression = scores.space.mean + mean @ scores.loadings
        return Estimate(expression[None], variance @ scores.space.loadings**2 + scores.residual)

    def _ask(self, passes: Passes, answers: Answers, places: tuple, mean, variance) -> None:
        """Sets mean and variance of measured scores, (n, P) each, to what the network makes of the first pass.

        Where the second pass has all that it can have the spots are many, and the network would hardly change what the
        bank says: it is not asked, which halves its time on a large section.
        """
        asked = np.flatnonzero(passes.share < MOST * (1 - NEGLIGIBLE))
        if not len(asked):
            return
        xy, image, near = places
        known = passes.first.spots.xy, passes.first.spots.image, passes.first.scores[:, asked]
        size = next(size for size in SIZES if size >= len(answers.mean))
        of_asked = Answers(answers.mean[..., asked], answers.variance, answers.log_weight[:, asked])
        for rows in slices(len(xy), QUERIES // len(asked)):
            part = of_asked._replace(mean=of_asked.mean[:, rows], variance=of_asked.variance[:, rows])
            query = make_query(known, near[rows], xy[rows], image[rows], part, passes.first.bank)
            found, shape = _apply(self.graphdef, self.params, pad(query, size, QUERIES)), (-1, len(asked))
            n = len(query.mean)
            mean[rows, asked] = np.asarray(found.mean)[:n].reshape(shape)
            variance[rows, asked] = np.asarray(found.variance + found.noise)[:n].reshape(shape)


def _measured(answers: Answers, bank: Bank) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance, (n, P) each, of measured scores by the mixture of the bank's processes."""
    mean, variance = answers.mixed()
    return mean, variance + np.exp(answers.log_weight).T @ bank.noise
