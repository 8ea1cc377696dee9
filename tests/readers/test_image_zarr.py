from __future__ import annotations

import pickle

import numpy as np
import pytest
import zarr

from feature_extraction.cache import image_stamp
from spabit_jax.errors import InputError
from spabit_jax.readers.image import open_image


def write(path, pixels, version="0.5"):
    """(h, w, 3) pixels as an OME-Zarr image of two levels."""
    group = zarr.open_group(path, mode="w", zarr_format=3 if version == "0.5" else 2)
    for name, level in (("s0", pixels), ("s1", pixels[::2, ::2])):
        array = np.moveaxis(level, 2, 0)
        group.create_array(name, shape=array.shape, chunks=(3, 16, 16), dtype=array.dtype)[:] = array
    multiscales = [{"datasets": [{"path": "s0"}, {"path": "s1"}]}]
    if version == "0.5":
        group.attrs["ome"] = {"version": version, "multiscales": multiscales}
    else:
        group.attrs["multiscales"] = multiscales
    return path


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (53, 71, 3), np.uint8)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_windows_equal_slices(tmp_path, pixels, version):
    slide = open_image(write(tmp_path / "he", pixels, version))
    assert (slide.width, slide.height) == (71, 53)
    np.testing.assert_array_equal(slide.read(10, 20, 30, 25), pixels[20:45, 10:40])
    window = pickle.loads(pickle.dumps(slide)).read(60, -5, 20, 10)
    np.testing.assert_array_equal(window[5:, :11], pixels[:5, 60:])
    assert (window[:5] == 255).all() and (window[:, 11:] == 255).all()
    small, scale = slide.thumbnail(1000)
    np.testing.assert_array_equal(small, pixels)
    assert scale == 1 and slide.thumbnail(35)[0].shape == (26, 35, 3)


def test_sixteen_bits_and_gray(tmp_path, pixels):
    slide = open_image(write(tmp_path / "he", pixels.astype(np.uint16) * 257))
    np.testing.assert_array_equal(slide.read(0, 0, 71, 53), pixels)
    slide = open_image(write(tmp_path / "gray", pixels[..., :1]))
    np.testing.assert_array_equal(slide.read(0, 0, 71, 53), np.repeat(pixels[..., :1], 3, axis=2))


def test_floats_and_transparency(tmp_path, pixels):
    slide = open_image(write(tmp_path / "float", pixels / 255.0))
    np.testing.assert_array_equal(slide.read(0, 0, 71, 53), pixels)
    clear = np.dstack([pixels, np.zeros(pixels.shape[:2], np.uint8)])
    assert (open_image(write(tmp_path / "clear", clear)).read(0, 0, 71, 53) == 255).all()


def test_errors(tmp_path, pixels):
    with pytest.raises(InputError, match="pixels of type int64"):
        open_image(write(tmp_path / "int", pixels.astype(np.int64)))
    with pytest.raises(InputError, match="is needed"):
        open_image(write(tmp_path / "five", np.repeat(pixels[..., :1], 5, axis=2)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="not a readable image"):
        open_image(tmp_path / "empty")


def test_a_changed_chunk_makes_another_image(tmp_path, pixels):
    path = write(tmp_path / "he", pixels)
    before = image_stamp(path)
    assert before == image_stamp(path)
    zarr.open_group(path)["s0"][0, 40, 50] = int(pixels[40, 50, 0]) ^ 1
    after = image_stamp(path)
    assert before["image_sha256"] != after["image_sha256"] and before["image_mtime_ns"] < after["image_mtime_ns"]
