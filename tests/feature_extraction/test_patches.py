from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from skimage.color import rgb2hed

from feature_extraction.patches import Patches, window_px
from feature_extraction.stain import stain_statistics


def test_window_is_the_slice_around_the_centre(image, pixels):
    (patch,) = Patches(image, [[50, 30]], 16)
    np.testing.assert_array_equal(patch, pixels[22:38, 42:58])
    (patch,) = Patches(image, [[50, 30]], 5)
    np.testing.assert_array_equal(patch, pixels[28:33, 48:53])


def test_white_outside(image, pixels):
    (patch,) = Patches(image, [[128, 2]], 16)
    np.testing.assert_array_equal(patch[6:, :10], pixels[:10, 120:])
    assert (patch[:6] == 255).all() and (patch[:, 10:] == 255).all()


def test_centres_and_width_are_full_resolution_pixels(image, pixels):
    patches = Patches(image, [[200, 120]], 64, image_scale=0.25)
    np.testing.assert_array_equal(patches[0], pixels[22:38, 42:58])
    assert window_px(224, 0.045) == 10
    assert window_px(8, 0.01) == 1


def test_resize_is_lanczos(image, pixels):
    (patch,) = Patches(image, [[50, 30]], 32, size=56)
    expected = Image.fromarray(pixels[14:46, 34:66]).resize((56, 56), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(patch, np.asarray(expected))


def test_transposed_crop_swaps_x_and_y(image):
    (patch,) = Patches(image, [[70, 30]], 16, transposed_crop=True)
    (swapped,) = Patches(image, [[30, 70]], 16)
    (right,) = Patches(image, [[70, 30]], 16)
    np.testing.assert_array_equal(patch, swapped)
    assert (patch != right).any()


@pytest.mark.parametrize("shape", [(10, 10), (224, 224), (7, 13), (1, 1)])
def test_stain_statistics(shape):
    window = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    window[0, 0] = 0  # an optical density that is clamped
    stains = rgb2hed(window)
    channels = [*np.moveaxis(window / 255, 2, 0), *np.moveaxis(stains, 2, 0)]
    expected = [v for c in channels for v in [*np.quantile(c, [0.05, 0.25, 0.5, 0.75, 0.95]), c.std()]]
    for stain in np.moveaxis(stains, 2, 0):
        expected += [np.abs(np.diff(stain, axis=a)).mean() if shape[a] > 1 else 0 for a in (1, 0)]
    got = stain_statistics(window)
    assert got.dtype == np.float32 and got.shape == (42,)
    np.testing.assert_allclose(got, expected, atol=2e-6)
