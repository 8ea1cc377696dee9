"""Sections on disk, whatever their layout, as AnnData.

One module per layout. Each has ``LOOKS_FOR`` (what it needs, for error messages), ``matches(path)`` and
``read(path, name, image, positions, labels)``; a layout with settings of its own names them in ``OPTIONS``, and its
``read`` takes them too. A new layout is a module and a line in ``FORMATS``.
Imports neither jax nor torch.
"""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path

from anndata import AnnData

from spabit_jax.config import LONGEST_NAME, is_path_component
from spabit_jax.errors import InputError
from spabit_jax.readers import h5ad, pairs, picture, reference, segmented, spatialdata, st, visium, visium_hd, xenium
from spabit_jax.readers.assemble import NO_IMAGE
from spabit_jax.readers.nearest import around, nearest
from spabit_jax.readers.orientation import check_image, place_image

# The first that matches is taken: a reference folder may also hold all that a Visium folder does.
FORMATS = {
    "h5ad": h5ad,
    "st": st,
    "pairs": pairs,
    "spatialdata": spatialdata,
    "visium_hd": visium_hd,
    "segmented": segmented,
    "xenium": xenium,
    "reference": reference,
    "visium": visium,
    "picture": picture,
}

_NOT_A_NAME = re.compile(r"outs|binned_outputs|segmented_outputs|square_\d+um")


