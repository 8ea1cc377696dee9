"""Stain and texture statistics of an image window: 42 numbers without a neural network."""

from __future__ import annotations

import numpy as np
from skimage.color import hed_from_rgb

DIM = 42
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# Optical density of each 8-bit value, as skimage.color.separate_stains computes it, looked up instead of computed.
_DENSITY = (np.log(np.maximum(np.arange(256) / 255, 1e-6)) / np.log(1e-6)).astype(np.float32)
_HED_FROM_RGB = hed_from_rgb.T.astype(np.float32)


def stain_statistics(window: np.ndarray) -> np.ndarray:
    """Statistics of the colours, the stains and their texture, not standardised.

    For each of R, G, B (0 to 1) and haematoxylin, eosin, DAB (colour deconvolution of Ruifrok & Johnston 2001, as
    ``skimage.color.rgb2hed``): the 5, 25, 50, 75 and 95% quantiles and the standard deviation. Then, for each of the
    three stains, the mean absolute difference of horizontal neighbours and of vertical ones.

    Args:
      window: (h, w, 3) uint8, of any size.

    Returns:
      (42,) float32.
    """
    height, width, _ = window.shape
    rgb = window.reshape(-1, 3).T  # (3, h * w)
    of_stains = stains(window).reshape(3, -1)
    channels = np.concatenate([rgb / np.float32(255), of_stains])  # (6, h * w)
    position = np.array(_QUANTILES) * (height * width - 1)
    rank = np.stack([np.floor(position), np.ceil(position)]).astype(int)  # (2, 5)
    counted = [np.searchsorted(np.cumsum(np.bincount(channel, minlength=256)), rank, side="right") for channel in rgb]
    ordered = np.sort(of_stains, axis=1)[:, rank]  # several times faster than np.quantile, which partitions
    low, high = np.concatenate([np.stack(counted) / np.float32(255), ordered]).swapaxes(0, 1).astype(np.float32)
    quantiles = low + (position - rank[0]).astype(np.float32) * (high - low)  # (6, 5)
    spread = np.column_stack([quantiles, channels.std(axis=1)])  # (6, 6)
    of_stains = of_stains.reshape(3, height, width)
    return np.concatenate([spread.ravel(), np.column_stack([_texture(of_stains, 2), _texture(of_stains, 1)]).ravel()])


def stains(window: np.ndarray) -> np.ndarray:
    """(3, h, w) float32: haematoxylin, eosin and DAB of an (h, w, 3) uint8 window."""
    return np.maximum(_HED_FROM_RGB @ _DENSITY[window.reshape(-1, 3).T], 0).reshape(3, *window.shape[:2])


def _texture(stains: np.ndarray, axis: int) -> np.ndarray:
    """(3,) mean absolute difference of neighbours along ``axis``; 0 where the window is one pixel wide."""
    if stains.shape[axis] < 2:
        return np.zeros(3, np.float32)
    return np.abs(np.diff(stains, axis=axis)).mean(axis=(1, 2))
