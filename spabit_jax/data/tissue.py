"""What of a section is tissue, by its image and its spots."""

from __future__ import annotations

import numpy as np
from absl import logging
from anndata import AnnData
from scipy.spatial import Delaunay, KDTree
from skimage import color, filters, morphology

from spabit_jax.neighbours import spot_pitch

TRUSTED = 0.8  # share of the spots that must lie on what is taken for tissue
SPOT_RADIUS = 0.275  # of the pitch (Visium: 55 µm wide every 100 µm): under a measured spot there is tissue
MASK_PX = 1000  # longer side of the image in which tissue is looked for
_SMOOTHING = 0.15  # of the pitch: width of the blur before tissue is told from background


def on_tissue(adata: AnnData, xy: np.ndarray) -> np.ndarray:
    """Which of (M, 2) places lie on tissue: (M,) bool.

    Within a pitch of a measured spot, and on what the image shows as tissue; without an image, or where the spots say
    that tissue and background cannot be told apart in it, inside the hull of the spots. Under a spot is always tissue.
    """
    known = np.asarray(adata.obsm["spatial"], np.float64)
    pitch = spot_pitch(known)
    distance = KDTree(known).query(xy)[0] / pitch
    near, under = distance <= 1 + 1e-6, distance <= SPOT_RADIUS
    found = thumbnail(adata)
    if found is not None:
        image, scale = found
        every = -(-max(image.shape) // MASK_PX)
        image, scale = image[::every, ::every], scale / every
        mask = tissue_mask(image, _SMOOTHING * pitch * scale)
        share = _look_up(mask, known, scale).mean()
        if share >= TRUSTED:
            return near & (under | _look_up(mask, xy, scale))
        logging.warning(
            "section %s: only %.0f%% of the spots lie on what looks like tissue in the image: the spots' hull is used "
            "instead", adata.uns["spabit"]["name"], 100 * share,
        )  # fmt: skip
    inside = near.copy()
    hull = Delaunay(known[np.lexsort(known.T)])  # whatever the order of spots: places may lie on its edge
    inside[near] = hull.find_simplex(xy[near]) >= 0
    return under | inside


def tissue_mask(image: np.ndarray, sigma: float) -> np.ndarray:
    """Tissue of an H&E image: (h, w, 3) uint8 → (h, w) bool, holes filled.

    Otsu's threshold (1979) on the chroma of the blurred image: slides, bright or grey, have next to none.

    Args:
      sigma: of the blur, in pixels; tissue and holes smaller than about 10 sigma across are background and tissue.
    """
    lab = color.rgb2lab(image)
    chroma = filters.gaussian(np.hypot(lab[..., 1], lab[..., 2]), max(sigma, 0.5))
    if np.ptp(chroma) == 0:
        return np.zeros(chroma.shape, bool)
    mask = chroma > filters.threshold_otsu(chroma)
    size = int(np.ceil(np.pi * (5 * max(sigma, 0.5)) ** 2))
    return morphology.remove_small_holes(morphology.remove_small_objects(mask, max_size=size), max_size=size)


def thumbnail(adata: AnnData) -> tuple[np.ndarray, float] | None:
    """The larger image of ``uns["spatial"]``, (h, w, 3) uint8, and its pixels per full-resolution pixel."""
    for library in adata.uns.get("spatial", {}).values():
        for key in ("hires", "lowres"):
            if key in library.get("images", {}):
                return library["images"][key], library["scalefactors"][f"tissue_{key}_scalef"]
    return None


def _look_up(mask: np.ndarray, xy: np.ndarray, scale: float) -> np.ndarray:
    """The mask at (M, 2) places in full-resolution pixels; False outside."""
    col, row = np.floor(xy * scale).astype(int).T
    inside = (row >= 0) & (row < mask.shape[0]) & (col >= 0) & (col < mask.shape[1])
    found = np.zeros(len(xy), bool)
    found[inside] = mask[row[inside], col[inside]]
    return found
