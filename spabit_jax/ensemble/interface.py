"""What a way to predict is: the interface of SpaBiT, kriging and ridge regression, and of a user's own.

A member is fitted to the train spots of a section. The fitted one says what it predicts at each train spot as if that
spot had never been measured, from which the weights of the members are found, and what it predicts anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float

from spabit_jax.data.section import Places, Section, shapes

FOLDS = 5


class Estimate(NamedTuple):
    """What a member says of the expression at n places."""

    mean: Float[np.ndarray, "S n G"]  # one for each seed; S is 1 where there is no randomness
    variance: Float[np.ndarray, "n G"] | None  # of a measurement, where the member knows it

    __repr__ = shapes


class HeldOut(NamedTuple):
    """What a member says of the n train spots of a section, of each as if it had never been measured."""

    estimate: Estimate  # at the train spots, made without the expression of the spot itself
    unseen: Bool[np.ndarray, "S n"]  # spots that nothing of that seed was fitted to: their errors are honest ones


class FittedMember(Protocol):
    """A member that has learned from the train spots of a section.

    It may have more: ``save(folder)``, so that ``Member.restore`` finds it; ``history``, a DataFrame (stage, seed,
    epoch, train_loss, valid_loss); ``at_spots(spots)``, where predicting (n,) spots needs to know which they are.
    """

    def held_out(self) -> HeldOut:
        """At the train spots of its section."""
        ...

    def predict(self, places: Places) -> Estimate:
        """At n places of its section; of a place, whatever other places are asked for."""
        ...


class Member(Protocol):
    """A way to predict."""

    def fit(self, section: Section, *, seeds: Sequence[int], folder: Path | None = None) -> FittedMember:
        """Learns from the train spots.

        Args:
          section: the expression of its test spots is NaN.
          seeds: of what is random; one fit for each, or one for all.
          folder: what is there of an earlier fit to the same is gone on from, and what is fitted is left there; None
            keeps it in memory. A member that is slow to fit has a method ``restore`` too, with the same arguments,
            which takes what is there and raises InputError if that is not finished.
        """
        ...


def draw_folds(section: Section, seed: int = 0) -> list[np.ndarray]:
    """Positions among the train spots in random order, in ``FOLDS`` parts."""
    order = np.random.default_rng(seed).permutation(section.train_spots)
    return [np.searchsorted(section.train_spots, part) for part in np.array_split(order, min(FOLDS, len(order)))]
