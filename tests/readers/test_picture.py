"""An image alone."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from spabit_jax.errors import InputError
from spabit_jax.readers import read_section


@pytest.fixture
def picture(tmp_path):
    image = Image.new("RGB", (600, 400), (240, 240, 240))
    ImageDraw.Draw(image).rectangle((100, 100, 399, 299), (150, 60, 140))
    image.save(tmp_path / "slide.jpg", quality=95)
    return tmp_path / "slide.jpg"


def test_places_lie_on_the_tissue_of_an_image(picture, caplog):
    adata = read_section(picture, um_per_px=5)
    assert adata.n_vars == 0 and adata.uns["spabit"]["format"] == "picture" and not caplog.text
    xy, info = adata.obsm["spatial"], adata.uns["spabit"]
    assert ((xy > [95, 95]) & (xy < [405, 305])).all()
    assert adata.n_obs == pytest.approx(300 * 200 / (20 * 20 * 3**0.5 / 2), rel=0.1)  # 100 µm apart
    assert info["lattice"] == "hex" and info["um_per_px"] == 5 and info["spot_px"] == 11
    coarse = read_section(picture, um_per_px=5, spot_um=110)
    assert coarse.uns["spabit"]["spot_px"] == 22 and coarse.n_obs == pytest.approx(adata.n_obs / 4, rel=0.15)
    step = np.linalg.norm(np.diff(xy[:2], axis=0))
    assert step == pytest.approx(20, abs=0.01)


def test_places_of_ones_own(picture, visium):
    visium.table[["pxl_row_in_fullres", "pxl_col_in_fullres"]] //= 4
    adata = read_section(picture, um_per_px=5, positions=visium.positions())
    assert list(adata.obs_names) == list(visium.spots["barcode"])


def test_what_an_image_alone_cannot_say_is_asked_for(picture, tmp_path):
    for given, message in [
        ({}, "an image alone: give --um_per_px="),
        ({"um_per_px": -1}, "--um_per_px is -1"),
        ({"um_per_px": 5000}, "places of .* px: is --um_per_px or --spot_um right"),
        ({"um_per_px": 5, "image": picture}, "leave --image out"),
    ]:
        with pytest.raises(InputError, match=message):
            read_section(picture, **given)
    with pytest.raises(InputError, match=r"no counts, but an image: .* give slide.jpg as --section"):
        read_section(tmp_path)
    Image.new("RGB", (300, 300), (240, 240, 240)).save(picture)
    with pytest.raises(InputError, match="no tissue is seen on it: give places with --positions"):
        read_section(picture, um_per_px=5)
