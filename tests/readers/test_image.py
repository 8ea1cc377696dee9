from __future__ import annotations

import pickle
import tracemalloc
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from spabit_jax.errors import InputError
from spabit_jax.readers import image as image_module
from spabit_jax.readers.image import open_image
from spabit_jax.readers.turns import TURNS, after, inverse, turned, turned_xy

WIDTH, HEIGHT = 131, 97


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def pyramid(path, pixels, subifds=True, **kwargs):
    options = {"tile": (32, 32), "photometric": "rgb", "compression": "zlib", "metadata": None, **kwargs}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(pixels, subifds=2 if subifds else None, **options)
        tiff.write(pixels[::2, ::2], subfiletype=1, **options)
        tiff.write(pixels[::4, ::4], subfiletype=1, **options)


def planes(pixels):
    return np.ascontiguousarray(np.moveaxis(pixels, 2, 0))


def with_alpha(pixels):
    return np.dstack([pixels, np.full((HEIGHT, WIDTH), 255, np.uint8)])


FORMATS = {
    "a.png": lambda path, p: Image.fromarray(p).save(path),
    "alpha.png": lambda path, p: Image.fromarray(with_alpha(p)).save(path),
    "pyramid.tif": pyramid,
    "pages.tif": lambda path, p: pyramid(path, p, subifds=False),
    "whole.tif": lambda path, p: tifffile.imwrite(path, p, photometric="rgb"),
    "strips.tif": lambda path, p: tifffile.imwrite(path, p, photometric="rgb", compression="lzw", rowsperstrip=7),
    "strip.tif": lambda path, p: tifffile.imwrite(path, p, photometric="rgb", compression="lzw", rowsperstrip=HEIGHT),
    "planar.tif": lambda path, p: tifffile.imwrite(path, planes(p), photometric="rgb", planarconfig="separate"),
    "pages3.tif": lambda path, p: tifffile.imwrite(path, planes(p), photometric="minisblack", compression="zlib"),
    "x.ome.tif": lambda path, p: tifffile.imwrite(
        path, planes(p), photometric="minisblack", metadata={"axes": "CYX"}, tile=(32, 32)
    ),
    "deep.tif": lambda path, p: tifffile.imwrite(path, p.astype(np.uint16) * 257, photometric="rgb", byteorder=">"),
    "alpha.tif": lambda path, p: tifffile.imwrite(
        path, with_alpha(p), photometric="rgb", extrasamples=["unassalpha"], tile=(32, 32)
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_windows_equal_slices(tmp_path, pixels, name):
    FORMATS[name](tmp_path / name, pixels)
    image = open_image(tmp_path / name)
    assert (image.width, image.height) == (WIDTH, HEIGHT)
    for copy in (image, pickle.loads(pickle.dumps(image))):
        np.testing.assert_array_equal(copy.read(30, 17, 41, 53), pixels[17:70, 30:71])
        np.testing.assert_array_equal(copy.read(0, 0, WIDTH, HEIGHT), pixels)
        copy.close()


@pytest.mark.parametrize("name", ["a.png", "pyramid.tif"])
def test_white_outside(tmp_path, pixels, name):
    FORMATS[name](tmp_path / name, pixels)
    image = open_image(tmp_path / name)
    padded = np.pad(pixels, ((40, 40), (40, 40), (0, 0)), constant_values=255)
    for x, y in [(-7, -9), (120, 80), (-40, 20), (50, -30)]:
        np.testing.assert_array_equal(image.read(x, y, 30, 20), padded[y + 40 : y + 60, x + 40 : x + 70])
    assert (image.read(500, 500, 3, 2) == 255).all()
    image.close()


def test_gray_and_transparency(tmp_path, pixels):
    gray = pixels[..., 0]
    Image.fromarray(gray).save(tmp_path / "gray.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    tifffile.imwrite(tmp_path / "gray.tif", gray, photometric="minisblack", tile=(32, 32))
    for name in ("gray.png", "deep.png", "gray.tif"):
        image = open_image(tmp_path / name)
        np.testing.assert_array_equal(image.read(3, 2, 20, 30), np.repeat(gray[2:32, 3:23, None], 3, axis=2))
        image.close()
    clear = with_alpha(pixels)
    clear[..., 3] = 0
    Image.fromarray(clear).save(tmp_path / "clear.png")
    assert (open_image(tmp_path / "clear.png").read(0, 0, 5, 5) == 255).all()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("max_px", [20, 40, 1000])
def test_thumbnail(tmp_path, name, max_px):
    """A horizontal and a vertical ramp keep their values at the scaled places."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    ramps = np.stack([x, y, np.full_like(x, 80)], axis=2).astype(np.uint8)
    FORMATS[name](tmp_path / name, ramps)
    image = open_image(tmp_path / name)
    thumbnail, scale = image.thumbnail(max_px)
    image.close()
    assert scale == min(1, max_px / WIDTH)
    assert thumbnail.shape == (round(HEIGHT * scale), round(WIDTH * scale), 3) and thumbnail.dtype == np.uint8
    columns = (np.arange(thumbnail.shape[1]) + 0.5) / scale - 0.5
    rows = (np.arange(thumbnail.shape[0]) + 0.5) / scale - 0.5
    np.testing.assert_allclose(thumbnail[..., 0].mean(axis=0), columns, atol=3)
    np.testing.assert_allclose(thumbnail[..., 1].mean(axis=1), rows, atol=3)
    assert (thumbnail[..., 2] == 80).all()


def test_jpeg(tmp_path):
    ramp = np.repeat(np.linspace(0, 255, 640).astype(np.uint8)[None, :, None], 480, axis=0).repeat(3, axis=2)
    Image.fromarray(ramp).save(tmp_path / "a.jpg", quality=95)
    image = open_image(tmp_path / "a.jpg")
    thumbnail, scale = image.thumbnail(80)
    assert thumbnail.shape == (60, 80, 3) and scale == 0.125
    assert image._pixels is None  # decoded at an eighth, not whole
    np.testing.assert_allclose(thumbnail[30, :, 0], np.linspace(1, 254, 80), atol=4)
    assert np.abs(image.read(100, 50, 64, 32).astype(int) - ramp[50:82, 100:164]).max() < 6


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_large_tiff_is_never_loaded_whole(tmp_path, compression):
    """12 GB of pixels, of which 4 tiles (or a memory map's pages) are read."""
    path, side, tile = tmp_path / "large.tif", 65536, 4096
    marked = np.full((tile, tile, 3), 7, np.uint8)
    if compression:
        tiles = (zlib.compress(marked) if i == 5 * 16 + 3 else b"" for i in range(16 * 16))  # b"": left out
        tifffile.imwrite(
            path, tiles, shape=(side, side, 3), dtype=np.uint8, tile=(tile, tile), photometric="rgb", bigtiff=True,
            compression=compression,
        )  # fmt: skip
    else:
        tifffile.imwrite(path, shape=(side, side, 3), dtype=np.uint8, photometric="rgb", bigtiff=True)
        with tifffile.TiffFile(path) as tiff:
            start = tiff.pages[0].dataoffsets[0]
        with open(path, "r+b") as file:
            for row in (5 * tile, 5 * tile + 1):
                file.seek(start + (row * side + 3 * tile) * 3)
                file.write(bytes([7]) * 6)
    image = open_image(path)
    tracemalloc.start()
    window = image.read(3 * tile - 2, 5 * tile - 2, 4, 4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    image.close()
    assert peak < 5 * marked.nbytes  # 0.25 GB
    expected = np.full((4, 4), 255 if compression else 0)  # white where the scanner left tiles out
    expected[2:, 2:] = 7
    np.testing.assert_array_equal(window[..., 0], expected)


def test_thumbnail_reads_the_smallest_level(tmp_path, pixels, monkeypatch):
    pyramid(tmp_path / "a.tif", pixels)
    image = open_image(tmp_path / "a.tif")
    levels, original = [], image._clip
    monkeypatch.setattr(image, "_clip", lambda *args: (levels.append(args[4]), original(*args))[1])
    for max_px in (30, 60, 100):
        image.thumbnail(max_px)
    assert levels == [2, 1, 0]
    image.close()


def test_thumbnail_without_a_pyramid_in_bands(tmp_path, pixels, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb")
    image = open_image(tmp_path / "a.tif")
    whole, _ = image.thumbnail(30)
    monkeypatch.setattr(image_module, "_BAND_BYTES", 3 * WIDTH * 8)
    banded, _ = image.thumbnail(30)
    np.testing.assert_array_equal(whole, banded)
    image.close()


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("name", ["a.png", "pyramid.tif"])
def test_a_turned_image(tmp_path, pixels, name, turn):
    """Windows and thumbnail are those of the turned picture; where a pixel goes, its coordinates go."""
    FORMATS[name](tmp_path / name, pixels)
    image, whole = open_image(tmp_path / name, turn), turned(pixels, turn)
    assert (image.height, image.width) == whole.shape[:2]
    np.testing.assert_array_equal(image.read(-5, 11, 60, 70)[:, 5:], whole[11:81, :55])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(image)).read(20, 30, 9, 7), whole[30:37, 20:29])
    np.testing.assert_array_equal(image.thumbnail(40)[0], turned(open_image(tmp_path / name).thumbnail(40)[0], turn))
    x, y = turned_xy([[30.5, 20.5]], turn, (WIDTH, HEIGHT))[0].astype(int)
    np.testing.assert_array_equal(whole[y, x], pixels[20, 30])
    for other in TURNS:
        np.testing.assert_array_equal(turned(whole, other), turned(pixels, after(turn, other)))
    np.testing.assert_array_equal(turned(whole, inverse(turn)), pixels)
    image.close()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_tags(tmp_path, pixels, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    tags = [(274, 3, 1, orientation, True)]
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", compression="zlib", extratags=tags)
    with Image.open(tmp_path / "a.png") as stored:
        upright = np.asarray(ImageOps.exif_transpose(stored))
    for name in ("a.png", "a.tif"):
        image = open_image(tmp_path / name)
        np.testing.assert_array_equal(image.read(0, 0, image.width, image.height), upright)
        assert image.orientation == orientation
        turned_too = open_image(tmp_path / name, "90")
        np.testing.assert_array_equal(turned_too.read(0, 0, image.height, image.width), turned(upright, "90"))


@pytest.mark.parametrize(("bits", "dtype"), [(8, np.uint16), (12, np.uint16), (14, np.uint16), (1, "f4"), (8, "f8")])
def test_the_white_of_the_values_that_are_used(tmp_path, pixels, bits, dtype):
    white = 1 if dtype == "f4" else 2**bits - 1
    values = pixels / 255 * white
    values = (np.rint(values) if dtype != "f4" else values).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", tile=(32, 32))
    image = open_image(tmp_path / "a.tif")
    assert image.white == white
    np.testing.assert_array_equal(image.read(0, 0, WIDTH, HEIGHT), pixels)
    if bits == 12:
        Image.fromarray(values[..., 0]).save(tmp_path / "gray.png")
        gray = open_image(tmp_path / "gray.png").read(0, 0, WIDTH, HEIGHT)
        np.testing.assert_array_equal(gray[..., 1], pixels[..., 0])
        opaque = np.full((HEIGHT, WIDTH, 1), white, dtype)
        for png in (values, np.concatenate([values, opaque], axis=2)):
            (tmp_path / "colours.png").write_bytes(imagecodecs.png_encode(png))
            found = open_image(tmp_path / "colours.png")
            np.testing.assert_array_equal(found.read(0, 0, WIDTH, HEIGHT), pixels)
            np.testing.assert_array_equal(found.thumbnail(max(WIDTH, HEIGHT))[0], pixels)
        (tmp_path / "la.png").write_bytes(imagecodecs.png_encode(np.concatenate([values[..., :1], opaque], axis=2)))
        np.testing.assert_array_equal(open_image(tmp_path / "la.png").read(0, 0, WIDTH, HEIGHT)[..., 2], pixels[..., 0])


def test_floats_a_little_above_one_are_floats_to_one(tmp_path, pixels):
    values = (pixels / 255).astype(np.float32)
    values[0, 0] = 1.02
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb")
    np.testing.assert_array_equal(open_image(tmp_path / "a.tif").read(0, 1, WIDTH, HEIGHT - 1), pixels[1:])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_tiles_that_the_scanner_left_out_are_white(tmp_path, dtype):
    """Also where the values that are there have 12 bits in 16, or are floats."""
    top = {np.uint8: 255, np.uint16: 4095, np.float32: 1}[dtype]
    tile = np.full((64, 64, 3), top, dtype)
    tile[:32] = 0
    tiles = (zlib.compress(tile.tobytes()) if i == 0 else b"" for i in range(4))
    options = {"dtype": dtype, "tile": (64, 64), "photometric": "rgb", "compression": "zlib"}
    tifffile.imwrite(tmp_path / "a.tif", tiles, shape=(128, 128, 3), **options)
    expected = np.full((128, 128, 3), 255)
    expected[:32, :64] = 0
    np.testing.assert_array_equal(open_image(tmp_path / "a.tif").read(0, 0, 128, 128), expected)


def test_what_would_have_to_be_decoded_whole_has_bounds(tmp_path, pixels, monkeypatch):
    """A small file may hold any number of pixels; windows of a tiled one are no danger."""
    monkeypatch.setattr(image_module, "_WHOLE_PX", WIDTH * HEIGHT - 1)
    for name in ("a.png", "strip.tif"):
        FORMATS[name](tmp_path / name, pixels)
        with pytest.raises(InputError, match="131 x 97 px in one piece|97 x 131 px in one piece"):
            open_image(tmp_path / name).read(0, 0, 2, 2)
    FORMATS["pyramid.tif"](tmp_path / "pyramid.tif", pixels)
    np.testing.assert_array_equal(open_image(tmp_path / "pyramid.tif").read(0, 0, 20, 20), pixels[:20, :20])


def test_bad_files(tmp_path, pixels):
    pyramid(tmp_path / "cut.tif", pixels)
    Image.fromarray(pixels).save(tmp_path / "cut.jpg")
    for name in ("cut.tif", "cut.jpg"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) * 2 // 3])
    (tmp_path / "text.png").write_text("<html>not found</html>")
    (tmp_path / "text.tif").write_text("<html>not found</html>")
    (tmp_path / "header.tif").write_bytes(b"II*\0")
    tifffile.imwrite(tmp_path / "int.tif", pixels.astype(np.int32), photometric="rgb")
    tifffile.imwrite(tmp_path / "five.tif", np.zeros((5, 40, 50), np.uint8), photometric="minisblack")
    for name, match in [
        ("cut.tif", "truncated"),
        ("cut.jpg", "truncated"),
        ("text.png", "not a readable image"),
        ("text.tif", "not a TIFF"),
        ("header.tif", "not a readable image"),
        ("int.tif", "int32"),
        ("five.tif", "an RGB or gray image is needed"),
        ("none.tif", "no such image file"),
    ]:
        with pytest.raises(InputError, match=match) as error:
            open_image(tmp_path / name).read(0, 0, WIDTH, HEIGHT)
        assert name in str(error.value) and "\n" not in str(error.value)


def test_colours_that_only_jpeg_holds_apart(tmp_path):
    """YCbCr in any other compression is stored as it is, and would be taken for RGB."""
    pixels = np.full((32, 32, 3), (200, 60, 120), np.uint8)
    Image.fromarray(pixels).convert("YCbCr").save(tmp_path / "a.tif")
    with pytest.raises(InputError, match="a.tif: a TIFF in YCBCR colours that are not JPEG: convert it to RGB"):
        open_image(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "b.tif", pixels, photometric="rgb", compression="jpeg", tile=(16, 16))
    assert np.abs(open_image(tmp_path / "b.tif").read(0, 0, 32, 32).astype(int) - pixels).max() < 8
