from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from spabit_jax.errors import InputError
from spabit_jax.readers import read_section
from spabit_jax.readers.orientation import open_used
from spabit_jax.readers.turns import TURNS, inverse, turned

SIZE = 1300


@pytest.fixture
def slide(visium):
    """A Visium folder whose tissue, a wide ellipse in a square image, lies where its spots are; no two ways alike."""
    visium.write()
    for key in ("hires", "lowres"):
        (visium.folder / f"spatial/tissue_{key}_image.png").unlink()
    paint().save(visium.folder / "image.png")
    return visium


def paint(tissue=(150, 60, 140), background=(240, 240, 240)):
    image = Image.new("RGB", (SIZE, SIZE), background)
    draw = ImageDraw.Draw(image)
    draw.ellipse((80, 160, 1230, 520), tissue)
    draw.rectangle((80, 150, 620, 330), background)
    return image


@pytest.fixture
def with_spots(slide):
    """Only the spots that lie on this tissue are in tissue."""
    rows, columns = slide.table["pxl_row_in_fullres"], slide.table["pxl_col_in_fullres"]
    image = np.asarray(Image.open(slide.folder / "image.png"))
    slide.table["in_tissue"] &= image[np.minimum(rows, SIZE - 1), columns, 1] < 100
    slide.positions()
    return slide


def transpose(visium):
    columns = ["pxl_row_in_fullres", "pxl_col_in_fullres"]
    visium.table[columns] = visium.table[columns[::-1]].to_numpy()
    visium.positions()


def test_the_right_way_round_says_nothing(with_spots, caplog):
    read_section(with_spots.folder)
    assert "image.png" not in caplog.text


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


@pytest.mark.parametrize("way", TURNS[1:-1])
def test_a_turned_image_is_named_and_mended(with_spots, caplog, way):
    """In each way round, the flag that is named gives the windows of the image as it should be."""
    path = with_spots.folder / "image.png"
    right = np.asarray(Image.open(path))
    Image.fromarray(np.ascontiguousarray(turned(right, inverse(way)))).save(path)
    read_section(with_spots.folder)
    assert f"and give --turn={way} if so" in caplog.text
    caplog.clear()
    adata = read_section(with_spots.folder, turn=way)
    assert not caplog.text
    np.testing.assert_array_equal(open_used(adata.uns["spabit"]).read(-30, 200, 700, 90)[:, 30:], right[200:290, :670])
    library = adata.uns["spatial"]["S1"]
    np.testing.assert_array_equal(library["images"]["hires"], right)
    assert library["scalefactors"]["tissue_hires_scalef"] == 1
    assert "spot_diameter_fullres" in library["scalefactors"]


def test_a_turn_too_many(with_spots, caplog):
    read_section(with_spots.folder, turn=90)
    assert "leave --turn out" in caplog.text
    for wrong in ("45", "mirrored"):
        with pytest.raises(InputError, match="mirror\\+90"):
            read_section(with_spots.folder, turn=wrong)
    with pytest.raises(InputError, match="no image to turn"):
        read_section(with_spots.folder, turn="90", image="none")


def test_an_h5ad_knows_how_its_image_is_turned(with_spots, tmp_path, caplog):
    path = with_spots.folder / "image.png"
    paint().transpose(Image.Transpose.ROTATE_90).save(path)
    adata = read_section(with_spots.folder, turn="90")
    adata.write_h5ad(tmp_path / "kept.h5ad")
    again = read_section(tmp_path / "kept.h5ad", image=path, name="S1")
    assert again.uns["spabit"]["turn"] == "90" and not caplog.text
    in_memory = read_section(adata, image=path, turn="0", name="S1")
    assert in_memory.uns["spabit"]["turn"] == "0" and "give --turn=90" in caplog.text


def test_fluorescence_is_light_on_black(with_spots, caplog):
    paint((90, 90, 200), (2, 2, 2)).save(with_spots.folder / "image.png")
    read_section(with_spots.folder)
    assert not caplog.text
    paint((90, 90, 200), (2, 2, 2)).rotate(180).save(with_spots.folder / "image.png")
    read_section(with_spots.folder)
    assert "--turn=180" in caplog.text


@pytest.mark.parametrize("colours", [("white", "white"), ("black", "black"), ("white", "black")])
def test_no_way_round_is_named_where_the_image_tells_none(slide, caplog, colours):
    image = Image.new("RGB", (1300, 1300), colours[0])
    ImageDraw.Draw(image).ellipse((300, 300, 1000, 1000), colours[1])  # the same in all ways
    image.save(slide.folder / "image.png")
    transpose(slide)
    read_section(slide.folder)
    assert "--swap_xy" not in caplog.text and "--turn" not in caplog.text
    assert ("blank" in caplog.text) == (colours[0] == colours[1])


