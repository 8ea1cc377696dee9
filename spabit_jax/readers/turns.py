"""The eight ways round in which an image can lie."""

from __future__ import annotations

import numpy as np

# The eight ways round: an image is mirrored left to right first, then turned clockwise by so many degrees.
TURNS = ("0", "90", "180", "270", "mirror", "mirror+90", "mirror+180", "mirror+270")


def quarters(turn: str) -> int:
    """How often a turn turns by 90 degrees, after it has mirrored."""
    return TURNS.index(turn) % 4


def after(first: str, then: str) -> str:
    """The turn that is the one and then the other."""
    backwards = then.startswith("mirror")  # a turn that is mirrored goes the other way round
    n = (quarters(then) + quarters(first) * (-1 if backwards else 1)) % 4
    return TURNS[4 * (backwards != first.startswith("mirror")) + n]


def inverse(turn: str) -> str:
    return next(other for other in TURNS if after(turn, other) == "0")


def turned(pixels: np.ndarray, turn: str) -> np.ndarray:
    """(h, w, …) pixels, turned."""
    return np.rot90(pixels[:, ::-1] if turn.startswith("mirror") else pixels, -quarters(turn))


def turned_xy(xy: np.ndarray, turn: str, size: tuple[int, int]) -> np.ndarray:
    """Where the points (N, 2) of an image of this width and height lie once it is turned."""
    (width, height), (x, y) = size, np.asarray(xy).T
    x = width - x if turn.startswith("mirror") else x
    for _ in range(quarters(turn)):
        x, y, width, height = height - y, x, height, width
    return np.column_stack([x, y])
