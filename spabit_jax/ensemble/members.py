"""What predicts: SpaBiT, kriging and ridge regression behind one interface, and a user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from spabit_jax.config import Config, is_path_component
from spabit_jax.data.section import Places, Section
from spabit_jax.ensemble.interface import Estimate, FittedMember, HeldOut, Member, draw_folds
from spabit_jax.ensemble.pretrained import Pretrained
from spabit_jax.ensemble.ridge import NeighbourRegression
from spabit_jax.errors import InputError
from spabit_jax.files import check_whole, is_whole, replacing
from spabit_jax.kriging.bag import Bag, fit_bag, pack, unpack
from spabit_jax.kriging.process import Fitted
from spabit_jax.readers.tables import reading
from spabit_jax.training.fit import losses_table, save_state
from spabit_jax.training.network import Trainer

RUN_AGAIN = "run the stage train first (--stages=train)"


class Network:
    """SpaBiT, or whatever ``config.model.name`` names: a network for each seed.

    Args:
      config: of the run.
      gene_tokens, part: of the reference's separate GAT (``reference.separate_gat``), where there is one.
    """

    def __init__(self, config: Config, gene_tokens=None, part=None):
        self.config, self.gene_tokens, self.part = config, gene_tokens, part

    def fit(self, section: Section, *, seeds: Sequence[int], folder: Path | None = None) -> FittedNetwork:
        trainer = Trainer(section, self.config, self.gene_tokens, self.part)
        states = trainer.fit_seeds(list(seeds), None if folder is None else folder / "checkpoints")
        return FittedNetwork(trainer, list(seeds), states)

    def restore(self, section: Section, *, seeds: Sequence[int], folder: Path) -> FittedNetwork:
        """What a finished ``fit`` left in the folder; InputError if it is not there or not finished."""
        trainer = Trainer(section, self.config, self.gene_tokens, self.part)
        states = [trainer.restore(seed, folder / "checkpoints" / f"seed_{seed}") for seed in seeds]
        return FittedNetwork(trainer, list(seeds), states)


class FittedNetwork(NamedTuple):
    """S trained networks, and the trainer that applies them."""

    trainer: Trainer
    seeds: list[int]
    states: list  # ``training.fit.FitState`` of each

    def held_out(self) -> HeldOut:
        """Each seed's unseen fifth of the train spots decided nothing about it; all its predictions lack the spot."""
        trainer, train = self.trainer, self.trainer.train_spots
        unseen = np.zeros((len(self.seeds), len(train)), bool)
        for row, seed in zip(unseen, self.seeds, strict=True):
            spots = trainer.parts(seed).unseen
            row[np.searchsorted(train, spots) if len(spots) else slice(None)] = True  # all, where none was held out
        return HeldOut(self.at_spots(train), unseen)

    def save(self, folder: Path) -> None:
        """So that ``Network.restore`` finds it."""
        for seed, state in zip(self.seeds, self.states, strict=True):
            save_state(state, folder / "checkpoints" / f"seed_{seed}")

    @property
    def history(self) -> pd.DataFrame:
        """Losses: columns stage, seed, epoch, train_loss, valid_loss (NaN where there was no validation)."""
        pairs = zip(self.seeds, self.states, strict=True)
        return pd.concat([losses_table("spabit", seed, state.losses[: int(state.epoch)]) for seed, state in pairs])

    def at_spots(self, spots: np.ndarray) -> Estimate:
        """As ``predict``, at (n,) spots of the section: what the reference does needs to know that they are."""
        return self._stacked(self.trainer.predict, spots)

    def predict(self, places: Places) -> Estimate:
        return self._stacked(self.trainer.predict_at, places)

    def _stacked(self, predict, where) -> Estimate:
        pairs = zip(self.seeds, self.states, strict=True)
        return Estimate(np.stack([predict(state.chosen, where, seed) for seed, state in pairs]), None)


