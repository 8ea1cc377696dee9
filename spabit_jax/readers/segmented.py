"""Segmented Visium HD (Space Ranger 4 and later): counts of cells, whose outlines are in a GeoJSON file."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from anndata import AnnData

from spabit_jax.errors import InputError
from spabit_jax.geojson import centroid
from spabit_jax.neighbours import spot_pitch
from spabit_jax.readers import visium
from spabit_jax.readers.assemble import assemble
from spabit_jax.readers.kept import unpacked
from spabit_jax.readers.lattice import cell_squares
from spabit_jax.readers.samples import by_prefix, one_sample
from spabit_jax.readers.tables import check_positions, read_positions_10x, reading

LOOKS_FOR = "a folder segmented_outputs/ with filtered_feature_cell_matrix.h5 and cell_segmentations.geojson"
ENDINGS = visium.ENDINGS | {
    "counts": (
        r"filtered_feature_cell_matrix\.h5",
        r"filtered_feature_cell_matrix",
        r"raw_feature_cell_matrix\.h5",
        r"raw_feature_cell_matrix",
    ),
    "outlines": (
        r"(?<!annotated_)cell_segmentations\.geojson",
        r"graphclust_annotated_cell_segmentations\.geojson",
        r"nucleus_segmentations\.geojson",
    ),
}


def matches(path: Path) -> bool:
    return any("counts" in files for files in _samples(_folder(path)).values())


def _folder(path: Path) -> Path:
    inner = visium.root(path) / "segmented_outputs"
    return inner if inner.is_dir() else path


def _samples(folder: Path):
    return by_prefix([folder / "spatial", folder], ENDINGS)


def read(path: Path, name: str, image: Path | None, positions: Path | None, labels: Path | None) -> AnnData:
    """Reads cells, placed at the centroids of their outlines; see ``spabit_jax.readers.read_section``.

    Array coordinates are those of squares of the median distance between neighbouring cells. The image is looked for in
    the folder and beside it, as that of bins is.
    """
    folder = _folder(path)
    samples = _samples(folder)
    prefix, files = one_sample(samples, name, folder, whole=("counts", "outlines"))
    outlines = positions or files.get("outlines")
    if "counts" not in files or outlines is None:
        raise InputError(f"{folder}: cells of segmented Visium HD, but not both: looked for {LOOKS_FOR}")
    if positions is None:
        cells = _centroids(outlines)
        cells[["array_row", "array_col"]] = cell_squares(cells.to_numpy(), outlines)
        cells = check_positions(cells.assign(in_tissue=1), outlines)
    else:
        cells = read_positions_10x(positions)
    alone = sum("counts" in sample for sample in samples.values()) < 2
    found = visium.full_image(folder, prefix, alone)
    if found is None and folder.name == "segmented_outputs":
        found = visium.full_image(folder.parent)
    images = visium.read_images(files, image or found, given=image)
    if len(cells) > 1:
        images.scalefactors.setdefault("spot_diameter_fullres", spot_pitch(cells[["x", "y"]].to_numpy()))
    return assemble(
        visium.read_10x(files["counts"]),
        cells,
        name=name,
        format="segmented",
        counts_path=files["counts"],
        positions_path=outlines,
        labels=labels,
        images=images,
        um_per_px=images.scalefactors.get("microns_per_pixel"),
    )


def _centroids(path: Path) -> pd.DataFrame:
    """x and y of the cells' centroids, (N, 2) in full-resolution pixels, indexed as ``cellid_000000001-1``."""
    with reading(path, "a GeoJSON file of cells"):
        features = json.loads(unpacked(path).read_text())["features"]
        names = [_cell_name(feature["properties"]["cell_id"]) for feature in features]
        xy = [centroid(feature["geometry"]) for feature in features]
    if not features:
        raise InputError(f"{path}: no cells")
    return pd.DataFrame(xy, index=names, columns=["x", "y"])


def _cell_name(cell_id: int | str) -> str:
    return cell_id if str(cell_id).startswith("cellid_") else f"cellid_{int(cell_id):09}-1"
