"""Windows and thumbnails of section images of any size, as 8-bit RGB.

TIFF (tiled, stripped, pyramidal, SVS, OME) is read through tifffile and zarr, and OME-Zarr folders through zarr, window
by window; JPEG and PNG through Pillow, decoded once. An image may be turned or mirrored, as its orientation tag says or
as asked. Imports neither jax nor torch.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
import zarr
from PIL import ExifTags, Image

from spabit_jax.errors import InputError
from spabit_jax.readers.pixel_chunks import Chunks
from spabit_jax.readers.turns import after, inverse, quarters, turned, turned_xy

Image.MAX_IMAGE_PIXELS = None  # sections are larger than Pillow's guard against decompression bombs: see _check_size

IMAGE_SUFFIXES = (".tif", ".tiff", ".btf", ".svs", ".jpg", ".jpeg", ".png")  # that are looked for
_TIFF_SUFFIXES = {".tif", ".tiff", ".btf", ".svs", ".ndpi", ".scn", ".qptiff"}
_CHANNEL_AXES = "SCQI"  # samples, channels, unknown, and pages of one channel each
_PHOTOMETRIC = {"RGB", "YCBCR", "MINISBLACK"}
_BAND_BYTES = 2**26  # what a thumbnail without a pyramid holds at a time
_WHOLE_PX = 2**30  # more is not decoded in one piece
_WHITES = (255, 1023, 4095, 16383, 65535)  # 8, 10, 12, 14 and 16 bits
# What brings an image upright whose orientation tag (EXIF, TIFF) is 1, 2, …, 8.
_UPRIGHT = ("0", "mirror", "180", "mirror+180", "mirror+270", "90", "mirror+90", "270")


class SlideImage(ABC):
    """A section image of which windows are read.

    ``width`` and ``height`` are in image pixels. An instance may be pickled, and used after a fork: files are opened
    again in the new process. Pixels are 8-bit RGB: other values are scaled by the white of the range that they use
    (``white``), gray is repeated, and transparency is laid over white.
    """

    path: str
    width: int
    height: int
    orientation = 1  # what the file's orientation tag says
    white = 255

    @abstractmethod
    def _clip(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """The window [y0:y1, x0:x1], which lies inside the image."""

    @abstractmethod
    def _small(self, width: int, height: int) -> tuple[Image.Image, tuple[float, float]]:
        """The whole image, at least so large, and how much of that is image: a reduced pixel may reach beyond it."""

    @abstractmethod
    def close(self) -> None:
        """Forgets open files and decoded pixels; the next read opens them again."""

    def __getstate__(self):
        self.close()
        return self.__dict__

    def __del__(self):
        self.close()

    def read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """The window whose upper left pixel is (x, y).

        Args:
          x, y: column and row of the corner in image pixels; may lie outside the image.
          width, height: of the window in image pixels.

        Returns:
          (height, width, 3) uint8, white outside the image.

        Raises:
          InputError: the file cannot be decoded.
        """
        window = np.full((height, width, 3), 255, np.uint8)
        x0, x1 = max(x, 0), min(x + width, self.width)
        y0, y1 = max(y, 0), min(y + height, self.height)
        if x0 < x1 and y0 < y1:
            window[y0 - y : y1 - y, x0 - x : x1 - x] = _decode(self.path, self._clip, x0, y0, x1, y1)
        return window

    def thumbnail(self, max_px: int) -> tuple[np.ndarray, float]:
        """The whole image, its longer side at most ``max_px``.

        Returns:
          (h, w, 3) uint8 and the scale, thumbnail pixels per image pixel (at most 1).

        Raises:
          InputError: the file cannot be decoded.
        """
        scale = min(1.0, max_px / max(self.width, self.height))
        size = max(1, round(self.width * scale)), max(1, round(self.height * scale))
        small, extent = _decode(self.path, self._small, *size)
        return np.asarray(small.resize(size, Image.Resampling.BILINEAR, box=(0, 0, *extent))), scale


class _PillowImage(SlideImage):
    def __init__(self, path: str):
        self.path, self._pixels = path, None
        with Image.open(path) as image:
            self.width, self.height = image.size
            # the method of PNG images would decode all to look for a tag behind the pixels
            self.orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
        _check_size(path, image.size)
        with Image.open(path) as image:
            image.verify()  # the checksums of a PNG: of a damaged one a part would be black, without a word

    def close(self):
        self._pixels = None

    def _clip(self, x0, y0, x1, y1):
        if self._pixels is None:
            with Image.open(self.path) as image:
                self._pixels = np.asarray(_pillow_rgb(image))
        return self._pixels[y0:y1, x0:x1]

    def _small(self, width, height):
        if self._pixels is not None:
            return Image.fromarray(self._pixels), (self.width, self.height)
        with Image.open(self.path) as image:
            draft = image.draft("RGB", (width, height))  # a JPEG is then decoded at 1/2, 1/4 or 1/8
            return _pillow_rgb(image), draft[1][2:] if draft else image.size


class _Turned(SlideImage):
    """Another image, turned: its windows are cut where they come from, so that nothing is decoded whole for it."""

    def __init__(self, slide: SlideImage, turn: str):
        self._slide, self._turn, self.path, self.orientation = slide, turn, slide.path, slide.orientation
        self.width, self.height = (slide.width, slide.height)[:: -1 if quarters(turn) % 2 else 1]

    @property
    def white(self):
        return self._slide.white

    def close(self):
        self._slide.close()

    def _clip(self, x0, y0, x1, y1):
        corners = turned_xy(np.array([[x0, y0], [x1, y1]]), inverse(self._turn), (self.width, self.height))
        (x0, y0), (x1, y1) = corners.min(0), corners.max(0)
        return turned(self._slide._clip(x0, y0, x1, y1), self._turn)

    def _small(self, width, height):
        small = turned(self._slide.thumbnail(max(width, height))[0], self._turn)
        return Image.fromarray(small), small.shape[1::-1]


class _Pyramid(SlideImage):
    """``_sizes`` are (width, height) of each level, the full one first; ``_clip`` takes a level too."""

    _sizes: list[tuple[int, int]]
    _dtype: np.dtype
    _alpha = False

    @abstractmethod
    def _pixels(self, x0: int, y0: int, x1: int, y1: int, level: int) -> np.ndarray:
        """(y1 - y0, x1 - x0, channels) of a level, as they are stored."""

    @cached_property
    def white(self):
        """The largest value of the range that the image uses: 12 bits come in 16. From up to 25 windows, not all."""
        if self._dtype == np.uint8:
            return 255
        width, height = self._sizes[-1]
        lefts, tops = (np.unique(np.linspace(0, max(side - 128, 0), 5, dtype=int)) for side in (width, height))
        windows = [(x, y, min(x + 128, width), min(y + 128, height)) for x in lefts for y in tops]
        pixels = np.concatenate([self._pixels(*window, len(self._sizes) - 1)[..., :3].ravel() for window in windows])
        top = pixels[pixels < _blank(self._dtype)].max(initial=0)
        return white_of(top, self._dtype)

    def _clip(self, x0, y0, x1, y1, level=0):
        return rgb(eight_bit(self._pixels(x0, y0, x1, y1, level), self.white), self._alpha)

    def _small(self, width, height):
        level = max(i for i, (w, h) in enumerate(self._sizes) if i == 0 or (w >= width and h >= height))
        full_width, full_height = self._sizes[level]
        factor = max(1, min(full_width // width, full_height // height))
        rows = factor * max(1, _BAND_BYTES // (3 * full_width * factor))
        bands = [
            np.asarray(Image.fromarray(self._clip(0, y, full_width, min(y + rows, full_height), level)).reduce(factor))
            for y in range(0, full_height, rows)
        ]
        return Image.fromarray(np.concatenate(bands)), (full_width / factor, full_height / factor)


class _TiffImage(_Pyramid):
    def __init__(self, path: str):
        self.path, self._pid, self._tiff, self._arrays = path, None, None, {}
        with tifffile.TiffFile(path) as tiff:
            series = _main_series(tiff)
            page = series.keyframe
            if page.photometric.name not in _PHOTOMETRIC:
                raise InputError(f"{path}: a TIFF in {page.photometric.name} colours: convert it to RGB")
            if page.photometric.name == "YCBCR" and "JP" not in page.compression.name:
                raise InputError(f"{path}: a TIFF in YCBCR colours that are not JPEG: convert it to RGB")
            self._dtype = _checked_type(path, series.dtype)
            others = [(a, n) for a, n in zip(series.axes, series.shape, strict=True) if a not in "YX" and n > 1]
            if len(others) > 1 or any(a not in _CHANNEL_AXES or n not in (3, 4) for a, n in others):
                raise InputError(f"{path}: axes {series.axes} {series.shape}: an RGB or gray image is needed")
            self._axes = series.axes
            self._alpha = bool(page.extrasamples) and int(page.extrasamples[0]) in (1, 2)
            tag = page.tags.get("Orientation")
            self.orientation = 1 if tag is None else int(tag.value)
            sizes = [(s.shape[s.axes.index("X")], s.shape[s.axes.index("Y")]) for s in series.levels]
            _check_whole(path, series)
        self._sizes = sizes
        self.width, self.height = sizes[0]

    def close(self):
        if self._tiff is not None:
            self._tiff.close()
        self._pid, self._tiff, self._arrays = None, None, {}

    def _level(self, level: int):
        """A pyramid level as something that is sliced: a zarr array, or a memory map of uncompressed pixels."""
        if self._pid != os.getpid():  # a forked process shares the file's position with its parent
            self.close()
            self._tiff, self._pid = tifffile.TiffFile(self.path), os.getpid()
        if level not in self._arrays:
            series = _main_series(self._tiff)
            plain = series.levels[level]
            if plain.dataoffset is not None:
                dtype = plain.dtype.newbyteorder(self._tiff.byteorder)
                array = np.memmap(self.path, dtype, "r", plain.dataoffset, plain.shape)
            else:
                store = series.aszarr(level=level, fillvalue=_blank(self._dtype))  # what a scanner left out is white
                array = zarr.open_array(store, mode="r")
                _check_size(self.path, [n for n in array.chunks if n > 4])
                array = Chunks(array)
            self._arrays[level] = array
        return self._arrays[level]

    def _pixels(self, x0, y0, x1, y1, level):
        window = {"Y": slice(y0, y1), "X": slice(x0, x1)}
        pixels = self._level(level)[tuple(window.get(a, slice(None) if a in _CHANNEL_AXES else 0) for a in self._axes)]
        axes = [a for a in self._axes if a in window or a in _CHANNEL_AXES]
        order = [axes.index("Y"), axes.index("X"), *(i for i, a in enumerate(axes) if a not in window)]
        return np.asarray(pixels).transpose(order).reshape(y1 - y0, x1 - x0, -1)


class _ZarrImage(_Pyramid):
    """An OME-Zarr image of axes (c, y, x), as SpatialData keeps them."""

    def __init__(self, path: str):
        self.path, self._arrays = path, None
        arrays = self._levels()
        if arrays[0].ndim != 3 or arrays[0].shape[0] not in (1, 3, 4):
            raise InputError(f"{path}: pixels of shape {arrays[0].shape}: (3, y, x) is needed")
        self._dtype, self._alpha = _checked_type(path, arrays[0].dtype), arrays[0].shape[0] == 4
        self._sizes = [array.shape[:0:-1] for array in arrays]
        self.width, self.height = self._sizes[0]

    def close(self):
        self._arrays = None

    def _levels(self):
        if self._arrays is None:
            group = zarr.open_group(self.path, mode="r")
            attributes = group.attrs.get("ome", group.attrs)
            self._arrays = [Chunks(group[level["path"]]) for level in attributes["multiscales"][0]["datasets"]]
        return self._arrays

    def _pixels(self, x0, y0, x1, y1, level):
        return np.moveaxis(self._levels()[level][:, y0:y1, x0:x1], 0, 2)


def open_image(path: str | os.PathLike, turn: str | None = None) -> SlideImage:
    """Opens a section image, a file or an OME-Zarr folder; no pixel is decoded yet.

    Args:
      path: of the image. It is turned upright as its orientation tag says, if it has one.
      turn: how it is turned then, one of ``TURNS``.

    Raises:
      InputError: no such file, not an image, a truncated TIFF, an image that is neither RGB nor gray, or one that can
        only be decoded whole and has more than 2^30 pixels.
    """
    slide = _open(os.fspath(path))
    upright = _UPRIGHT[slide.orientation - 1] if 1 <= slide.orientation <= 8 else "0"
    turn = after(upright, turn or "0")
    return slide if turn == "0" else _Turned(slide, turn)


def _open(path: str) -> SlideImage:
    if Path(path).is_dir():
        return _decode(path, _ZarrImage, path)
    if not Path(path).is_file():
        raise InputError(f"{path}: no such image file")
    with open(path, "rb") as file:
        magic = file.read(4)
    tiff = magic[:2] in (b"II", b"MM") and magic[2:] in (b"*\0", b"\0*", b"+\0", b"\0+")
    if not tiff and Path(path).suffix.lower() in _TIFF_SUFFIXES:
        raise InputError(f"{path}: not a TIFF, whatever its name says: is the download complete?")
    return _decode(path, _TiffImage if tiff else _PillowImage, path)


def _decode(path: str, function, *args):
    """``function(*args)``, with whatever a decoder raises turned into one line."""
    try:
        return function(*args)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # tifffile, imagecodecs and Pillow share no base class
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not a readable image, or truncated ({reason}): replace the file") from error


def _main_series(tiff: tifffile.TiffFile) -> tifffile.TiffPageSeries:
    return max(
        (s for s in tiff.series if {"X", "Y"} <= set(s.axes)),
        key=lambda s: s.shape[s.axes.index("X")] * s.shape[s.axes.index("Y")],
    )


def _check_whole(path: str, series: tifffile.TiffPageSeries) -> None:
    size = Path(path).stat().st_size
    for page in series.pages:
        if page is not None and len(page.dataoffsets):
            end = int((np.asarray(page.dataoffsets, np.uint64) + np.asarray(page.databytecounts, np.uint64)).max())
            if end > size:
                raise InputError(f"{path}: truncated, {size} bytes where {end} are needed: replace the file")


def _check_size(path: str, size: Sequence[int]) -> None:
    """Raises InputError where more would have to be decoded in one piece than a section's image has."""
    if math.prod(size) > _WHOLE_PX:
        raise InputError(
            f"{path}: {' x '.join(map(str, size))} px in one piece, {3 * math.prod(size) / 1e9:.0f} GB: save it as a "
            "tiled TIFF, of which windows are read"
        )


