"""An image and nothing else: places on its tissue, at which nothing is measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from spabit_jax.errors import InputError
from spabit_jax.readers.assemble import Images, assemble
from spabit_jax.readers.image import IMAGE_SUFFIXES, open_image
from spabit_jax.readers.orientation import stained_mask
from spabit_jax.readers.tables import positive, read_positions_10x

LOOKS_FOR = "an image (.tif, .svs, .jpg, .png, …)"
OPTIONS = ("spot_um", "um_per_px")
SPOT_UM = 55.0  # Visium's
PITCH = 100 / 55  # distance between spots, in diameters
MASK_PX = 2000


def matches(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(IMAGE_SUFFIXES)


def read(
    path: Path,
    name: str,
    image: Path | None,
    positions: Path | None,
    labels: Path | None,
    spot_um: float | None = None,
    um_per_px: float | None = None,
) -> AnnData:
    """Reads an image as a section with no genes; see ``spabit_jax.readers.read_section``.

    Args:
      image: must be None.
      positions: places, as 10x writes them; by default the hexagonal lattice of such spots, where there is tissue.
      spot_um: diameter of a spot in µm, as in the sections that are learned from; default 55, Visium's.
      um_per_px: µm of a pixel, which an image alone does not say.
    """
    if image is not None:
        raise InputError(f"{path}: is the image itself: leave --image out")
    if um_per_px is None:
        raise InputError(f"{path}: an image alone: give --um_per_px=, µm of a pixel (most slide scanners: 0.25 to 0.5)")
    spot_px = positive(SPOT_UM if spot_um is None else spot_um, "--spot_um", path)
    spot_px /= positive(um_per_px, "--um_per_px", path)
    places = _on_tissue(path, PITCH * spot_px) if positions is None else read_positions_10x(positions)
    nothing = sparse.csr_matrix((len(places), 0), dtype=np.float32)
    return assemble(
        AnnData(nothing, obs=pd.DataFrame(index=places.index)),
        places,
        name=name,
        format="picture",
        counts_path=path,
        positions_path=positions or path,
        labels=labels,
        images=Images(path, scalefactors={"spot_diameter_fullres": spot_px}),
        um_per_px=um_per_px,
        measured=False,
    )


def _on_tissue(path: Path, pitch: float) -> pd.DataFrame:
    """Positions as ``read_positions_10x`` returns them, of the places of a hexagonal lattice that lie on tissue.

    Args:
      pitch: distance between neighbours in pixels.
    """
    slide = open_image(path)
    small, shrunk = slide.thumbnail(MASK_PX)
    step = np.array([pitch * 3**0.5 / 2, pitch / 2])  # of a row, of a column
    rows, columns = (np.array([slide.height, slide.width]) // step).astype(int)
    if rows * columns > 4 * 10**6:
        raise InputError(f"{path}: {rows * columns // 2} places of {pitch:.3g} px: is --um_per_px or --spot_um right?")
    row, column = (index.ravel() for index in np.indices((rows, columns)))
    keep = (row + column) % 2 == 0
    array = np.column_stack([row, column])[keep]
    xy = (array * step + step / 2)[:, ::-1]
    at = np.minimum((xy * shrunk).astype(int), np.array(small.shape[1::-1]) - 1)
    tissue = stained_mask(small)[at[:, 1], at[:, 0]]
    if not tissue.any():
        raise InputError(f"{path}: no tissue is seen on it: give places with --positions")
    table = pd.DataFrame(array[tissue], columns=["array_row", "array_col"])
    table.insert(0, "in_tissue", 1)
    table[["x", "y"]] = xy[tissue]
    return table.set_axis([f"place_{row}_{column}" for row, column in array[tissue]])