def read_section(
    path: str | os.PathLike,
    format: str = "auto",
    image: str | os.PathLike | None = None,
    positions: str | os.PathLike | None = None,
    labels: str | os.PathLike | None = None,
    name: str | None = None,
    bin_um: int | None = None,
    spot_um: float | None = None,
    alignment: str | os.PathLike | None = None,
    swap_xy: bool = False,
    turn: str | int | None = None,
    image_scale: float | None = None,
    um_per_px: float | None = None,
) -> AnnData:
    """Reads one section.

    Args:
      path: a folder (SpatialData: NAME.zarr), or its counts' .h5; for legacy ST the counts file ``NAME.tsv[.gz]``; a
        .h5ad file; an image of which nothing else is known; or an AnnData in memory, with what a .h5ad file holds.
      format: a key of ``FORMATS``, or ``auto`` to find out.
      image: image file instead of the one that is found, or ``none`` for no image. It is taken to be in
        full-resolution pixels, unless its name has ``tissue_hires_image`` or ``tissue_lowres_image``, or it is as large
        as one of these, and the section has a scale factor for it.
      positions: positions file instead of the one that is found, in the layout's own form (10x for .h5ad).
      labels: file of barcode,label (header or not, comma or tab), or her2st's ``*_labeled_coordinates.tsv``, or one
        label per spot in tissue; instead of the one that is found.
      bin_um: Visium HD, also as SpatialData: size of the bins, default 8.
      spot_um: Xenium: width of the squares over which the counts of cells are summed; None leaves cells as they are.
        An image alone: diameter of a spot in the sections that are learned from, default 55.
      alignment: Xenium: file of the (3, 3) matrix from pixels of the H&E image to Xenium's, instead of the one found.
      swap_xy: exchange x and y of the spots, for a positions file that has them transposed.
      turn: how the image must be turned before the spots lie on it: ``90``, ``180`` or ``270`` degrees clockwise,
        ``mirror`` (left to right), or ``mirror+90`` and so on (mirrored, then turned).
      image_scale: image pixels per full-resolution pixel, where no file says it; 0.4 for an image 0.4 times as large.
      um_per_px: an image alone: µm of a pixel.
      name: of several samples in a folder the prefix, of several in an .h5ad the library; else any name. Default:
        the file's stem, or the folder's name, or its parent's if that is ``outs`` or ``square_XXXum``.

    Returns:
      AnnData of the N spots in tissue that have counts, in the order of the positions file:

      - ``X``: (N, G) CSR float32, raw counts; ``var_names`` unique, ``var["gene_ids"]`` where the file has them.
      - ``obsm["spatial"]``: (N, 2) float64, (x, y) of the spot centres in full-resolution pixels.
      - ``obs``: array_row, array_col, in_tissue (integers); label (categorical, NaN where unknown) if there are labels.
      - ``uns["spatial"][name]``: images (``hires``, ``lowres``: (h, w, 3) uint8), scalefactors and metadata, as scanpy
        and squidpy expect them, with a scale factor for each image that is there and for no other. No entry without
        an image (plot with ``img_key=None`` and a ``spot_size``, or with ``scanpy.pl.embedding``).
      - ``uns["spabit"]``: name; format; positions_path; array_min and array_max, [row, col] over all spots of the
        positions file, in tissue or not (legacy ST: over the selected ones); lattice (``hex`` or ``square``);
        image_path and image_scale (image pixels per full-resolution pixel) if there is an image, and turn if it is
        turned; um_per_px if it is known; spot_px, the diameter of a spot, the width of a bin or the distance between
        cells or beads in full-resolution pixels: as the files say, else half the pitch of the lattice.

    Raises:
      InputError: anything that is missing, unreadable or contradictory; the message names the file.

    The image that is used is compared with the spots (``orientation.check_image``): the flag that mends it is named.
    """
    files = (image, positions, labels, alignment)
    image, positions, labels, alignment = files = [None if file is None else Path(file) for file in files]
    for file in files:
        is_zarr = file is not None and file == image and file.exists()  # OME-Zarr is a folder
        if file not in (None, NO_IMAGE) and not (file.is_file() or is_zarr):
            raise InputError(f"{file}: no such file")
    options = {"bin_um": bin_um, "spot_um": spot_um, "alignment": alignment, "um_per_px": um_per_px}
    options = {option: value for option, value in options.items() if value is not None}
    if isinstance(path, AnnData):
        if format not in ("auto", "h5ad"):
            raise InputError(f"format={format!r} of an AnnData: leave it out")
        where, name, format = Path("the AnnData"), check_name("section" if name is None else name), "h5ad"
        read = partial(h5ad.from_anndata, path, where)
    else:
        where = Path(path)
        if not where.exists():
            raise InputError(f"{where}: no such file or folder")
        if format != "auto" and format not in FORMATS:
            raise InputError(f"unknown format {format!r}: known formats are auto, {', '.join(FORMATS)}")
        where, prefix = around(where)
        name = check_name((prefix or section_name(where)) if name is None else name)
        format = _find_out(where) if format == "auto" else format
        read = partial(FORMATS[format].read, where)
    for option in options:
        if option not in getattr(FORMATS[format], "OPTIONS", ()):
            raise InputError(f"{where}: --{option} is not for sections of the format {format}: leave it out")
    adata = read(name=name, image=image, positions=positions, labels=labels, **options)
    if swap_xy:
        adata.obsm["spatial"] = adata.obsm["spatial"][:, ::-1].copy()
    place_image(adata, turn, image_scale)
    check_image(adata, swap_xy)
    return adata


def check_name(name: str) -> str:
    """The name itself; InputError unless it is one component of a path, short enough for what is put behind it."""
    if not is_path_component(name):
        raise InputError(
            f"{name[:40]!r} cannot be the name of a section, which files are named by: no slash, at most "
            f"{LONGEST_NAME} bytes"
        )
    return name


def section_name(path: str | os.PathLike) -> str:
    """The file's stem, or the folder's name without .zarr, or its parent's if that is ``outs`` or ``square_XXXum``."""
    path = Path(path).resolve()
    if path.is_file():
        return Path(path.name.removesuffix(".gz")).stem.removesuffix("_stdata")
    while _NOT_A_NAME.fullmatch(path.name):
        path = path.parent
    return path.name.removesuffix(".zarr")


def _find_out(path: Path) -> str:
    for name, reader in FORMATS.items():
        if reader.matches(path):
            return name
    raise InputError(f"{path}: {nearest(path, lambda inner: any(r.matches(inner) for r in FORMATS.values()))}")