def _checked_type(path: str, dtype: np.dtype) -> np.dtype:
    if dtype.kind not in "uf" or (dtype.kind == "u" and dtype.itemsize > 2):
        raise InputError(f"{path}: pixels of type {dtype}: convert it to 8-bit RGB")
    return np.dtype(dtype)


def _blank(dtype: np.dtype) -> float:
    """What stands for pixels that are not there: above all that are."""
    return np.iinfo(dtype).max if dtype.kind == "u" else np.inf


def white_of(top: float, dtype: np.dtype) -> float:
    """White of pixels of which the largest is ``top``: of the range that they use, whatever they are stored in."""
    if dtype.kind == "f" and top < 2:  # interpolation and colour normalisation go beyond 1
        return 1
    return next((white for white in _WHITES if white >= top), top)


def eight_bit(pixels: np.ndarray, white: float) -> np.ndarray:
    """Pixels of any type as uint8, ``white`` as 255; what is no number is white."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind == "f":
        return np.rint(np.clip(np.nan_to_num(pixels, nan=white) / white, 0, 1) * 255).astype(np.uint8)
    return np.minimum((pixels.astype(np.uint32) * 510 + white) // (2 * white), 255).astype(np.uint8)


def rgb(pixels: np.ndarray, alpha: bool) -> np.ndarray:
    """(h, w, 1, 3 or 4) uint8 to (h, w, 3); a fourth channel is transparency if ``alpha``, else it is dropped."""
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    if pixels.shape[2] == 4 and alpha:
        opacity = pixels[..., 3:].astype(np.uint32)
        return ((pixels[..., :3] * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)
    return pixels[..., :3]


def _pillow_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit gray, which Pillow would clip
        gray = np.asarray(image).astype(np.uint32)
        return Image.fromarray(eight_bit(gray, white_of(min(gray.max(), 65535), gray.dtype))).convert("RGB")
    if image.format == "PNG" and str(image.tile[0].args).endswith(";16B"):  # of which Pillow keeps the first byte
        pixels = imagecodecs.png_decode(Path(image.filename).read_bytes())
        pixels = pixels[..., [0, 0, 0, 1]] if pixels.shape[2] == 2 else pixels
        return Image.fromarray(rgb(eight_bit(pixels, white_of(pixels[..., :3].max(), pixels.dtype)), alpha=True))
    if "A" in image.getbands() or "transparency" in image.info:
        return Image.fromarray(rgb(np.asarray(image.convert("RGBA")), alpha=True))
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")
