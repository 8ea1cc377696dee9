"""Nuclei of an image window: 20 numbers of how many, how large, which shape, how dark, how far apart, which direction.

Nuclei are what is dark with haematoxylin: colour deconvolution, Gaussian smoothing, one threshold for the whole image
(Otsu 1979), and a watershed from the middles of what it leaves, which parts nuclei that touch. No weights, no training.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree
from skimage.feature import peak_local_max
from skimage.filters import gaussian, threshold_otsu
from skimage.measure import block_reduce
from skimage.segmentation import watershed

from feature_extraction.stain import stains
from spabit_jax.data.tissue import tissue_mask
from spabit_jax.errors import InputError
from spabit_jax.readers.image import SlideImage

DIM = 20
COARSEST = 1.0  # µm: in larger pixels nuclei, of 5 to 10 µm, are no more than specks
FINEST = 0.5  # µm: smaller pixels are averaged, which shows no less of a nucleus and takes a fraction of the time
SMOOTHING = 1.0  # µm, sd
SEED_DISTANCE = 2.5  # µm between the middles of two nuclei
RADIUS = 3.0  # µm from the border, from where on only darkness tells one nucleus from the next
SMALLEST = 12.0  # µm² of a nucleus
SMALL, LARGE = 25.0, 80.0  # µm²: about the least and the most of a lymphocyte's
N_TILES, TILE, THUMBNAIL = 200, 60.0, 1000  # the image is sampled in so many squares of so many µm; px


class Nuclei(NamedTuple):
    """n nuclei of a window."""

    area: np.ndarray  # (n,) µm²
    xy: np.ndarray  # (n, 2) µm
    axes: np.ndarray  # (n, 2) standard deviations along the long and the short axis, µm
    angle: np.ndarray  # (n,) of the long axis
    dark: np.ndarray  # (n,) mean haematoxylin
    texture: np.ndarray  # (n,) its standard deviation within


def pixel_um(um_per_px: float | None, image_scale: float) -> float:
    """Width of an image pixel in µm; InputError where that is not known, or too large to see nuclei."""
    if um_per_px is None:
        raise InputError("--encoder=nuclei needs the width of a pixel in µm, which this section's files do not say")
    um = um_per_px / image_scale
    if um > COARSEST:
        raise InputError(
            f"--encoder=nuclei needs pixels of at most {COARSEST:g} µm, and this image has {um:.3g} µm: give the "
            "full-resolution image with --image, or use --encoder=stain"
        )
    return um


def of_image(image: SlideImage, um: float) -> partial:
    """The function of a window of an image, ``nuclei_statistics``, with the threshold of that image.

    Args:
      um: width of an image pixel in µm.
    """
    return partial(nuclei_statistics, um=um, threshold=haematoxylin_threshold(image, um))


def haematoxylin_threshold(image: SlideImage, um: float) -> float:
    """Otsu's threshold of smoothed haematoxylin over squares spread evenly over the tissue of the image."""
    small, scale = image.thumbnail(THUMBNAIL)
    on_tissue = np.argwhere(tissue_mask(small, 2.0))
    if not len(on_tissue):
        raise InputError("--encoder=nuclei finds no tissue on the image: nothing on it is stained")
    chosen = on_tissue[np.unique(np.linspace(0, len(on_tissue) - 1, N_TILES).round().astype(int))]
    width = max(1, round(TILE / um))
    corners = (chosen[:, ::-1] / scale - width / 2).round().astype(int)
    tiles = [_haematoxylin(image.read(int(x), int(y), width, width), um)[0].ravel() for x, y in corners]
    return float(threshold_otsu(np.concatenate(tiles)))


