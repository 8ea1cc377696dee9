"""The layout of the reference's ``dataset/<section>/`` and ``dataset/DLPFC/<section>/``.

Counts are ``counts.csv`` (spots × genes), ``filtered_count_matrix/`` or a 10x .h5 file; the rest is as in a Visium
folder, with ``tissue_positions_list.csv`` perhaps at the top, ``label.txt`` or ``<section>_truth.txt``, and the image
as ``image.*``, ``spatial/<section>_full_image.tif`` or ``spatial/image.*``.
"""

from __future__ import annotations

from pathlib import Path

from anndata import AnnData

from spabit_jax.errors import InputError
from spabit_jax.readers import visium

LOOKS_FOR = (
    "a folder with counts.csv, filtered_count_matrix/ or filtered_feature_bc_matrix.h5, and "
    "tissue_positions_list.csv there or in spatial/"
)
_MARKS = ("counts.csv", "filtered_count_matrix", "label.txt", "*_truth.txt", "spatial/*_full_image.tif", "processed")


def matches(path: Path) -> bool:
    return visium.first_existing(path, *_MARKS) is not None and _find_counts(path) is not None


def _find_counts(path: Path) -> Path | None:
    return visium.first_existing(path, "counts.csv", "filtered_count_matrix") or visium.find_counts(path)


def read(path: Path, name: str, image: Path | None, positions: Path | None, labels: Path | None) -> AnnData:
    """Reads a section of the reference; see ``spabit_jax.readers.read_section``."""
    counts = _find_counts(path)
    if counts is None:
        raise InputError(f"{path}: no counts: looked for {LOOKS_FOR}")
    return visium.read_folder(path, "reference", name, image, positions, labels, counts)
