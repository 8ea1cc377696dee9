"""Sections put where they lie."""

import numpy as np
import pytest

from spabit_jax.data.registration import register


def tissue(xy):
    """Smooth (n, 3) values without symmetry."""
    x, y = xy.T / 10
    return np.stack([np.sin(1.7 * x + 0.4) + 0.5 * y, np.cos(2.1 * y) * x, np.sin(x + 2 * y)], axis=1)


@pytest.mark.parametrize(("angle", "mirrored", "spacing"), [(77, False, 1), (200, True, 1), (0, True, 0.5)])
def test_a_moved_section_is_found(angle, mirrored, spacing):
    rng = np.random.default_rng(angle)
    grid = np.stack(np.meshgrid(np.arange(0, 21, spacing), np.arange(0, 15, spacing)), axis=-1).reshape(-1, 2)
    here = grid[(grid[:, 0] + grid[:, 1] < 29) & (grid @ [1, -1.5] < 17)]
    there = here[:: 2 if spacing == 1 else 1] + [0.3, 0.2]  # other spots of the same tissue
    mean = tissue(here).mean(axis=0)
    values = tissue(here) - mean + rng.normal(0, 0.2, (len(here), 3))
    values[rng.random(len(here)) < 0.7, 0] = np.nan
    t = np.deg2rad(angle)
    moved = (there * [1, -1] if mirrored else there) @ np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]]) + 40
    found = register(here / spacing, values, moved / spacing, tissue(there) - mean) * spacing
    assert np.linalg.norm(found - there, axis=1).max() < 0.6
