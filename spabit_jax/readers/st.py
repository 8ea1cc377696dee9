"""Legacy Spatial Transcriptomics: a table of counts with its positions and image beside it.

``NAME.tsv[.gz]`` (spots × genes or turned, spots named ``10x13``) with one of

- ``NAME_selection.tsv``, ``NAME.jpg`` and ``NAME_labeled_coordinates.tsv``, or each in its folder of her2st's
  repository (``ST-cnts``, ``ST-spotfiles``, ``ST-imgs/C/C2``, ``ST-pat/lbl``) or archive (``count-matrices``, …);
- ``alignment_table_NAME.tsv`` (STUtility);
- ``GSM1_NAME_stdata.tsv``, ``GSM1_spot_data-selection-NAME.tsv`` and ``GSM1_NAME.jpg`` (GSE144240);
- nothing, if the spots' names are their coordinates.

All but images of another kind may be gzipped; tables may be .csv or .txt.
"""

from __future__ import annotations

import glob
import re
from pathlib import Path

import numpy as np
import pandas as pd
from absl import logging
from anndata import AnnData

from spabit_jax.errors import InputError
from spabit_jax.readers.assemble import NO_IMAGE, Images, assemble
from spabit_jax.readers.image import IMAGE_SUFFIXES
from spabit_jax.readers.kept import unpacked
from spabit_jax.readers.tables import check_positions, read_counts, read_csv, reading, to_numbers
from spabit_jax.readers.visium import first_existing

LOOKS_FOR = "a counts file NAME.tsv[.gz] beside NAME_selection.tsv or alignment_table_NAME.tsv"
PITCH_UM = 200.0  # arrays of 1,000 spots
_TABLES = (".tsv", ".csv", ".txt")
_PLACE = re.compile(r"X?(\d+(?:\.\d+)?)[x_](\d+(?:\.\d+)?)")  # R puts an X before what begins with a digit


def matches(path: Path) -> bool:
    name = path.name.removesuffix(".gz")
    if not (path.is_file() and name.endswith(_TABLES)):
        return False
    return name.endswith(".tsv") or _find(path.parent, _positions_of(glob.escape(_stem(path)))) is not None


def _stem(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).stem.removesuffix("_stdata")


def read(path: Path, name: str, image: Path | None, positions: Path | None, labels: Path | None) -> AnnData:
    """Reads a legacy ST section; see ``spabit_jax.readers.read_section``. array_col is x, array_row is y.

    Without positions, spots lie at the coordinates in their names, 1 pixel being 1 µm; there is no image then.
    """
    if path.is_dir():
        raise InputError(f"{path}: a folder: give {LOOKS_FOR}")
    stem = _stem(path)
    positions = positions or _find(path.parent, _positions_of(glob.escape(stem)))
    image = image or _find(path.parent, _images_of(glob.escape(stem)))
    counts = spots_by_genes(read_counts(path), path)
    if positions is None:
        if image not in (None, NO_IMAGE) or places_in(counts.obs_names) is None:
            raise InputError(
                f"{path}: no positions beside it ({stem}_selection.tsv or alignment_table_{stem}.tsv): give --positions"
            )
        logging.warning("%s: no positions beside it: spots lie where their names say (%s)", path, counts.obs_names[0])
    return assemble(
        counts,
        _of_names(counts.obs_names, path) if positions is None else _read_positions(positions, counts.obs_names),
        name=name,
        format="st",
        counts_path=path,
        positions_path=positions or path,
        labels=labels or _find(path.parent, _labels_of(glob.escape(stem))),
        images=Images(image if image in (None, NO_IMAGE) else unpacked(image)),
        square_um=PITCH_UM,
    )


def _find(folder: Path, patterns: list[str]) -> Path | None:
    return first_existing(folder, *(f"{pattern}{end}" for pattern in patterns for end in ("", ".gz")))