def nuclei_statistics(window: np.ndarray, um: float, threshold: float) -> np.ndarray:
    """Statistics of the nuclei in a window.

    Nuclei for each 1,000 µm² and the share of the area that they cover; of area (logarithm), roundness (short over long
    axis), haematoxylin and distance to the next nucleus the means, then the standard deviations; the 10, 50 and 90%
    quantiles of area (logarithm); the shares of small and of large ones; the mean of the texture within; mean and
    standard deviation of haematoxylin between nuclei; distance to the next nucleus over that of as many at random
    places (Clark & Evans 1954); and how far long axes have one direction, from 0 to 1.

    Args:
      window: (h, w, 3) uint8, of any size.
      um: width of a pixel in µm.
      threshold: of haematoxylin.

    Returns:
      (20,) float32; zeros for what no nucleus or a single one says nothing about.
    """
    stain, um = _haematoxylin(window, um)
    labels = find_nuclei(stain, um, threshold)
    nuclei = measure(labels, stain, um)
    between = stain[labels == 0] if (labels == 0).any() else np.zeros(1)
    area = stain.size * um**2
    density = len(nuclei.area) / area
    if not len(nuclei.area):
        return np.array([0.0] * 16 + [between.mean(), between.std()] + [0.0] * 2, np.float32)
    log_area = np.log(nuclei.area)
    apart = KDTree(nuclei.xy).query(nuclei.xy, 2)[0][:, 1] if len(nuclei.xy) > 1 else np.full(1, np.sqrt(area))
    roundness = nuclei.axes[:, 1] / nuclei.axes[:, 0]
    direction = np.mean((1 - roundness) * np.exp(2j * nuclei.angle))
    of_each = (log_area, roundness, nuclei.dark, apart)
    return np.array(
        [
            1000 * density,
            nuclei.area.sum() / area,
            *(value.mean() for value in of_each),
            *(value.std() for value in of_each),
            *np.quantile(log_area, (0.1, 0.5, 0.9)),
            (nuclei.area < SMALL).mean(),
            (nuclei.area > LARGE).mean(),
            nuclei.texture.mean(),
            between.mean(),
            between.std(),
            2 * apart.mean() * np.sqrt(density),
            np.abs(direction),
        ],
        np.float32,
    )


def find_nuclei(stain: np.ndarray, um: float, threshold: float) -> np.ndarray:
    """(h, w) integers: 0 between nuclei, and 1, 2, … in each; the numbers have no gaps.

    Args:
      stain: (h, w) smoothed haematoxylin.
      um: width of a pixel in µm.
    """
    mask = stain > threshold
    inside = np.minimum(ndimage.distance_transform_edt(mask) * um, RADIUS) / RADIUS
    depth = gaussian(inside + stain / threshold, SMOOTHING / um)
    seeds = np.zeros(mask.shape, int)
    distance = max(1, round(SEED_DISTANCE / um))
    middles = peak_local_max(depth, min_distance=distance, labels=mask.astype(int), exclude_border=False)
    seeds[tuple(middles.T)] = np.arange(1, len(middles) + 1)
    labels = watershed(-depth, seeds, mask=mask)
    large_enough = np.bincount(labels.ravel()) * um**2 >= SMALLEST
    large_enough[0] = False
    return np.where(large_enough, np.cumsum(large_enough), 0)[labels]


def measure(labels: np.ndarray, stain: np.ndarray, um: float) -> Nuclei:
    """What the nuclei of ``find_nuclei`` are like; all at once, where skimage.measure.regionprops goes one by one."""
    row, column = np.nonzero(labels)
    of = labels[row, column] - 1
    n = np.bincount(of)
    mean = lambda values: np.bincount(of, values) / n  # noqa: E731
    x, y, dark = mean(column), mean(row), mean(stain[row, column])
    dx, dy, off = column - x[of], row - y[of], stain[row, column] - dark[of]
    xx, yy, xy = mean(dx**2) + 1 / 12, mean(dy**2) + 1 / 12, mean(dx * dy)  # a pixel is a square, not a point
    apart = np.hypot((xx - yy) / 2, xy)
    variances = np.stack([(xx + yy) / 2 + apart, (xx + yy) / 2 - apart], axis=1)
    return Nuclei(
        area=n * um**2,
        xy=np.stack([x, y], axis=1) * um,
        axes=np.sqrt(variances) * um,
        angle=np.arctan2(2 * xy, xx - yy) / 2,
        dark=dark,
        texture=np.sqrt(mean(off**2)),
    )


def _haematoxylin(window: np.ndarray, um: float) -> tuple[np.ndarray, float]:
    """(h, w) smoothed haematoxylin, of pixels that are no smaller than needed, and their width in µm."""
    times = max(1, int(FINEST / um))
    if times > 1 and min(window.shape[:2]) >= times:
        height, width = (side // times * times for side in window.shape[:2])
        window = block_reduce(window[:height, :width], (times, times, 1), np.mean).round().astype(np.uint8)
        um *= times
    return gaussian(stains(window)[0], SMOOTHING / um, preserve_range=True), um
