"""The image that is used: which way round, how large, and whether spots lie on its tissue."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from absl import logging
from anndata import AnnData
from scipy.ndimage import maximum_filter

from spabit_jax.errors import InputError
from spabit_jax.neighbours import spot_pitch
from spabit_jax.readers.assemble import THUMBNAIL_PX
from spabit_jax.readers.image import SlideImage, open_image
from spabit_jax.readers.turns import TURNS, after, inverse, quarters, turned_xy

_LOOK_PX = 400  # of the image that is looked at
_LOOK_SPOTS = 20_000
# By how much spots must cover the tissue better another way round, and how well. On the nine real sections with an
# image that this was tried on, the right way had a coverage of 0.27 to 0.88 and no other was ahead by more than 0.005.
_MARGIN = 0.05
_COVERED = 0.25
_CHANCE = 0.1
_EXCHANGED = "mirror+270"  # the turn that exchanges x and y
_SURE = 0.5  # a coverage by which a scale is told
# By how much it must be ahead of all ways round, and differ; on the same nine sections none was by more than 0.02.
_SCALE_MARGIN = 0.1
_BLACK = 16  # no tissue is darker: what lies outside of the glass
_COLOURLESS = 20  # of 255, between the channels of a background that is one: not of pale tissue
_BLANK = 3.0  # of 255, the standard deviation of a picture on which there is nothing


class Fit(NamedTuple):
    """How spots lie on an image.

    ``inside`` is the share of spots that it has, ``on_tissue`` that of those on its tissue; ``coverage`` the
    correlation of two masks, pixels near a spot and pixels of tissue, all that is outside of the image being
    background; 0 where one of them says nothing.
    """

    inside: float
    on_tissue: float
    coverage: float


def place_image(adata: AnnData, turn: str | int | None, image_scale: float | None) -> None:
    """Turns the image of a section and sets its scale, as asked, in place; what is plotted is made from it then.

    An image that is as large as a preview in ``uns["spatial"]`` is one: if no scale is given, it has that of the
    preview.

    Raises:
      InputError: no such turn or scale, or no image.
    """
    info = adata.uns["spabit"]
    turn = None if turn is None else str(turn).replace(" ", "+")
    if turn is not None and turn not in TURNS:
        raise InputError(f"--turn={turn}: give {', '.join(TURNS[1:-1])} or {TURNS[-1]} (degrees are clockwise)")
    if image_scale is not None and not 0 < image_scale < np.inf:
        raise InputError(f"--image_scale={image_scale:g}: image pixels per full-resolution pixel are needed, above 0")
    if "image_path" not in info:
        if turn is not None or image_scale is not None:
            raise InputError(f"section {info['name']} has no image to turn or scale: name one with --image=FILE")
        return
    if image_scale is None:
        image_scale = _scale_of_preview(adata)
    scaled = image_scale is not None and image_scale != info["image_scale"]
    if not scaled and turn in (None, info.get("turn", "0")):
        return
    if scaled:
        info["image_scale"] = float(image_scale)
    if turn is not None:
        info["turn"] = turn
    empty = {"images": {}, "scalefactors": {}, "metadata": {}}
    library = adata.uns.setdefault("spatial", {}).setdefault(info["name"], empty)
    image, shrunk = open_used(info).thumbnail(THUMBNAIL_PX)
    kept = {key: value for key, value in library["scalefactors"].items() if not key.startswith("tissue_")}
    library["images"] = {"hires": np.ascontiguousarray(image)}
    library["scalefactors"] = kept | {"tissue_hires_scalef": info["image_scale"] * shrunk}


def open_used(info: dict) -> SlideImage:
    """The image of a section with this ``uns["spabit"]``, as it is used."""
    return open_image(info["image_path"], info.get("turn"))


def _scale_of_preview(adata: AnnData) -> float | None:
    info = adata.uns["spabit"]
    if info["image_scale"] != 1:
        return None
    slide, library = open_used(info), adata.uns.get("spatial", {}).get(info["name"], {"images": {}})
    for key, pixels in library["images"].items():
        scale = library["scalefactors"][f"tissue_{key}_scalef"]
        if pixels.shape[:2] == (slide.height, slide.width) and scale < 1:
            logging.warning(
                "%s: as large as the %s preview of this section, so used as one, %.4g times as large as the picture "
                "in full resolution; --image_scale=1 if it is in full resolution", slide.path, key, scale,
            )  # fmt: skip
            return scale
    return None


def check_image(adata: AnnData, swapped: bool) -> None:
    """Compares the spots with the image in the eight ways round; changes nothing.

    Warns of spots outside of the image, of which windows are white; where the tissue would be covered better by 0.05
    with the image turned or mirrored (``Fit.coverage``); where spots do not lie on tissue; of a blank image; and says
    how pixels were understood that are not 8 bits upright.

    Args:
      adata: a section as ``read_section`` makes it.
      swapped: whether x and y have been exchanged already, for the message.

    Raises:
      InputError: most spots lie outside of the image; says how it would have to be turned or how much it is too small.
    """
    info = adata.uns["spabit"]
    if "image_path" not in info:
        return
    slide, scale = open_used(info), info["image_scale"]
    small, shrunk = slide.thumbnail(_LOOK_PX)
    if slide.orientation != 1:
        logging.info("%s: turned as its orientation tag (%s) says", slide.path, slide.orientation)
    if slide.white not in (255, 65535):
        logging.info("%s: its values go up to %g: that is taken for white", slide.path, slide.white)
    tissue, xy = stained_mask(small), adata.obsm["spatial"] * scale * shrunk
    pitch = _pitch(xy)
    ways = {turn: _fit(xy, tissue, turn, pitch) for turn in TURNS}
    as_is = ways["0"]
    best = max(ways, key=lambda way: (ways[way].inside > 0.5, ways[way].coverage, ways[way].inside, way == _EXCHANGED))
    turn = "" if best == "0" else _remedy(best, info.get("turn", "0"), swapped)
    if as_is.inside <= 0.5:
        raise InputError(_most_outside(slide, adata, ways[best], turn, xy, tissue))
    if as_is.inside < 1:
        logging.warning(
            "%s: %d of %d spots lie outside of it; what their windows have of it is filled up with white%s",
            slide.path, round((1 - as_is.inside) * len(xy)), len(xy),
            f"; {turn}, with which all lie within it" if ways[best].inside == 1 and ways[best].coverage == 0 else "",
        )  # fmt: skip
    if not tissue.any() or tissue.all():
        if small.std(axis=(0, 1)).max() < _BLANK:
            logging.warning("%s: blank, one colour all over: give the right --image, or --image=none", slide.path)
    elif scale == 1 and as_is.coverage and (found := _estimate(xy, tissue, scale, ways[best].coverage + _SCALE_MARGIN)):
        logging.warning(
            "%s: %s; the spots of %s cover its tissue better then", slide.path, found, info["positions_path"]
        )
    elif ways[best].coverage > max(as_is.coverage + _MARGIN, _COVERED):
        logging.warning(
            "%s: %s: the spots of %s cover its tissue with a correlation of %.2f as it is, otherwise of %.2f; look at "
            "the picture, and %s if so",
            slide.path, _looks(best), info["positions_path"], as_is.coverage, ways[best].coverage, turn,
        )  # fmt: skip
    elif as_is.on_tissue < 0.5 and as_is.coverage < _CHANCE and _is_colourless(small[~tissue]):
        logging.warning(
            "%s: %.0f%% of the spots lie on its tissue, whichever way it is turned: is it of this section? Give the "
            "right one with --image, or --image=none to run without", slide.path, 100 * as_is.on_tissue,
        )  # fmt: skip


def _is_colourless(background: np.ndarray) -> bool:
    return bool(np.ptp(np.median(background, axis=0)) < _COLOURLESS)


def _looks(turn: str) -> str:
    if turn == _EXCHANGED:
        return "x and y look exchanged"
    return f"looks {'mirrored' if turn.startswith('mirror') else 'turned'} against the spots"


def _remedy(turn: str, given: str, swapped: bool) -> str:
    """The flag that turns an image, turned as ``given``, once more."""
    if turn == _EXCHANGED and given == "0":
        return "leave --swap_xy out" if swapped else "give --swap_xy"
    total = after(given, turn)
    return "leave --turn out" if total == "0" else f"give --turn={total}"


def _most_outside(slide: SlideImage, adata: AnnData, best: Fit, turn: str, xy: np.ndarray, tissue: np.ndarray) -> str:
    info = adata.uns["spabit"]
    low, high = (bound(adata.obsm["spatial"] * info["image_scale"], axis=0) for bound in (np.min, np.max))
    if best.inside <= 0.5:
        mend = "give the right --image, or --image=none to run without"
        if found := _estimate(xy, tissue, info["image_scale"]) or _most_scale(xy, tissue, info["image_scale"]):
            mend = f"{found}, or {mend}"
    else:
        mend = f"{turn}, with which they lie within it, or give the right --image"
    return (
        f"{slide.path}: {slide.width} x {slide.height} px, but the spots of {info['positions_path']} lie from "
        f"({low[0]:.0f}, {low[1]:.0f}) to ({high[0]:.0f}, {high[1]:.0f}) at scale {info['image_scale']:g}: {mend}"
    )


def _estimate(xy: np.ndarray, tissue: np.ndarray, scale: float, least: float = 0) -> str:
    """How large the picture looks for these spots, and how to say so; empty where it shows nothing.

    The spots are made smaller and larger about the upper left corner, up to where they fill the picture. What is found
    must have a coverage above ``least`` and ``_SURE``.
    """
    most = _fills(xy, tissue)
    if most is None:
        return ""
    factors, pitch = np.geomspace(min(1, most) * 0.3, most, 61), _pitch(xy)
    coverages = [_coverage(xy * factor, tissue, pitch * factor) for factor in factors]
    found = factors[int(np.argmax(coverages))] * scale
    if max(coverages) < max(least, _SURE) or abs(found - scale) < _SCALE_MARGIN * scale:
        return ""
    return f"it looks {found:.2g} times as large as the positions say: give its scale, about --image_scale={found:.2g}"


def _most_scale(xy: np.ndarray, tissue: np.ndarray, scale: float) -> str:
    """How small it must be at least, where spots lie outside of it and nothing else is known."""
    most = _fills(xy, tissue)
    if most is None or most >= 1:
        return ""
    return f"a smaller copy is given with --image_scale, at most {most * scale:.2g} here"


def _fills(xy: np.ndarray, tissue: np.ndarray) -> float | None:
    """By how much the spots (N, 2) may grow about the upper left corner until they fill the picture."""
    return None if (xy.max(axis=0) <= 0).any() else float((np.array(tissue.shape[::-1]) / xy.max(axis=0)).min())


def stained_mask(image: np.ndarray) -> np.ndarray:
    """Which pixels of a picture are tissue: what is darker in one of its colours than the background (Otsu).

    Where the border of the picture is black, as in fluorescence, what is brighter. Black elsewhere is no tissue.

    Args:
      image: (h, w, 3) uint8.

    Returns:
      (h, w) bool; all False if the image has one colour.
    """
    from skimage.filters import threshold_otsu

    dark = 255 - image.min(axis=2).astype(int)
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    if np.median(border.max(axis=1)) < _BLACK:
        dark = image.max(axis=2).astype(int)
    else:
        dark[image.max(axis=2) < _BLACK] = 0
    if dark.std() < _BLANK:
        return np.zeros(dark.shape, bool)
    return dark > threshold_otsu(dark)


def _fit(xy: np.ndarray, tissue: np.ndarray, turn: str, pitch: float) -> Fit:
    """How spots lie on the picture once it is turned: they are turned back, and the picture stays.

    Args:
      xy: (N, 2) in pixels of the picture.
      tissue: (h, w) bool.
      pitch: of the spots, in the same pixels.
    """
    height, width = tissue.shape
    size = (height, width) if quarters(turn) % 2 else (width, height)
    xy = turned_xy(xy, inverse(turn), size)
    inside = ((xy >= 0) & (xy <= [width, height])).all(axis=1)
    column, row = np.clip(xy, 0, [width - 1, height - 1]).astype(int).T
    return Fit(float(inside.mean()), float((tissue[row, column] & inside).mean()), _coverage(xy, tissue, pitch))


def _coverage(xy: np.ndarray, tissue: np.ndarray, pitch: float) -> float:
    height, width = tissue.shape
    xy = _thinned(xy)
    left, top = np.maximum(0, np.ceil(-xy.min(axis=0))).astype(int)
    right, bottom = np.maximum([width, height], np.floor(xy.max(axis=0)).astype(int) + 1) + [left, top]
    if right * bottom > 25 * width * height:  # far outside
        return 0.0
    canvas, spots = np.zeros((2, bottom, right), bool)
    canvas[top : top + height, left : left + width] = tissue
    column, row = (np.floor(xy).astype(int) + [left, top]).T
    spots[row, column] = True
    return _correlation(maximum_filter(spots, 2 * max(1, int(pitch)) + 1), canvas)


def _correlation(near: np.ndarray, tissue: np.ndarray) -> float:
    """Pearson's, of two masks, from their counts: twenty times as fast as of their values."""
    n, a, b, both = (float(count) for count in (near.size, near.sum(), tissue.sum(), (near & tissue).sum()))
    spread = a * (n - a) * b * (n - b)
    return (n * both - a * b) / spread**0.5 if spread else 0.0


def _thinned(xy: np.ndarray) -> np.ndarray:
    return xy[:: max(1, len(xy) // _LOOK_SPOTS)]


def _pitch(xy: np.ndarray) -> float:
    return spot_pitch(_thinned(xy)) if len(xy) > 1 else 0.0
