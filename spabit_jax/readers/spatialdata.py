"""SpatialData folders (.zarr), as spatialdata-io writes them of Visium, Visium HD, Xenium and others.

Needs the package ``spatialdata``, of the extra of that name.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from spabit_jax.errors import InputError
from spabit_jax.neighbours import spot_pitch
from spabit_jax.readers.assemble import THUMBNAIL_PX, Images, assemble
from spabit_jax.readers.h5ad import raw_counts, spot_table, widen_array
from spabit_jax.readers.image import open_image
from spabit_jax.readers.lattice import cell_squares
from spabit_jax.readers.tables import positive, reading
from spabit_jax.readers.visium_hd import DEFAULT_BIN_UM

LOOKS_FOR = "a SpatialData folder NAME.zarr"
OPTIONS = ("bin_um",)
_XY = ("x", "y")
_ROOT_FILES = ("zarr.json", ".zgroup")


def matches(path: Path) -> bool:
    return path.is_dir() and (path / "tables").is_dir() and any((path / file).exists() for file in _ROOT_FILES)


def read(
    path: Path, name: str, image: Path | None, positions: Path | None, labels: Path | None, bin_um: int | None = None
) -> AnnData:
    """Reads the one table of a SpatialData folder; see ``spabit_jax.readers.read_section``.

    Spots are the centroids of the shapes (or labels) that the table annotates. Full-resolution pixels are those of the
    largest image with three or four channels that shares a coordinate system with them, unless it is that coordinate
    system in small (a preview). Then, without one, or with ``image``, they are those of the coordinate system:
    ``global``, or the first. A table without array coordinates is one of cells.

    Args:
      positions: must be None.
      bin_um: of the tables ``square_XXXum`` of Visium HD, the one to read; default 8.
    """
    try:
        import spatialdata as sd
        from spatialdata.transformations import get_transformation
    except ImportError as error:
        raise InputError(f"{path}: to read it, install SpatialData: pip install spatialdata ({error})") from error
    if positions is not None:
        raise InputError(f"{path}: holds its own positions: leave --positions out")
    with reading(path, "SpatialData"):
        data = sd.read_zarr(path)
    table, size_um = _table(data, path, bin_um)
    region, instances = _annotated(data, table, path)
    scale = 1.0
    with reading(path, "SpatialData"):
        systems = list(get_transformation(data[region], get_all=True))
        image_key = None if image is not None else _largest_image(data, systems, get_transformation)
        if image_key is None:
            system, to_image = "global" if "global" in systems else systems[0], np.eye(3)
        else:
            found = get_transformation(data[image_key], get_all=True)
            system = next(s for s in systems if s in found)
            to_image = np.linalg.inv(found[system].to_affine_matrix(_XY, _XY))
            image = path / "images" / image_key
            if _is_preview(to_image):
                scale, to_image = float(to_image[0, 0]), np.eye(3)
        centroids = sd.get_centroids(data[region], coordinate_system=system).compute()
        xy = centroids[list(_XY)].reindex(instances).to_numpy() @ to_image[:2, :2].T + to_image[:2, 2]
        to_pixels = to_image @ get_transformation(data[region], to_coordinate_system=system).to_affine_matrix(_XY, _XY)
    factors = {} if size_um is None else {"spot_diameter_fullres": spot_pitch(xy)}
    if size_um is None and "array_row" in table.obs and "radius" in data[region]:
        radius = np.median(data[region]["radius"]) * abs(np.linalg.det(to_pixels[:2, :2])) ** 0.5
        factors = {"spot_diameter_fullres": positive(2 * radius, f"radius of {region}", path)}
    section = assemble(
        raw_counts(table, path),
        spot_table(table, xy, cell_squares, path),
        name=name,
        format="spatialdata",
        counts_path=path,
        positions_path=path / "shapes" / region,
        labels=labels,
        images=Images(image, scale, *_preview(image, scale, factors)),
        square_um=size_um,
    )
    widen_array(section, table)
    return section


def _is_preview(to_image: np.ndarray) -> bool:
    """Whether an image is the coordinate system's (of full-resolution pixels) in small: scaled and nothing else."""
    return to_image[0, 0] < 1 and np.allclose(to_image, np.diag([to_image[0, 0], to_image[0, 0], 1]))


def _preview(image: Path | None, scale: float, factors: dict[str, float]) -> tuple[dict, dict[str, float]]:
    """The previews and scale factors of an image that is one itself; of another, ``assemble`` makes them."""
    if scale == 1.0:
        return {}, factors
    pixels, shrunk = open_image(image).thumbnail(THUMBNAIL_PX)
    return {"hires": pixels}, factors | {"tissue_hires_scalef": scale * shrunk}


def _table(data, path: Path, bin_um: int | None) -> tuple[AnnData, float | None]:
    """The table to read, and the size of its square bins in µm if its name says so."""
    tables = dict(data.tables)
    bins = {int(match[1]): name for name in sorted(tables) if (match := re.fullmatch(r".*square_(\d+)um", name))}
    if bins and len(bins) == len(tables):
        size = bin_um or (DEFAULT_BIN_UM if len(bins) > 1 else next(iter(bins)))
        if size not in bins:
            raise InputError(f"{path}: no bins of {size} µm: give --bin_um={'|'.join(map(str, bins))}")
        return tables[bins[size]], float(size)
    if bin_um is not None:
        raise InputError(f"{path}: no bins of Visium HD: leave --bin_um out")
    if len(tables) != 1:
        raise InputError(f"{path}: holds {len(tables)} tables ({', '.join(tables)}): write a folder with one of them")
    return next(iter(tables.values())), None


def _annotated(data, table: AnnData, path: Path) -> tuple[str, pd.Index]:
    """Name of the element that the table annotates, and the instance in it of each row."""
    attributes = table.uns.get("spatialdata_attrs", {})
    regions = attributes.get("region", [])
    regions = [regions] if isinstance(regions, str) else list(regions)
    if len(regions) != 1 or regions[0] not in data:
        raise InputError(
            f"{path}: its table annotates {', '.join(regions) or 'nothing'}: one of its elements is needed"
        )
    return regions[0], pd.Index(table.obs[attributes["instance_key"]])


def _largest_image(data, systems: list[str], get_transformation) -> str | None:
    """The image (c, y, x) of three or four channels with most pixels of those in one of the coordinate systems."""
    sizes = {}
    for key, element in data.images.items():
        array = next(iter(element["scale0"].values())) if hasattr(element, "children") else element
        if array.sizes["c"] in (3, 4) and set(systems) & set(get_transformation(element, get_all=True)):
            sizes[key] = array.size // array.sizes["c"]
    return max(sizes, key=sizes.get, default=None)