def test_an_image_of_something_else(with_spots, caplog):
    image = Image.new("RGB", (4000, 4000), (240, 240, 240))
    ImageDraw.Draw(image).ellipse((1800, 1800, 2600, 2500), (150, 60, 140))
    image.save(with_spots.folder / "image.png")
    read_section(with_spots.folder)
    assert "0% of the spots lie on its tissue" in caplog.text and "--image=none" in caplog.text
    adata = read_section(with_spots.folder, image="none")
    assert "image_path" not in adata.uns["spabit"] and "spatial" not in adata.uns


def test_few_spots_outside_are_counted_and_most_refused(slide, caplog):
    Image.new("RGB", (1300, 700)).save(slide.folder / "image.png")
    read_section(slide.folder)
    assert "spots lie outside" not in caplog.text
    read_section(slide.folder, swap_xy=True)
    assert "20 of 44 spots lie outside of it" in caplog.text and "leave --swap_xy out, with which all" in caplog.text
    Image.new("RGB", (300, 300)).save(slide.folder / "image.png")
    with pytest.raises(InputError, match="300 x 300 px.*at most 0.25.*the right --image") as caught:
        read_section(slide.folder)
    assert "swap_xy" not in str(caught.value) and "turn" not in str(caught.value)


@pytest.mark.parametrize("scale", [0.15, 0.4])
def test_an_image_that_is_too_small_and_how_to_give_it(with_spots, caplog, scale):
    small = paint().resize((round(SIZE * scale),) * 2, Image.Resampling.BOX)
    small.save(with_spots.folder / "image.png")
    with pytest.raises(InputError) as caught:
        read_section(with_spots.folder)
    found = float(str(caught.value).split("about --image_scale=")[1].split(",")[0])
    assert abs(found / scale - 1) < 0.1
    adata = read_section(with_spots.folder, image_scale=scale)
    assert adata.uns["spabit"]["image_scale"] == scale and not caplog.text
    assert adata.uns["spatial"]["S1"]["scalefactors"]["tissue_hires_scalef"] == scale
    for wrong in (0, -1, float("nan")):
        with pytest.raises(InputError, match="--image_scale"):
            read_section(with_spots.folder, image_scale=wrong)


@pytest.mark.parametrize("scale", [0.8, 1.5, 2])
def test_an_image_of_another_scale_in_which_spots_lie_all_the_same(with_spots, caplog, scale):
    paint().resize((round(SIZE * scale),) * 2, Image.Resampling.BOX).save(with_spots.folder / "image.png")
    caplog.clear()
    read_section(with_spots.folder)
    found = float(caplog.text.split("about --image_scale=")[1].split(";")[0])
    assert abs(found / scale - 1) < 0.1 and "turn" not in caplog.text
    caplog.clear()
    read_section(with_spots.folder, image_scale=scale)
    assert not caplog.text


def test_a_copy_of_a_preview_has_its_scale(with_spots, caplog):
    folder = with_spots.folder
    (folder / "image.png").unlink()
    small = paint().resize((650, 650), Image.Resampling.BOX)
    small.save(folder / "spatial/tissue_hires_image.png")
    for name in ("S1_tissue_hires_image.png", "my_he.png", "S1_image.png"):
        small.save(folder / name)
    adata = read_section(folder)
    assert adata.uns["spabit"]["image_path"].endswith("spatial/tissue_hires_image.png")
    assert "S1_image.png: 650 x 650 px, but" in caplog.text
    caplog.clear()
    for name, said in (("S1_tissue_hires_image.png", 0), ("my_he.png", 1)):
        adata = read_section(folder, image=folder / name)
        assert adata.uns["spabit"]["image_scale"] == 0.5 and caplog.text.count("0.5 times as large") == said
    with pytest.raises(InputError, match="650 x 650"):
        read_section(folder, image=folder / "my_he.png", image_scale=1)


def test_a_section_without_an_image(legacy_st):
    path = legacy_st.write()
    right = read_section(path).obsm["spatial"]
    np.testing.assert_array_equal(read_section(path, swap_xy=True).obsm["spatial"], right[:, ::-1])
    np.testing.assert_array_equal(read_section(read_section(path), swap_xy=True).obsm["spatial"], right[:, ::-1])
    for given, message in (({"bin_um": 8}, "--bin_um is not for"), ({"format": "st"}, "format='st' of an AnnData")):
        with pytest.raises(InputError, match=message):
            read_section(read_section(path), **given)
