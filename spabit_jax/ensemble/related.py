"""How related sections are best learned from: found at held-out train spots, by one rule for all sections."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from absl import logging

from spabit_jax.data.prepared import ALONE, APART, Prepared
from spabit_jax.ensemble.interface import Estimate, HeldOut, Member
from spabit_jax.ensemble.pretrained import WEIGHTS, FittedPretrained

DISTANCES = (2.0, 4.0)  # pitches between the planes of serial sections


def lay_out_related(prepared: Prepared) -> None:
    """Puts related sections where they lie or far apart, or leaves them out: what predicts held-out train spots best.

    Those are the section's own, and the pretrained SpaBiT predicts them, whatever predicts afterwards. With a network
    that is trained on the section, which knows places on a plane only, related sections stay apart. Decided once.
    """
    undecided = prepared.related and prepared.layout is None and prepared.is_train.any()
    if not undecided or "spabit" in prepared.config.model.members.split(","):
        return
    errors = {layout: _error(prepared, layout) for layout in (ALONE, APART, *DISTANCES)}
    best = min(errors, key=errors.get)
    prepared.lay_out(best)
    tried = ", ".join(f"{_name(layout)} {error:.4f}" for layout, error in errors.items())
    logging.info("%s: related sections are %s (error at held-out train spots: %s)", prepared.name, _name(best), tried)


def held_out_sections(prepared: Prepared, members: dict[str, Member], seeds: Sequence[int]) -> dict[str, HeldOut]:
    """At the train spots of related sections, each as if nothing of its section were measured: from the image alone.

    Of a single related section, each of its halves.
    """
    section, found = prepared.section(), {}
    mean = np.empty((1, len(section.train_spots), len(prepared.genes)), np.float32)
    for name, member in members.items():
        mean, variance = mean.copy(), None
        for others, places, rows in prepared.sections_left_out():
            estimate = member.fit(others, seeds=seeds).predict(places)
            mean[0, rows] = estimate.mean.mean(axis=0)
            if estimate.variance is not None:
                variance = np.empty(mean.shape[1:], np.float32) if variance is None else variance
                variance[rows] = estimate.variance
        found[name] = HeldOut(Estimate(mean, variance), np.ones(mean.shape[:2], bool))
    return found


def _name(layout: float) -> str:
    names = {ALONE: "left out", APART: "far apart"}
    return names.get(layout) or f"where they lie, in planes {layout:g} pitches apart"


def _error(prepared: Prepared, layout: float) -> float:
    """Mean squared error, genes at equal variance, at the section's own train spots."""
    prepared.lay_out(layout)
    section, own = prepared.section(), slice(int(prepared.is_train.sum()))
    mean = FittedPretrained(section, WEIGHTS).held_out().estimate.mean[0, own]
    truth = section.expression[section.train_spots[own]]
    varies = np.ptp(truth, axis=0) > 0  # what does not has no say
    return float(np.mean(((mean - truth) ** 2)[:, varies] / truth.var(axis=0)[varies])) if varies.any() else 0.0