class Kriging:
    """Gaussian processes over space and image: ``kriging.bag``."""

    def __init__(self, config: Config):
        self.n_components = config.model.n_components

    def fit(self, section: Section, *, seeds: Sequence[int] = (), folder: Path | None = None) -> FittedKriging:
        path = None if folder is None else folder / "kriging.npz"
        train, folds = section.train_spots, draw_folds(section)
        known = section.xy[train], section.image[train], section.expression[train]
        if path is not None and is_whole(path):
            with reading(path, "what was learned for kriging", f"delete it, and {RUN_AGAIN}"):
                fitted = unpack(dict(np.load(path)))
        else:
            fitted = fit_bag(*known, folds, self.n_components)
            if path is not None:
                save_fits(fitted, path)
        return FittedKriging(Bag(fitted, *known), folds, fitted)

    def restore(self, section: Section, *, seeds: Sequence[int], folder: Path) -> FittedKriging:
        """What a finished ``fit`` left in the folder; InputError if it is not there."""
        path = folder / "kriging.npz"
        if not path.exists():
            raise InputError(f"{path} is missing: {RUN_AGAIN}")
        check_whole(path, RUN_AGAIN)
        return self.fit(section, seeds=seeds, folder=folder)


def save_fits(fitted: list[Fitted], path: Path) -> None:
    with replacing(path, sealed=True) as temporary:
        np.savez(temporary, **pack(fitted))


class FittedKriging(NamedTuple):
    """Kriging from all train spots, the folds without which its parameters were found, and what was found."""

    bag: Bag
    folds: list[np.ndarray]
    fits: list[Fitted]

    def save(self, folder: Path) -> None:
        """So that ``Kriging.restore`` finds it."""
        save_fits(self.fits, folder / "kriging.npz")

    def held_out(self) -> HeldOut:
        mean, variance = self.bag.left_out(self.folds)
        return HeldOut(Estimate(mean[None], variance), np.ones((1, len(mean)), bool))

    def predict(self, places: Places) -> Estimate:
        mean, variance = self.bag.at(places.xy, places.image)
        return Estimate(mean[None], variance)


class Ridge:
    """Ridge regression on image components and neighbours' expression: quick, so that nothing of it is kept."""

    def fit(self, section: Section, *, seeds: Sequence[int] = (), folder: Path | None = None) -> FittedRidge:
        return FittedRidge(section)


class FittedRidge:
    """Ridge regression fitted to all train spots and, for ``held_out``, to those outside each fold."""

    def __init__(self, section: Section):
        train = section.train_spots
        self.folds = draw_folds(section)
        self.known = section.xy[train], section.image[train], section.expression[train]
        self.whole = NeighbourRegression().fit(*self.known)

    def held_out(self) -> HeldOut:
        xy, image, expression = self.known
        mean = np.empty_like(expression)
        for fold in self.folds:
            others = np.setdiff1d(np.arange(len(xy)), fold)
            model = NeighbourRegression().fit(xy[others], image[others], expression[others])
            model.look_at(xy, expression)
            mean[fold] = model.predict(xy, image, at_train=True)[fold]
        return HeldOut(Estimate(mean[None], None), np.ones((1, len(mean)), bool))

    def predict(self, places: Places) -> Estimate:
        return Estimate(self.whole.predict(places.xy, places.image)[None], None)


MEMBERS: dict[str, Callable[[Config], Member]] = {  # a new one is a class and ``register_member``
    "spabit": Network,
    "pretrained": Pretrained,
    "kriging": Kriging,
    "ridge": lambda config: Ridge(),
}
BUILT_IN = tuple(MEMBERS)


def register_member(name: str, make: Callable[[Config], Member]) -> None:
    """Makes a member known to ``config.model.members``: a class, or a function, of the configuration.

    Raises:
      InputError: the name is one of the library's, or cannot be one.
    """
    if name in BUILT_IN or not isinstance(name, str) or "," in name or not is_path_component(name):
        raise InputError(f"register_member({name!r}): the name is taken, or is none: give another one")
    MEMBERS[name] = make