def _positions_of(stem: str) -> list[str]:
    cuts = [match.start() for match in re.finditer("_", stem)]  # GSM1_P2_ST_rep1: GSM1_spot_data-selection-P2_ST_rep1
    ahead = [f"{stem[:cut]}_spot_data-selection-{stem[cut + 1 :]}" for cut in cuts]
    named = [f"{stem}_selection", f"alignment_table_{stem}", f"{stem}_spot_data-selection"]
    whole = [f"spot_data-selection-{stem}", *ahead, f"spot_data-all-{stem}"]
    folders = [f"../{folder}/{stem}_selection" for folder in ("ST-spotfiles", "spot-selections", "spot-selection")]
    return [f"{name}{suffix}" for name in (*named, *whole, *folders) for suffix in _TABLES]


def _images_of(stem: str) -> list[str]:
    folders = ("", f"../ST-imgs/*/{stem}/", "../images/HE/")
    names = (stem, "*", stem)
    return [f"{folder}{name}{suffix}" for folder, name in zip(folders, names, strict=True) for suffix in IMAGE_SUFFIXES]


def _labels_of(stem: str) -> list[str]:
    return [f"{folder}{stem}_labeled_coordinates.tsv" for folder in ("", "../ST-pat/lbl/", "../meta/")]


def places_in(names: pd.Index) -> np.ndarray | None:
    """(N, 2) coordinates (x, y) that names such as ``10x13`` and ``16.92x9.015`` say, None if they say none."""
    found = [_PLACE.fullmatch(str(name)) for name in names]
    return np.array([match.groups() for match in found], np.float64) if found and all(found) else None


def spots_by_genes(counts: AnnData, path: Path) -> AnnData:
    """The table as spots × genes: turned, if its columns are named by coordinates and its rows are not."""
    if places_in(counts.obs_names) is None and places_in(counts.var_names) is not None:
        logging.info("%s: genes × spots: turned", path)
        return counts.T
    return counts


def _of_names(names: pd.Index, path: Path) -> pd.DataFrame:
    xy = places_in(names)
    array = np.rint(xy[:, ::-1]).astype(int)
    table = pd.DataFrame(PITCH_UM * xy, index=names, columns=["x", "y"])
    return check_positions(table.assign(in_tissue=1, array_row=array[:, 0], array_col=array[:, 1]), path)


def _read_positions(path: Path, names: pd.Index) -> pd.DataFrame:
    """Positions of the spots called ``names``: by their places on the array, or by the adjusted ones (new_x, new_y).

    However names write these: ``10x13``, ``10_13``, ``X10x13`` or ``10.0x13.0``.
    """
    with reading(path, "a table of spots"):
        table = read_csv(path, sep=None, engine="python")
    missing = [column for column in ("x", "y", "pixel_x", "pixel_y") if column not in table]
    if missing:
        raise InputError(f"{path}: no column {', '.join(missing)}: x, y, pixel_x, pixel_y (and selected) are needed")
    if "selected" in table:
        table = table[table["selected"] == 1]
    frame = pd.DataFrame(
        {"in_tissue": 1, "array_row": table["y"], "array_col": table["x"], "x": table["pixel_x"], "y": table["pixel_y"]}
    )
    namings = [pd.Index(table["x"].astype(str) + "x" + table["y"].astype(str))]
    for columns in (["x", "y"], ["new_x", "new_y"]):
        if set(columns) <= set(table):
            xy = table[columns].apply(to_numbers).to_numpy(np.float64)
            namings.append(_named_alike(xy, namings[0], names))
    frame.index = max(namings, key=lambda naming: naming.isin(names).sum())  # rounded, a few agree by chance
    return check_positions(frame, path)


def _named_alike(xy: np.ndarray, own: pd.Index, names: pd.Index) -> pd.Index:
    """The names that say these coordinates, to two digits; a place that none says keeps its own name."""
    places = places_in(names)
    name_at = {} if places is None else {tuple(place): name for place, name in zip(places.round(2), names, strict=True)}
    return pd.Index([name_at.get(tuple(place), name) for place, name in zip(xy.round(2), own, strict=True)])
