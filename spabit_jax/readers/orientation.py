"""Whether spots lie on the image as they should, or as if x and y were exchanged."""

from __future__ import annotations

import numpy as np
from absl import logging
from anndata import AnnData
from scipy.ndimage import distance_transform_edt

from spabit_jax.errors import InputError
from spabit_jax.neighbours import spot_pitch
from spabit_jax.readers.image import open_image

_LOOK_PX = 600  # of the image that is looked at
# By how much spots with x and y exchanged must cover the tissue better. On the seven sections with an image that this
# was tried on, the right way round was ahead by 0.10 to 0.36.
_MARGIN = 0.05


def check_orientation(adata: AnnData, swapped: bool) -> None:
    """Compares the spots with the image, as they are and with x and y exchanged; changes nothing.

    Warns where both fit into the image, but spots with x and y exchanged cover the tissue better: where the
    correlation of two masks, pixels near a spot and pixels that are dark (Otsu's threshold), is higher by 0.05.

    Args:
      adata: a section as ``read_section`` makes it.
      swapped: whether x and y have been exchanged already, for the message.

    Raises:
      InputError: the spots do not lie within the image; says so if they would with x and y exchanged.
    """
    info = adata.uns["spabit"]
    if "image_path" not in info:
        return
    slide, scale = open_image(info["image_path"]), info["image_scale"]
    xy = adata.obsm["spatial"] * scale
    size = np.array([slide.width, slide.height])
    inside, inside_exchanged = (bool((c >= 0).all() and (c <= size).all()) for c in (xy, xy[:, ::-1]))
    remedy = "leave --swap_xy out" if swapped else "give --swap_xy"
    if not inside:
        low, high = xy.min(0), xy.max(0)
        mend = f"{remedy}, with which they lie within it, or" if inside_exchanged else "give"
        raise InputError(
            f"{slide.path}: {slide.width} x {slide.height} px, but the spots of {info['positions_path']} lie from "
            f"({low[0]:.0f}, {low[1]:.0f}) to ({high[0]:.0f}, {high[1]:.0f}) at scale {scale:g}: {mend} "
            "the right --image"
        )
    if inside_exchanged:
        as_is, exchanged = _coverages(adata)
        if exchanged > as_is + _MARGIN:
            logging.warning(
                "%s: x and y look exchanged: spots cover the tissue of %s with a correlation of %.2f, with x and y "
                "exchanged of %.2f; look at the picture, and %s if so",
                info["positions_path"], slide.path, as_is, exchanged, remedy,
            )  # fmt: skip


def _coverages(adata: AnnData) -> tuple[float, float]:
    """Correlation of the neighbourhood of spots with dark pixels, as they are and with x and y exchanged."""
    from skimage.filters import threshold_otsu

    library = adata.uns["spatial"][adata.uns["spabit"]["name"]]
    key = "hires" if "hires" in library["images"] else "lowres"
    image = library["images"][key]
    step = -(-max(image.shape) // _LOOK_PX)
    gray = image[::step, ::step].mean(axis=2)
    tissue = gray < threshold_otsu(gray)
    xy = adata.obsm["spatial"] * library["scalefactors"][f"tissue_{key}_scalef"] / step
    reach = max(1.0, spot_pitch(xy)) if len(xy) > 1 else 1.0
    return _coverage(xy, tissue, reach), _coverage(xy[:, ::-1], tissue, reach)


def _coverage(xy: np.ndarray, tissue: np.ndarray, reach: float) -> float:
    empty = np.ones(tissue.shape, bool)
    column, row = np.minimum(xy.astype(np.int64), np.array(tissue.shape[::-1]) - 1).T
    empty[row, column] = False
    near = distance_transform_edt(empty) <= reach
    if near.all() or tissue.all() or not tissue.any():
        return 0.0
    return float(np.corrcoef(near.ravel(), tissue.ravel())[0, 1])
