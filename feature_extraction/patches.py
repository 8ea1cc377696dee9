"""Image patches around spots: the data set from which features are computed."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from spabit_jax.readers.image import SlideImage


class Patches:
    """A map-style data set for ``torch.utils.data.DataLoader``: one patch per spot, in the order of the spots.

    The window of spot i is ``round(patch_px * image_scale)`` image pixels wide (at least 1), centred at
    ``centers[i] * image_scale``, white where it leaves the image. Picklable; imports no torch.

    Args:
      image: the section's image.
      centers: (N, 2) spot centres (x, y) in full-resolution pixels.
      patch_px: width of a patch in full-resolution pixels.
      image_scale: image pixels per full-resolution pixel.
      size: width in pixels to which a patch is resized (Lanczos); None leaves it as it is.
      transform: applied to the (h, w, 3) uint8 patch.
      transposed_crop: takes the window at (y, x) instead of (x, y), a fault of the reference implementation.
    """

    def __init__(
        self,
        image: SlideImage,
        centers: np.ndarray,
        patch_px: float,
        image_scale: float = 1.0,
        size: int | None = None,
        transform: Callable[[np.ndarray], np.ndarray] | None = None,
        transposed_crop: bool = False,
    ):
        self.image = image
        centers = np.asarray(centers, np.float64) * image_scale
        self.centers = centers[:, ::-1] if transposed_crop else centers
        self.width = window_px(patch_px, image_scale)
        self.size = size
        self.transform = transform

    def __len__(self) -> int:
        return len(self.centers)

    def __getitem__(self, index: int) -> np.ndarray:
        x, y = (math.floor(c - self.width / 2 + 0.5) for c in self.centers[index])
        patch = self.image.read(x, y, self.width, self.width)
        if self.size is not None and self.size != self.width:
            patch = np.asarray(Image.fromarray(patch).resize((self.size, self.size), Image.Resampling.LANCZOS))
        return patch if self.transform is None else self.transform(patch)


def window_px(patch_px: float, image_scale: float) -> int:
    """Width of a patch in image pixels, at least 1."""
    return max(1, round(patch_px * image_scale))
