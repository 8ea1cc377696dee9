"""Where the cells of a GeoJSON file lie."""

from __future__ import annotations

import numpy as np

LARGEST = 1e12  # of coordinates, whose products must be finite


def centroid(geometry: dict) -> np.ndarray:
    """(2,) x and y: a Point, or of the area within a Polygon's outer ring; of a MultiPolygon's largest part.

    Raises:
      KeyError, TypeError, IndexError, ValueError: it is none of these, or holds something else than coordinates.
    """
    kind, parts = geometry["type"], geometry["coordinates"]
    rings = {"Point": lambda: [[parts]], "Polygon": lambda: parts[:1], "MultiPolygon": lambda: [p[0] for p in parts]}
    outlines = [np.asarray(ring, np.float64)[:, [0, 1]] for ring in rings[kind]()]
    if any(not (np.abs(ring) < LARGEST).all() for ring in outlines):
        raise ValueError(f"coordinates that are no numbers, or beyond {LARGEST:g}")
    return max((_area_and_centre(ring) for ring in outlines), key=lambda found: found[0])[1]


def _area_and_centre(ring: np.ndarray) -> tuple[float, np.ndarray]:
    """Of a polygon with (n, 2) corners, by the shoelace formula about the first corner, which keeps digits far from the
    origin; without an area the mean of its corners."""
    first = ring[0]
    a, b = ring - first, np.roll(ring, -1, axis=0) - first
    cross = a[:, 0] * b[:, 1] - b[:, 0] * a[:, 1]
    if not abs(cross.sum()) > 1e-9 * np.square(a).sum():
        return 0.0, ring.mean(axis=0)
    return abs(cross.sum()) / 2, first + ((a + b) * cross[:, None]).sum(axis=0) / (3 * cross.sum())
