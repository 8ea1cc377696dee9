"""Legacy Spatial Transcriptomics: a table of counts with its positions and image beside it.

``NAME.tsv[.gz]`` (spots × genes, spots named ``10x13``) with ``NAME_selection.tsv`` (her2st) or
``alignment_table_NAME.tsv`` (STUtility), ``NAME.jpg|png|tif`` and ``NAME_labeled_coordinates.tsv``.
"""

from __future__ import annotations

import glob
from pathlib import Path

import pandas as pd
from anndata import AnnData

from spabit_jax.errors import InputError
from spabit_jax.readers.assemble import Images, assemble
from spabit_jax.readers.tables import check_positions, read_counts, reading
from spabit_jax.readers.visium import IMAGE_SUFFIXES, first_existing

LOOKS_FOR = "a counts file NAME.tsv[.gz] beside NAME_selection.tsv or alignment_table_NAME.tsv"
PITCH_UM = 200.0  # arrays of 1,000 spots


def matches(path: Path) -> bool:
    return path.is_file() and path.name.endswith((".tsv", ".tsv.gz"))


def read(path: Path, name: str, image: Path | None, positions: Path | None, labels: Path | None) -> AnnData:
    """Reads a legacy ST section; see ``spabit_jax.readers.read_section``. array_col is x, array_row is y."""
    if path.is_dir():
        raise InputError(f"{path}: a folder: give {LOOKS_FOR}")
    folder, stem = path.parent, glob.escape(path.name.removesuffix(".gz").removesuffix(".tsv"))
    positions = positions or first_existing(folder, f"{stem}_selection.tsv", f"alignment_table_{stem}.tsv")
    if positions is None:
        raise InputError(
            f"{path}: no positions beside it ({stem}_selection.tsv or alignment_table_{stem}.tsv): give --positions"
        )
    return assemble(
        read_counts(path),
        _read_positions(positions),
        name=name,
        format="st",
        counts_path=path,
        positions_path=positions,
        labels=labels or first_existing(folder, f"{stem}_labeled_coordinates.tsv"),
        images=Images(image or first_existing(folder, *(stem + suffix for suffix in IMAGE_SUFFIXES))),
        square_um=PITCH_UM,
    )


def _read_positions(path: Path) -> pd.DataFrame:
    with reading(path, "a table of spots"):
        table = pd.read_csv(path, sep="\t")
    missing = [column for column in ("x", "y", "pixel_x", "pixel_y") if column not in table]
    if missing:
        raise InputError(f"{path}: no column {', '.join(missing)}: x, y, pixel_x, pixel_y (and selected) are needed")
    if "selected" in table:
        table = table[table["selected"] == 1]
    frame = pd.DataFrame(
        {"in_tissue": 1, "array_row": table["y"], "array_col": table["x"], "x": table["pixel_x"], "y": table["pixel_y"]}
    )
    frame.index = table["x"].astype(str) + "x" + table["y"].astype(str)
    return check_positions(frame, path)
