from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from feature_extraction import cache
from feature_extraction.extract import extract_section
from spabit_jax.errors import InputError


@pytest.fixture
def cached(section, tmp_path):
    return extract_section(section, "stain", 16, tmp_path / "cache")


def read(section, tmp_path, encoder="stain", patch_px=16, **kwargs):
    return cache.read_cache(section, encoder, patch_px, tmp_path / "cache", **kwargs)


def test_name_and_rows(section, cached, tmp_path):
    assert cached.name == "S1.stain.16px.npy"
    features = read(section, tmp_path)
    assert isinstance(features, np.memmap) and features.shape == (11, 42) and features.dtype == np.float32
    assert cache.is_cached(section, "stain", 16, tmp_path / "cache")
    assert not cache.is_cached(section, "stain", 17, tmp_path / "cache")
    meta = cache.read_meta(cached)
    assert meta["barcodes"] == list(section.obs_names)
    assert meta["pixel_order"] == "x,y" and meta["patch_px"] == 16 and meta["patch_um"] is None
    assert meta["versions"]["numpy"] == np.__version__


def test_encoder_name_is_file_safe(tmp_path):
    npy = cache.cache_path(tmp_path, "a/b", "timm:hf-hub:lab/net", 109.25, transposed_crop=True)
    assert npy.parent == tmp_path and npy.name == "a_b.timm_hf-hub_lab_net.109.25px.transposed.npy"


def test_rows_follow_the_barcodes(section, cached, tmp_path):
    order = np.random.default_rng(0).permutation(len(section))
    np.testing.assert_array_equal(read(section[order].copy(), tmp_path), np.load(cached)[order])


def other_coordinates(section):
    section.obsm["spatial"][3, 0] += 1


def swapped_barcodes(section):
    section.obs_names = [*section.obs_names[:-2], *section.obs_names[:-3:-1]]


def other_barcodes(section):
    section.obs_names = [*section.obs_names[:-1], "new-1"]


def other_image(section):
    path = section.uns["spabit"]["image_path"]
    size = os.path.getsize(path)
    pixels = np.asarray(Image.open(path)).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    os.truncate(path, max(size, os.path.getsize(path)))  # of the same size, so that only the hash can tell


def other_scale(section):
    section.uns["spabit"]["image_scale"] = 0.5


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_coordinates, "other coordinates"),
        (swapped_barcodes, "other coordinates"),
        (other_barcodes, "1 of the 11 asked for are not in it"),
        (other_image, "another image"),
        (other_scale, "image_scale 1.0, 0.5 is asked for"),
    ],
)
def test_refused(section, cached, tmp_path, change, named):
    change(section)
    for attempt in (read, lambda *_: extract_section(section, "stain", 16, tmp_path / "cache")):
        with pytest.raises(InputError, match=named) as error:
            attempt(section, tmp_path)
        assert str(cached) in str(error.value) and "--cache_dir" in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["encoder", "section", "patch_px", "transposed_crop"])
def test_refused_under_another_name(section, cached, tmp_path, key):
    """A cache that was renamed to what is asked for is still what it was."""
    wanted = {"encoder": "stain", "patch_px": 16, "transposed_crop": False}
    if key == "section":
        section.uns["spabit"]["name"] = "S2"
    else:
        wanted[key] = {"encoder": "uni", "patch_px": 17, "transposed_crop": True}[key]
    npy = cache.cache_path(tmp_path / "cache", section.uns["spabit"]["name"], **wanted)
    cached.rename(npy)
    cached.with_suffix(".json").rename(npy.with_suffix(".json"))
    with pytest.raises(InputError, match=f"made with {key}"):
        read(section, tmp_path, **wanted)


def test_same_image_with_another_time_is_accepted(section, cached, tmp_path):
    os.utime(section.uns["spabit"]["image_path"], (1, 1))
    assert cache.is_cached(section, "stain", 16, tmp_path / "cache")


def test_damaged(section, cached, tmp_path):
    os.truncate(cached, 200)
    with pytest.raises(InputError, match="damaged"):
        read(section, tmp_path)
    cached.with_suffix(".json").write_text("{")
    with pytest.raises(InputError, match="not the description of a feature cache"):
        read(section, tmp_path)
    cached.with_suffix(".json").unlink()
    with pytest.raises(InputError, match="no such feature cache.*--encoder=stain"):
        read(section, tmp_path)


def test_imports_neither_jax_nor_torch():
    code = "import sys, feature_extraction.extract; print(sorted({'jax', 'torch', 'timm'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
