"""The two passes of a bank: in the second the processes also see what the first says of expression."""

from __future__ import annotations

import numpy as np
from scipy.special import expit, logit

from spabit_jax.chunks import sample
from spabit_jax.kriging.bank import Bank, Inputs
from spabit_jax.kriging.solved import Answers, Solved

MAX_EXACT = 4000  # known spots of exact processes: their cost grows with the cube, and takes 6 GB here
N_FIRST = 2000  # of which the first pass is where there are more
N_SAID = 5  # scores of which the second pass sees what the first says
SECOND = 0.25  # probability of the second pass before anything is known: few spots do not tell how much it helps
MOST = 0.75  # of its probability it has: what it sees was said knowing the same spots, so its evidence is too sure


class Passes:
    """Both passes given n known spots.

    Where the second is not exact the first is of ``N_FIRST`` of them: it says what holds for the whole section, as how
    expression follows from the image. The second, from the nearest spots, has all of them.

    Args:
      banks: of the first pass and of the second.
      xy, image: (n, d), (n, C) of the spots.
      noise, scores: as ``Solved`` takes them.
      size: (P,) how much of expression each score is.
      exact: whether the second pass is.

    Attributes:
      share: (P,) of the second pass: ``MOST`` of its probability, by its evidence and ``SECOND`` before it; 1 where it
        alone has all spots.
    """

    def __init__(self, banks: tuple[Bank, Bank], xy, image, noise, scores, size, exact: bool):
        n, spots, self.exact = len(noise), Inputs.of(xy, image), exact
        some = sample(spots.xy, n if exact else N_FIRST)
        others = np.setdiff1d(np.arange(n), some)
        self.first = Solved(banks[0], spots.at(some), noise[some], scores[some])
        said = np.empty((n, len(size)), np.float32)
        said[some], said[others] = self.first.left_out().mixed()[0], self.first.mean_at(spots.at(others))
        self.unit = size[:N_SAID] / max((said[:, :N_SAID] * size[:N_SAID]).std(axis=0).max(), 1e-6)
        self.second = Solved(banks[1], self._inputs(xy, image, said), noise, scores, exact)
        self.share = np.ones(len(size), np.float32)
        if exact:
            odds = self.second.evidence - self.first.evidence + logit(SECOND)
            self.share = (MOST * expit(odds)).astype(np.float32)

    def _inputs(self, xy, image, said) -> Inputs:
        return Inputs.of(xy, image, said[:, :N_SAID] * self.unit)

    @property
    def banks(self) -> tuple[Bank, Bank]:
        """Those of the processes that the spots support."""
        return self.first.bank, self.second.bank

    def at(self, xy, image) -> tuple[Answers | None, Answers]:
        """At (m, d) places with (m, C) image components, in each pass; of the first none where it has no share."""
        places = Inputs.of(xy, image)
        first = self.first.at(places) if self.exact else None
        said = first.mixed()[0] if self.exact else self.first.mean_at(places)
        return first, self.second.at(self._inputs(xy, image, said))
