"""The two passes of a bank: in the second the processes also see what the first says of expression."""

from __future__ import annotations

import numpy as np
from scipy.special import expit, logit

from spabit_jax.kriging.bank import Answers, Bank, Inputs, Solved

N_SAID = 5  # scores of which the second pass sees what the first says
SECOND = 0.25  # weight of the second pass before anything is known: few spots do not tell how much it helps


class Passes:
    """Both passes given n known spots; the second where processes are exact.

    Args:
      banks: of the first pass and of the second, which may have none.
      xy, image: (n, d), (n, C) of the spots.
      noise, scores: as ``Solved`` takes them.
      size: (P,) how much of expression each score is.

    Attributes:
      share: (P,) of the second pass: by its evidence, and ``SECOND`` before it.
    """

    def __init__(self, banks: tuple[Bank, Bank], xy, image, noise, scores, size):
        self.first, self.second = Solved(banks[0], Inputs.of(xy, image), noise, scores), None
        self.share = np.zeros(len(size), np.float32)
        if self.first.exact and len(banks[1].noise):
            left_out = self.first.left_out()
            said = left_out.mixed()[0][:, :N_SAID] * size[:N_SAID]
            self.unit = size[:N_SAID] / max(said.std(axis=0).max(), 1e-6)
            self.second = Solved(banks[1], self._inputs(xy, image, left_out), noise, scores)
            self.share = expit(self.second.evidence - self.first.evidence + logit(SECOND)).astype(np.float32)

    def _inputs(self, xy, image, answers: Answers) -> Inputs:
        return Inputs.of(xy, image, answers.mixed()[0][:, :N_SAID] * self.unit)

    @property
    def banks(self) -> tuple[Bank, Bank]:
        """Those of the processes that the spots support; of the second pass none where there is none."""
        return self.first.bank, self.second.bank if self.second else self.first.bank.at(slice(0))

    def at(self, xy, image) -> tuple[Answers, Answers | None]:
        """At (m, d) places with (m, C) image components, in each pass."""
        first = self.first.at(Inputs.of(xy, image))
        return first, self.second.at(self._inputs(xy, image, first)) if self.second else None
