from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from spabit_jax.errors import InputError
from spabit_jax.readers import read_section


@pytest.fixture
def slide(visium):
    """A Visium folder whose tissue, a wide ellipse in a square image, lies where its spots are."""
    visium.write()
    for key in ("hires", "lowres"):
        (visium.folder / f"spatial/tissue_{key}_image.png").unlink()
    image = Image.new("RGB", (1300, 1300), (240, 240, 240))
    ImageDraw.Draw(image).ellipse((80, 160, 1230, 520), (150, 60, 140))
    image.save(visium.folder / "image.png")
    return visium


def transpose(visium):
    columns = ["pxl_row_in_fullres", "pxl_col_in_fullres"]
    visium.table[columns] = visium.table[columns[::-1]].to_numpy()
    visium.positions()


def test_the_right_way_round_says_nothing(slide, caplog):
    read_section(slide.folder)
    assert "--swap_xy" not in caplog.text


def test_transposed_positions_are_said_and_mended_by_the_flag(slide, caplog):
    right = read_section(slide.folder).obsm["spatial"]
    transpose(slide)
    adata = read_section(slide.folder)
    np.testing.assert_array_equal(adata.obsm["spatial"], right[:, ::-1])  # never changed unasked
    assert "look exchanged" in caplog.text and "give --swap_xy" in caplog.text
    assert str(slide.folder / "spatial/tissue_positions_list.csv") in caplog.text
    caplog.clear()
    np.testing.assert_array_equal(read_section(slide.folder, swap_xy=True).obsm["spatial"], right)
    assert not caplog.text


def test_the_flag_where_it_should_not_be(slide, caplog):
    read_section(slide.folder, swap_xy=True)
    assert "leave --swap_xy out" in caplog.text


@pytest.mark.parametrize("colours", [("white", "white"), ("black", "black"), ("white", "black")])
def test_nothing_is_said_of_an_image_that_says_nothing(slide, caplog, colours):
    image = Image.new("RGB", (1300, 1300), colours[0])
    ImageDraw.Draw(image).ellipse((300, 300, 1000, 1000), colours[1])  # the same both ways round
    image.save(slide.folder / "image.png")
    transpose(slide)
    read_section(slide.folder)
    assert "--swap_xy" not in caplog.text


def test_spots_outside_the_image(slide):
    Image.new("RGB", (1300, 700)).save(slide.folder / "image.png")
    read_section(slide.folder)
    with pytest.raises(InputError, match="leave --swap_xy out, with which they lie within it"):
        read_section(slide.folder, swap_xy=True)
    transpose(slide)
    with pytest.raises(InputError, match=r"1300 x 700 px.*give --swap_xy, with which they lie within it"):
        read_section(slide.folder)
    read_section(slide.folder, swap_xy=True)
    Image.new("RGB", (300, 300)).save(slide.folder / "image.png")
    with pytest.raises(InputError, match="give the right --image") as caught:
        read_section(slide.folder)
    assert "swap_xy" not in str(caught.value)


def test_a_section_without_an_image(legacy_st):
    path = legacy_st.write()
    right = read_section(path).obsm["spatial"]
    np.testing.assert_array_equal(read_section(path, swap_xy=True).obsm["spatial"], right[:, ::-1])
