"""Counts, positions, labels and images into the AnnData that ``read_section`` promises."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from absl import logging
from anndata import AnnData
from scipy import sparse

from spabit_jax.errors import InputError
from spabit_jax.neighbours import spot_pitch
from spabit_jax.readers.image import open_image
from spabit_jax.readers.lattice import measure
from spabit_jax.readers.tables import read_labels, without_suffix

THUMBNAIL_PX = 2000
EXACT = 2**24  # up to which float32 has every whole number
MOST = 2**40  # counts of one gene in one spot
LOST = 0.1  # of spots and of counts, above which they are perhaps not of one section
LEAST_PITCH = 1e-6  # pixels
OFF_LATTICE = 0.01  # of the places of an array, taken twice, above which its spots lie on no lattice
NO_IMAGE = Path("none")  # --image=none: run without the one that would be found


class Images(NamedTuple):
    """The images of a section.

    Args:
      file: image of which windows are read.
      scale: its pixels per full-resolution pixel.
      previews: ``hires`` and ``lowres``, (h, w, 3) uint8; a missing ``hires`` is made from a full-resolution ``file``.
      scalefactors: ``tissue_<preview>_scalef`` of each of these, and ``spot_diameter_fullres`` where known.
    """

    file: Path | None = None
    scale: float = 1.0
    previews: dict[str, np.ndarray] = {}
    scalefactors: dict[str, float] = {}


def assemble(
    counts: AnnData,
    positions: pd.DataFrame,
    *,
    name: str,
    format: str,
    counts_path: Path,
    positions_path: Path,
    labels: Path | pd.Series | None,
    images: Images,
    square_um: float | None = None,
    um_per_px: float | None = None,
    measured: bool = True,
) -> AnnData:
    """Puts a section together.

    Args:
      counts: X (M, G) raw counts; barcodes, gene names and var.
      positions: as ``tables.read_positions_10x`` returns it.
      name, format: for uns.
      counts_path, positions_path: for error messages.
      labels: file, or labels indexed by barcode.
      square_um: pitch of a square lattice in µm.
      um_per_px: µm per full-resolution pixel where a file says so; else from the lattice.
      measured: whether there must be counts.

    Returns:
      AnnData as ``spabit_jax.readers.read_section`` describes it.

    Raises:
      InputError: counts that are not raw, repeated barcodes, no barcode in common, an image that cannot be read.
    """
    check_raw(counts.X, counts_path)
    make_names_unique(counts, counts_path)
    names = counts.obs_names
    spots = positions[positions["in_tissue"] == 1]
    row = names.get_indexer(spots.index)
    if (row < 0).all():
        row = without_suffix(names).get_indexer(without_suffix(spots.index))
    n_lost = int((row < 0).sum())
    n_both, n_unplaced = len(spots) - n_lost, len(names) - len(spots) + n_lost
    if n_both <= min(n_lost, n_unplaced):  # what two sections share by chance, or nothing
        raise InputError(
            f"{counts_path} ({names[0] if len(names) else 'no spot'}, …) and {positions_path} ({spots.index[0]}, …) "
            f"share {f'only {n_both} of {len(spots)} spots' if n_both else 'no spot'} in tissue: give the positions of "
            "these counts (--positions)"
        )
    if n_lost or n_unplaced:
        doubtful = min(n_lost / len(spots), n_unplaced / len(names)) > LOST  # one or the other may lack some
        logging.log(
            logging.WARNING if doubtful else logging.INFO,
            "%s: dropped %d spots in tissue without counts, and counts of %d spots that have no position in tissue%s",
            name, n_lost, n_unplaced, ": are these the positions of these counts?" if doubtful else "",
        )  # fmt: skip
    spots = spots.set_axis(np.where(row >= 0, names[row], spots.index))  # as the counts have them
    label = read_labels(labels, spots.index) if isinstance(labels, Path) else labels
    spots, row = spots[row >= 0], row[row >= 0]

    xy = spots[["x", "y"]].to_numpy()
    array = positions[["array_row", "array_col"]].to_numpy()
    lattice, pitch_px, measured_um_per_px = measure(array, positions[["x", "y"]].to_numpy(), square_um)
    obs = spots[["array_row", "array_col", "in_tissue"]].rename_axis(None)
    if label is not None:
        obs["label"] = label.reindex(obs.index).astype("category").cat.remove_unused_categories()
    adata = AnnData(sparse.csr_matrix(counts.X, dtype=np.float32)[row], obs=obs, var=counts.var.copy())
    if measured and not adata.X.sum() > 0:
        raise InputError(f"{counts_path}: all counts of the spots in tissue are 0: is it the right file?")
    adata.obsm["spatial"] = xy
    if len(xy) > 1 and not spot_pitch(xy) > LEAST_PITCH:
        raise InputError(
            f"{positions_path}: most spots share their position or lie closer than {LEAST_PITCH:g}: give their centres "
            "in pixels"
        )

    images = images._replace(file=None, previews={}) if images.file == NO_IMAGE else images
    previews, scalefactors = dict(images.previews), dict(images.scalefactors)
    section = {"name": name, "format": format, "array_min": array.min(0), "array_max": array.max(0), "lattice": lattice}
    section["positions_path"] = str(positions_path)
    metadata = {}
    um_per_px = um_per_px or measured_um_per_px
    if um_per_px is not None:
        section["um_per_px"] = float(um_per_px)
    if images.file is not None:
        slide = open_image(images.file)
        section["image_path"] = metadata["source_image_path"] = str(images.file.resolve())
        section["image_scale"] = float(images.scale)
        if images.scale == 1.0 and "hires" not in previews:
            previews["hires"], scalefactors["tissue_hires_scalef"] = slide.thumbnail(THUMBNAIL_PX)
    if "spot_diameter_fullres" not in scalefactors:
        # Visium: spots of 55 µm every 100 µm; legacy ST: 100 µm every 200 µm; cells and beads: as far apart as wide
        off_lattice = pd.DataFrame(array).duplicated().mean() > OFF_LATTICE
        diameter = spot_pitch(xy) if off_lattice else pitch_px / 2
        scalefactors["spot_diameter_fullres"] = float(diameter) if diameter > 0 else 1.0
    section["spot_px"] = float(scalefactors["spot_diameter_fullres"])
    if previews:  # scanpy and squidpy take an entry without an image for a mistake
        adata.uns["spatial"] = {name: {"images": previews, "scalefactors": scalefactors, "metadata": metadata}}
    adata.uns["spabit"] = section
    return adata


def make_names_unique(counts: AnnData, path: Path) -> None:
    """Makes the names of genes unique, in place; raises InputError where two spots share a barcode."""
    counts.var_names_make_unique()
    names = counts.obs_names
    if not names.is_unique:
        raise InputError(f"{path}: barcode {names[names.duplicated()][0]} occurs twice: remove one of them")


def check_raw(x, path: Path) -> None:
    """Raises InputError unless all values of ``x`` (sparse or dense) are whole numbers, none negative or beyond reason.

    Counts that float32 rounds are said.
    """
    values = x.data if sparse.issparse(x) else np.asarray(x)
    if not is_raw(values):
        raise InputError(
            f"{path}: counts are negative, missing, not whole numbers or above {MOST:g}: raw counts are needed"
        )
    if (most := values.max(initial=0)) >= EXACT:
        logging.warning("%s: counts from %d on, as %d, lose their last digits: are they raw?", path, EXACT, most)


def is_raw(values: np.ndarray) -> bool:
    if values.dtype.kind not in "biuf":
        return False
    whole = np.isfinite(values).all() and (values == np.rint(values)).all()
    return bool(whole and (values >= 0).all() and (values <= MOST).all())
