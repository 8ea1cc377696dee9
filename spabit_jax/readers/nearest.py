"""The section around a file or folder that is a part of one, and what an unknown folder lacks."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from spabit_jax.readers.image import IMAGE_SUFFIXES

_MATRIX = re.compile(
    r"(|.*[_.-])(((filtered|raw)_feature_(bc|cell)_matrix|cell_feature_matrix)(\.h5(\.gz)?)?|matrix\.mtx(\.gz)?)"
)
_ARCHIVE = re.compile(r".*\.(tar|zip|tgz|tar\.gz|rar|7z)")
_COUNTS = "filtered_feature_bc_matrix.h5, or matrix.mtx, features.tsv and barcodes.tsv"
# What is in a folder, the layout that is nearest then, and what that lacks.
_NEAREST = (
    ("*selection*.tsv* alignment_table_*.tsv*", "legacy ST", "its counts: give the file NAME.tsv[.gz] as --section"),
    ("*coor*.csv* *locations*.csv* *coor*.txt*", "a pair of tables", "its counts: give their file as --section"),
    ("*cells.parquet *cells.csv *cells.csv.gz", "Xenium", "cell_feature_matrix.h5"),
    ("*_segmentations.geojson", "segmented Visium HD", "filtered_feature_cell_matrix.h5"),
    ("binned_outputs square_*um feature_slice.h5", "Visium HD", "binned_outputs/square_008um/ with its .h5"),
    ("*tissue_positions* spatial/*tissue_positions* spatial outs/spatial", "Visium", _COUNTS),
    ("zarr.json .zgroup .zattrs", "SpatialData", "tables/"),
)


def around(path: Path) -> tuple[Path, str]:
    """The folder of a section of which ``path`` is the matrix, ``spatial/`` or a file in it, and the sample's prefix.

    Any other path is returned as it is.
    """
    match = _MATRIX.fullmatch(path.name)
    if match and (path.is_file() or not (path / "spatial").is_dir()):
        folder, prefix = path.parent, match[1].rstrip("_.-")
        inner = _MATRIX.fullmatch(folder.name)
        return (folder.parent, prefix or inner[1].rstrip("_.-")) if inner else (folder, prefix)
    spatial = path.parent if path.is_file() else path
    if spatial.name == "spatial" and spatial.is_dir() and not any(spatial.glob("*matrix*")):
        return spatial.resolve().parent, ""
    return path, ""


def nearest(path: Path, is_section: Callable[[Path], bool]) -> str:
    """In less than 200 letters, what to give instead of a path that is no section, or what it lacks."""
    if path.is_file():
        if _ARCHIVE.fullmatch(path.name):
            return "an archive: unpack it and give its folder"
        if path.name.endswith(".h5ad.gz"):
            return f"gzipped: unpack it (gunzip {path.name})"
        return "not a section in a known format: give a folder, a .h5ad, or a table NAME.tsv or .csv (docs/INPUTS.md)"
    inner = [child for child in sorted(path.iterdir()) if child.name.endswith(".h5ad") or child.is_dir()]
    sections = [child.name for child in inner if child.name.endswith(".h5ad") or is_section(child)]
    tables = sorted(child.name for child in path.glob("*.[ct]sv*") if _beside_table(child) and is_section(child))
    if sections or tables:
        found = (sections or tables)[:3] + ["…"] * (len(sections or tables) > 3)
        return f"no section itself: give one of those in it, {', '.join(name[:40] for name in found)}"
    for patterns, layout, lacks in _NEAREST:
        found = next((file for pattern in patterns.split() for file in sorted(path.glob(pattern))), None)
        if found is not None:
            return f"nearest is {layout} ({str(found.relative_to(path))[:40]}), which lacks {lacks}"
    if (archive := archive_in(path)) is not None:
        return f"no section, but an archive: unpack {archive[:60]} and give the folder again"
    image = next((child.name for child in sorted(path.iterdir()) if child.suffix.lower() in IMAGE_SUFFIXES), None)
    if image is not None:
        return f"no counts, but an image: to predict from it alone, give {image[:40]} as --section (docs/INPUTS.md)"
    return f"no section: nearest is Visium, which lacks {_COUNTS} (other layouts: docs/INPUTS.md)"


def archive_in(folder: Path, prefix: str = "") -> str | None:
    """The name of the first archive in a folder, of those that begin as a sample is called."""
    names = (child.name for child in sorted(folder.iterdir()) if child.name.startswith(prefix))
    return next((name for name in names if _ARCHIVE.fullmatch(name)), None)


def _beside_table(path: Path) -> bool:
    """Whether a table is one of legacy ST, which are given by file."""
    others = r"selection|alignment|labeled|features|genes|barcodes|coor|locations|positions|keypoints|cells\."
    return not re.search(others, path.name)
