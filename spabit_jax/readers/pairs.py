"""Pairs of text tables: counts, and coordinates of the spots (as of PASTE, Slide-seq and many supplements).

``NAME.csv`` with ``NAME_coor.csv``; ``counts.csv`` with ``coordinates.csv``; Slide-seq's ``MappedDGEForR.csv`` with
``BeadLocationsForR.csv`` and ``NAME.digital_expression.txt.gz`` with ``NAME_bead_locations.csv``.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
from absl import logging
from anndata import AnnData

from spabit_jax.errors import InputError
from spabit_jax.readers.assemble import NO_IMAGE, Images, assemble
from spabit_jax.readers.image import IMAGE_SUFFIXES
from spabit_jax.readers.lattice import array_coordinates
from spabit_jax.readers.st import PITCH_UM, places_in
from spabit_jax.readers.tables import check_positions, read_counts, reading, to_numbers
from spabit_jax.readers.visium import first_existing

LOOKS_FOR = "a table of counts NAME.csv or .txt beside one of coordinates, NAME_coor.csv"
_TABLE = re.compile(r"(.*)\.(csv|txt|tsv)(\.gz)?")
_COUNTS = re.compile(r"[_.-]?(counts?|expression|digital_expression|matrix|genes?|MappedDGEForR|ForR)$", re.IGNORECASE)
_COORDINATES = re.compile(
    r"[_.-]?(coors?|coords?|coordinates?|positions?|locations?|spatial|bead_?locations(forr)?|spots?|xy|meta(data)?)$",
    re.IGNORECASE,
)


def matches(path: Path) -> bool:
    return path.is_file() and _TABLE.fullmatch(path.name) is not None


def read(path: Path, name: str, image: Path | None, positions: Path | None, labels: Path | None) -> AnnData:
    """Reads a pair of tables; see ``spabit_jax.readers.read_section``.

    Rows and columns of the counts may be exchanged. Coordinates, in pixels of the image if there is one, are the
    columns x and y (or xcoord, pxl_col_in_fullres, …) of rows that are named as the spots or in their order. Array
    coordinates are those in the spots' names, else derived (``lattice.array_coordinates``).
    """
    stem = _COUNTS.sub("", _TABLE.fullmatch(path.name)[1]) if matches(path) else ""
    positions = positions or _coordinates_of(path, stem)
    if positions is None:
        raise InputError(f"{path}: no coordinates beside it ({stem or 'NAME'}_coordinates.csv): give --positions=FILE")
    names, xy = _read_coordinates(positions)
    counts = _spots_by_genes(read_counts(path), names, len(xy), path, positions)
    xy = pd.DataFrame(xy, index=counts.obs_names if names is None else names, columns=["x", "y"])
    places = places_in(counts.obs_names)
    on_array = places is not None and names is None and np.allclose(places, xy, atol=0.51)
    square_um = PITCH_UM if on_array and image in (None, NO_IMAGE) else None
    if not np.isfinite(xy.to_numpy()).all():
        raise InputError(f"{positions}: the position of spot {xy.index[~np.isfinite(xy).all(axis=1)][0]} is missing")
    array = np.rint(places[:, ::-1]).astype(int) if on_array else array_coordinates(xy.to_numpy(), positions)
    table = (xy * PITCH_UM if square_um else xy).assign(in_tissue=1, array_row=array[:, 0], array_col=array[:, 1])
    beside = [f"{stem}{suffix}" for suffix in IMAGE_SUFFIXES] if stem else []
    return assemble(
        counts,
        check_positions(table, positions),
        name=name,
        format="pairs",
        counts_path=path,
        positions_path=positions,
        labels=labels,
        images=Images(image or (None if square_um else first_existing(path.parent, *beside))),
        square_um=square_um,
    )


def _coordinates_of(path: Path, stem: str) -> Path | None:
    """The one table beside the counts that is called as they are but for a word for coordinates."""
    found = []
    for other in sorted(path.parent.iterdir()):
        match = _TABLE.fullmatch(other.name)
        if match and other != path and _COORDINATES.search(match[1]) and _COORDINATES.sub("", match[1]) == stem:
            found.append(other)
    if len(found) > 1:
        raise InputError(f"{path}: coordinates may be {' or '.join(f.name for f in found)}: name one with --positions")
    return found[0] if found else None


def _read_coordinates(path: Path) -> tuple[pd.Index | None, np.ndarray]:
    """Names of the spots, None if there are none, and (N, 2) x and y.

    Raises:
      InputError: unreadable, or its header does not say which columns are x and y.
    """
    names = None
    with reading(path, "a table of coordinates"):
        table = pd.read_csv(path, sep=None, engine="python", header=None, dtype=str)
        numbers = table.apply(to_numbers)
        # pandas numbers the columns of an array: ",0,1"
        counted = pd.isna(table.iloc[0, 0]) and [*table.iloc[0, 1:]] == [str(i) for i in range(table.shape[1] - 1)]
        if numbers.iloc[0].isna().all() or numbers.iloc[0, 1:].isna().all() or counted:  # a header
            names = [str(name) for name in table.iloc[0].fillna("")]
            table, numbers = table.iloc[1:], numbers.iloc[1:]
    of_numbers = np.flatnonzero(numbers.notna().any())
    columns = _named_x_and_y(names) if names else None
    if columns is None:
        columns = of_numbers[of_numbers > 0] if len(of_numbers) > 2 else of_numbers  # the first names the spots
        columns = columns if names else columns[-2:]
    if len(columns) != 2 or not np.isin(columns, of_numbers).all():
        raise InputError(f"{path}: which columns are x and y? Name them so: coordinates of the spots are needed")
    named = table.shape[1] > 2 and 0 not in columns
    return pd.Index(table.iloc[:, 0].astype(str)) if named else None, numbers.iloc[:, columns].to_numpy(np.float64)


_X_AND_Y = (  # what columns are called, the surest names first
    ("x", "y"),
    (r"pxl_col_in_fullres|imagecol", r"pxl_row_in_fullres|imagerow"),
    (r"x_?(coord(inate)?s?|position)", r"y_?(coord(inate)?s?|position)"),
    (r"(.+[_. ])?x([_. ].+)?", r"(.+[_. ])?y([_. ].+)?"),  # x_um, coord_x, x_centroid
    (r"(array_?)?col(umn)?", r"(array_?)?row"),
)


def _named_x_and_y(names: list[str]) -> list[int] | None:
    """Which columns are x and y by their names; None where none are, or several may be."""
    for forms in _X_AND_Y:
        found = [[i for i, name in enumerate(names) if re.fullmatch(form, name, re.IGNORECASE)] for form in forms]
        if all(found):
            return [of_axis[0] for of_axis in found] if max(map(len, found)) == 1 else None
    return None


def _spots_by_genes(counts: AnnData, names: pd.Index | None, n: int, path: Path, positions: Path) -> AnnData:
    """The table as spots × genes: spots are the side that the coordinates name, or that has as many."""
    if names is not None:
        here, turned = counts.obs_names.isin(names).sum(), counts.var_names.isin(names).sum()
    else:
        here, turned = counts.n_obs == n, counts.n_vars == n
    if not here and not turned:
        what = "names none" if names is not None else f"has {n}"
        raise InputError(f"{path}: {counts.n_obs} x {counts.n_vars} counts, but {positions} {what} of these spots")
    if turned > here:
        logging.info("%s: genes × spots: turned", path)
        return counts.T
    return counts
