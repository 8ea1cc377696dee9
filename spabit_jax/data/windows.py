"""Image windows: how wide the part of the image is that is seen around a place."""

from __future__ import annotations

import re

import numpy as np
from absl import logging
from anndata import AnnData

from spabit_jax.errors import InputError
from spabit_jax.neighbours import spot_pitch

USAGE = "widths joined by +, each a number and d (spot diameters), px (full-resolution pixels) or um, as in 1.5d+3d"
WIDEST = 3.0  # pitches: what a wider window shows is mostly other spots
MOST_PX = 8192  # image pixels across a window: a wider one would take gigabytes for each spot
FEWEST_PX = 32  # image pixels across a window: with fewer there is colour, and no tissue structure


def window_widths(asked: str, adata: AnnData) -> tuple[float, ...]:
    """Widths of the image windows of a section, in full-resolution pixels.

    Args:
      asked: as in ``config.data.windows``: ``USAGE``.
      adata: the section; ``uns["spabit"]`` has ``spot_px``, the diameter of a spot (the width of a bin, the distance
        between cells) in full-resolution pixels, and ``um_per_px`` where it is known.

    Raises:
      InputError: ``asked`` is none of that; of a section with an image also where µm are asked for and the scale is not
        known, or one is below a pixel or above ``MOST_PX``.
    """
    info = adata.uns["spabit"]
    has_image = "image_path" in info  # without one no window is cut, and positions may be in any unit
    um_per_px = info.get("um_per_px", None if has_image else 1.0)
    units = {"d": info["spot_px"], "px": 1.0, "um": um_per_px and 1 / um_per_px}
    widths = []
    for part in asked.split("+"):
        found = re.fullmatch(r"([0-9.]+(?:e[+-]?[0-9]+)?)(d|px|um)", part.strip())
        try:
            number, unit = float(found[1]), found[2]
        except (TypeError, ValueError) as error:
            raise InputError(f"image windows {asked!r}: give {USAGE}") from error
        if units[unit] is None:
            raise InputError(f"the scale of section {info['name']} is not known in µm: give image windows in px or d")
        width = float(f"{number * units[unit]:.6g}")  # as the cache names it
        least = 1 if has_image else np.finfo(float).tiny
        if not least <= width < np.inf:
            raise InputError(f"an image window of {width:g} full-resolution pixels makes no sense: give at least 1")
        if has_image and width * info.get("image_scale", 1.0) > MOST_PX:
            raise InputError(
                f"an image window of {width:g} full-resolution pixels is wider than {MOST_PX} pixels of the image of "
                f"{info['name']}: give a narrower one"
            )
        widths.append(width)
    return tuple(dict.fromkeys(widths))


def warn_of_windows(widths: tuple[float, ...], adata: AnnData) -> None:
    """One warning where windows are wider than ``WIDEST`` pitches, or hold too few pixels of the image."""
    info, pitch = adata.uns["spabit"], spot_pitch(np.asarray(adata.obsm["spatial"], np.float64))
    across = min(widths) * info.get("image_scale", 1.0)
    problems = []
    if max(widths) > WIDEST * pitch * (1 + 1e-3):
        problems.append(f"the widest spans {max(widths) / pitch:.1f} spot pitches")
    if across < FEWEST_PX:
        remedy = ": give the full-resolution image with --image" if info.get("image_scale", 1.0) < 1 else ""
        problems.append(f"the narrowest holds {across:.0f} × {across:.0f} pixels of the image{remedy}")
    if problems:
        px = " + ".join(f"{width:g}" for width in widths)
        logging.warning("section %s, image windows of %s px: %s", info["name"], px, "; ".join(problems))