def make_members(config: Config, gene_tokens: tuple | None = None) -> dict[str, Member]:
    """The members that ``config.model.members`` names; InputError for one that is not known.

    Args:
      gene_tokens: tokens and part of the reference's separate GAT, for the network.
    """
    members = {}
    for name in config.model.members.split(","):
        if name not in MEMBERS:
            raise InputError(f"config.model.members names {name!r}: known members are {', '.join(MEMBERS)}")
        tokens = gene_tokens if name == "spabit" and gene_tokens is not None else ()
        members[name] = MEMBERS[name](config, *tokens)
    return members


def fit_members(members: dict[str, Member], section: Section, seeds: Sequence[int]) -> dict[str, FittedMember]:
    """Each member fitted, one after the other: on a CPU two programs with batches of LAPACK calls may block."""
    return {name: member.fit(section, seeds=seeds) for name, member in members.items()}


def restore_members(
    members: dict[str, Member], section: Section, seeds: Sequence[int], folder: Path
) -> dict[str, FittedMember]:
    """What was fitted in the folder, or InputError; a member without ``restore`` is quick to fit again."""
    how = {name: getattr(member, "restore", member.fit) for name, member in members.items()}
    return {name: restore(section, seeds=seeds, folder=folder) for name, restore in how.items()}


def checked(name: str, estimate: Estimate, n: int, n_genes: int) -> Estimate:
    """The estimate of a member at n places itself; InputError where it is not what ``Estimate`` says."""
    mean, variance = estimate
    if np.ndim(mean) != 3 or np.shape(mean)[1:] != (n, n_genes):
        raise InputError(f"member {name}: the mean has shape {np.shape(mean)}, not (seeds or 1, {n}, {n_genes})")
    if variance is not None and np.shape(variance) != (n, n_genes):
        raise InputError(f"member {name}: the variance has shape {np.shape(variance)}, not ({n}, {n_genes})")
    if not np.isfinite(mean).all() or variance is not None and not (np.isfinite(variance) & (variance >= 0)).all():
        raise InputError(f"member {name}: a mean is not finite, or a variance is not or is below 0")
    return estimate


def check_held_out(name: str, held: HeldOut, n: int, n_genes: int) -> HeldOut:
    """As ``checked``, of what a member's ``held_out`` gives at the n train spots."""
    checked(name, held.estimate, n, n_genes)
    if np.shape(held.unseen) != (len(held.estimate.mean), n) or not np.any(held.unseen):
        raise InputError(f"member {name}: unseen has shape {np.shape(held.unseen)}, or nothing in it is unseen")
    return held


def estimate_spots(
    section: Section, fitted: dict[str, FittedMember], held_out: dict[str, HeldOut], n: int
) -> dict[str, Estimate]:
    """Each member's estimate at the spots of a section, of a train spot without its own expression.

    Args:
      held_out: what each member's ``held_out`` gave.
      n: the first so many rows are the section's own, the others those of related sections.
    """
    test, estimates = np.flatnonzero(~section.is_train[:n]), {}
    for name, member in fitted.items():
        at_test = None
        if len(test):  # the reference's network needs to know which spots they are
            of_spots = getattr(member, "at_spots", None)
            at_test = of_spots(test) if of_spots else member.predict(section.places(test))
            at_test = checked(name, at_test, len(test), section.expression.shape[1])
            if (at_test.variance is None) != (held_out[name].estimate.variance is None):
                raise InputError(f"member {name}: predict and held_out must both give a variance, or neither")
        estimates[name] = _together(held_out[name].estimate, section.train_spots, at_test, test, n)
    return estimates


def _together(left_out: Estimate, train: np.ndarray, at_test: Estimate | None, test: np.ndarray, n: int) -> Estimate:
    """One estimate at the first n spots of those at all train spots and at the test spots."""
    own = train < n  # the others are related sections'
    mean = np.empty((len(left_out.mean), n, left_out.mean.shape[2]), np.float32)
    mean[:, train[own]] = left_out.mean[:, own]
    variance = None if left_out.variance is None else np.empty(mean.shape[1:], np.float32)
    if variance is not None:
        variance[train[own]] = left_out.variance[own]
    if at_test is not None:
        mean[:, test] = at_test.mean
        if variance is not None:
            variance[test] = at_test.variance
    return Estimate(mean, variance)
