"""Nuclei that are drawn are found, where and as they are; and measured as scikit-image measures them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from skimage.color import hed2rgb
from skimage.draw import ellipse
from skimage.measure import regionprops_table

from feature_extraction import cache, nuclei
from feature_extraction.extract import extract_section
from spabit_jax.errors import InputError
from spabit_jax.readers.image import open_image

ANGLE = 0.5  # of the long axes, from the x axis towards larger y


def drawn(um: float, size_um: float = 120.0, axes=(6.0, 3.0), angle: float = ANGLE):
    """An image of ellipses on eosin, and their middles in µm."""
    side = round(size_um / um)
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*2 * [np.arange(15.0, size_um - 10, 22.0)]), axis=-1).reshape(-1, 2)
    middles = grid + rng.uniform(-2, 2, grid.shape)
    hed = np.zeros((side, side, 3))
    hed[..., 1] = 0.1
    for x, y in middles / um:
        inside = ellipse(y, x, axes[1] / um, axes[0] / um, shape=(side, side), rotation=-angle)
        hed[*inside, 0] = 0.3
    return (hed2rgb(hed) * 255).round().astype(np.uint8), middles


@pytest.fixture(scope="module")
def window():
    return drawn(0.5)


def found(window, um):
    stain, um = nuclei._haematoxylin(window, um)
    threshold = (stain.min() + stain.max()) / 2
    return nuclei.measure(nuclei.find_nuclei(stain, um, threshold), stain, um), threshold


@pytest.mark.parametrize("um", [0.25, 0.5, 0.8])
def test_what_is_drawn_is_found(um):
    window, middles = drawn(um)
    seen, _ = found(window, um)
    assert len(seen.area) == len(middles)
    apart = np.linalg.norm(seen.xy[:, None] - middles, axis=2)
    assert apart.min(axis=1).max() < um + 0.5 and len(set(apart.argmin(axis=1))) == len(middles)
    np.testing.assert_allclose(seen.area, np.pi * 6 * 3, rtol=0.15)
    np.testing.assert_allclose(seen.axes, np.tile([3, 1.5], (len(middles), 1)), rtol=0.15)  # an ellipse: half of each
    np.testing.assert_allclose(seen.angle, ANGLE, atol=0.1)


def test_touching_nuclei_are_parted():
    window = np.full((60, 80, 3), 255, np.uint8)
    for x in (25, 40, 55):
        row, column = ellipse(30, x, 8.5, 8.5, shape=window.shape[:2])
        window[row, column] = (70, 50, 120)
    assert len(found(window, 0.5)[0].area) == 3


def test_measures_are_those_of_scikit_image(window):
    stain, um = nuclei._haematoxylin(window[0], 0.5)
    labels = nuclei.find_nuclei(stain, um, found(window[0], um)[1])
    seen = nuclei.measure(labels, stain, um)
    names = ("area", "centroid", "axis_major_length", "axis_minor_length", "orientation")
    names += ("intensity_mean", "intensity_std")
    oracle = regionprops_table(labels, stain, properties=names)
    np.testing.assert_allclose(seen.area, oracle["area"] * um**2)
    np.testing.assert_allclose(seen.xy, np.stack([oracle["centroid-1"], oracle["centroid-0"]], axis=1) * um)
    axes = np.stack([oracle["axis_major_length"], oracle["axis_minor_length"]], axis=1)
    axes = np.hypot(axes / 4, 1 / 12**0.5)  # scikit-image takes pixels as points, which have no width
    np.testing.assert_allclose(seen.axes, axes * um)
    np.testing.assert_allclose(np.tan(seen.angle), 1 / np.tan(oracle["orientation"]), rtol=1e-6)
    np.testing.assert_allclose(seen.dark, oracle["intensity_mean"], rtol=1e-5)
    np.testing.assert_allclose(seen.texture, oracle["intensity_std"], rtol=1e-4)


def test_statistics(window):
    image, middles = window
    threshold = found(image, 0.5)[1]
    of_window = nuclei.nuclei_statistics(image, 0.5, threshold)
    assert of_window.shape == (nuclei.DIM,) and of_window.dtype == np.float32
    np.testing.assert_allclose(of_window[0], 1000 * len(middles) / 120**2, rtol=1e-6)
    np.testing.assert_allclose(of_window[2], np.log(np.pi * 18), atol=0.1)
    assert of_window[18] > 1.5 and of_window[19] > 0.4  # on a lattice, in one direction
    np.testing.assert_allclose(of_window[5], 20, atol=3)  # µm to the next
    turned = nuclei.nuclei_statistics(np.rot90(image).copy(), 0.5, threshold)
    np.testing.assert_allclose(turned, of_window, rtol=0.02, atol=1e-3)
    blank = np.full((30, 40, 3), 250, np.uint8)
    for small in (blank, blank[:1, :1]):
        none = nuclei.nuclei_statistics(small, 0.5, threshold)
        assert np.isfinite(none).all() and none[:16].max() == 0


def test_one_threshold_for_the_image_and_its_pixels_in_the_cache(section, tmp_path):
    image, _ = drawn(0.5)
    Image.fromarray(image).save(tmp_path / "image.png")
    section.uns["spabit"] |= {"image_path": str(tmp_path / "image.png"), "um_per_px": 0.5}
    npy = extract_section(section, "nuclei", 80, tmp_path / "cache")
    features = np.load(npy)
    assert features.shape == (11, nuclei.DIM) and np.isfinite(features).all() and features[:, 0].min() > 0
    threshold = nuclei.haematoxylin_threshold(open_image(tmp_path / "image.png"), 0.5)
    low, high = np.quantile(nuclei._haematoxylin(image, 0.5)[0], (0.05, 0.999))
    assert low < threshold < high
    assert f"{threshold:.6g}" in cache.read_meta(npy)["transform"]
    section.uns["spabit"]["um_per_px"] = 0.4  # other sizes of the same nuclei
    with pytest.raises(InputError, match="made with patch_um 40.0, 32.0 is asked for"):
        cache.is_cached(section, "nuclei", 80, tmp_path / "cache")


@pytest.mark.parametrize(
    ("um", "scale", "problem"),
    [(None, 1.0, "which this section's files do not say"), (0.5, 0.1, "this image has 5 µm: give the full-resolution")],
)
def test_where_nuclei_cannot_be_seen(section, tmp_path, um, scale, problem):
    section.uns["spabit"] |= {"image_scale": scale} | ({"um_per_px": um} if um else {})
    with pytest.raises(InputError, match=problem):
        extract_section(section, "nuclei", 16, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.npy"))
