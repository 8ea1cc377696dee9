"""Visium HD folders: square bins of 2, 8 or 16 µm, each size a folder ``binned_outputs/square_0XXum/``."""

from __future__ import annotations

import re
from pathlib import Path

from anndata import AnnData

from spabit_jax.errors import InputError
from spabit_jax.readers import visium

LOOKS_FOR = "a folder (or its outs/) with binned_outputs/square_XXXum/, or such a square_XXXum/"
OPTIONS = ("bin_um",)
DEFAULT_BIN_UM = 8
_SQUARE = re.compile(r"square_(\d+)um")


def matches(path: Path) -> bool:
    return bool(_bins(path)) or (
        _SQUARE.fullmatch(path.resolve().name) is not None and visium.find_counts(path) is not None
    )


def read(
    path: Path, name: str, image: Path | None, positions: Path | None, labels: Path | None, bin_um: int | None = None
) -> AnnData:
    """Reads the bins of one size; see ``spabit_jax.readers.read_section``. The bins of a ``square_XXXum`` are its own.

    The image in full resolution, which Space Ranger does not copy, is looked for in the bins' folder, then beside
    ``binned_outputs/`` (``image.*``, ``*_tissue_image.*``, …).
    """
    folder = _bin_folder(path, bin_um)
    if visium.find_counts(folder) is None:
        raise InputError(f"{folder}: no counts: looked for filtered_feature_bc_matrix.h5 or filtered_feature_bc_matrix")
    return visium.read_folder(folder, "visium_hd", name, image, positions, labels)


def _bins(path: Path) -> dict[int, Path]:
    """The folders of bins by their size in µm, smallest first."""
    folders = {}
    for folder in (visium.root(path) / "binned_outputs", path):
        for square in folder.glob("square_*um"):
            if match := _SQUARE.fullmatch(square.name):
                folders.setdefault(int(match[1]), square)
    return dict(sorted(folders.items()))


def _bin_folder(path: Path, bin_um: int | None) -> Path:
    if match := _SQUARE.fullmatch(path.resolve().name):
        if bin_um not in (None, int(match[1])):
            raise InputError(f"{path}: holds bins of {int(match[1])} µm, not --bin_um={bin_um}: leave that out")
        return path.resolve()
    folders = _bins(path)
    if not folders:
        raise InputError(f"{path}: no bins: looked for {LOOKS_FOR}")
    size = bin_um or (DEFAULT_BIN_UM if len(folders) > 1 else next(iter(folders)))
    if size not in folders:
        raise InputError(f"{path}: no bins of {size} µm: give --bin_um={'|'.join(map(str, folders))}")
    return folders[size]
