"""Maps of places over the H&E: their extent, their colours and the shape of a place.

Places are drawn as wide as what was measured there, ``uns["spabit"]["spot_px"]``, or less where they lie closer: they
touch and do not overlap. Spots are discs, those of legacy ST on its square lattice too. Squares are the places of a
``um:`` grid, and those of a section whose lattice is square and whose format has bins (``SQUARE_FORMATS``).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from anndata import AnnData
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.path import Path as Outline
from matplotlib.text import Text
from matplotlib.transforms import AffineDeltaTransform
from scipy import sparse
from scipy.spatial import KDTree

from spabit_jax.data.tissue import thumbnail
from spabit_jax.files import replacing
from spabit_jax.neighbours import spot_pitch

Files = str | os.PathLike | Sequence[str | os.PathLike]
SQUARE_FORMATS = ("visium", "visium_hd", "xenium", "spatialdata")  # visium with a square lattice: DBiT-seq and its like
WIDTH = 5.4  # inches (137 mm): text of TEXT points is still read on a phone
TEXT = 8.5
DPI, PAD = 200, 0.1  # PAD in inches, around what is drawn
AS_PIXELS = 20_000  # places of a map, from which on they are pixels in PDF and SVG too, or these were too large
DRAWN_PX = 800  # of an image, at least: a panel has no more, and resampling takes its time
# Okabe and Ito: told apart by the colour-blind
BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
PALETTE = (ORANGE, BLUE, GREEN, PURPLE, SKY, YELLOW, "black")
GREY = "0.45"
_HOLE = 0.6  # of a ring, as a share of its width


def of_gene(adata: AnnData, gene: str, layer: str | None = None) -> np.ndarray:
    """(N,) values of a gene, in ``X`` or a layer; a column of ``obs`` may have its name."""
    column = adata[:, gene]
    values = column.X if layer is None else column.layers[layer]
    return np.asarray(values.toarray() if sparse.issparse(values) else values).ravel()


def colour_limits(spots: AnnData, gene: str) -> tuple[float, float]:
    """The ends of a gene's colours in every map of a run: the 1% and 99% quantiles of what was measured and predicted.

    Args:
      spots: content of the run's predictions.h5ad.
    """
    measured = [of_gene(spots, gene, "truth")] if "truth" in spots.layers else []
    values = np.concatenate([*measured, of_gene(spots, gene)])
    values = values[np.isfinite(values)]
    low, high = np.maximum(np.quantile(values, [0.01, 0.99]), 0)
    high = high if high > low else values.max()  # of a gene that is rarely seen
    return float(low), float(high if high > low else low + 1)


def map_grid(adata: AnnData, xy: np.ndarray, n_rows: int, n_columns: int) -> tuple[Figure, np.ndarray]:
    """A figure of maps (n_rows, n_columns) over the extent of (N, 2) places, y down; a scale bar where µm are known."""
    um_per_px = adata.uns.get("spabit", {}).get("um_per_px")
    low, high = xy.min(axis=0), xy.max(axis=0)
    margin = 0.03 * (high - low).max() or 1.0
    low, high = low - margin, high + margin
    panel = min(2.3, (WIDTH - 0.7) / n_columns)  # inches
    inch = (high - low)[0] / panel  # pixels
    bar_y = high[1] + 0.08 * inch  # below all places
    high[1] += 0.2 * inch * (um_per_px is not None)
    width, height = high - low
    size = (panel * n_columns + 0.7, n_rows * (panel * min(1.6, height / width) + 0.45) + 0.4)
    figure = Figure(figsize=size, layout="compressed")
    axes = figure.subplots(n_rows, n_columns, squeeze=False)
    for ax in axes.flat:
        ax.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), xticks=[], yticks=[], aspect="equal")
        ax.spines[:].set_color("0.8")
    if um_per_px is not None:
        um = _round_length(width * um_per_px / 4)
        ends = low[0] + 0.06 * inch + np.array([0, um / um_per_px])
        axes[0, 0].plot(ends, [bar_y, bar_y], color="black", linewidth=2, solid_capstyle="butt")
        where = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
        axes[0, 0].annotate(f"{um:g} µm", (ends[1], bar_y), fontsize=TEXT, **where)
    return figure, axes


def _round_length(most: float) -> float:
    """1, 2 or 5 times a power of ten."""
    power = 10.0 ** np.floor(np.log10(most))
    return max(step * power for step in (1, 2, 5) if step * power <= most)


def draw_places(
    ax: Axes,
    adata: AnnData,
    values: np.ndarray,
    limits: tuple[float, float],
    cmap="viridis",
    spots: AnnData | None = None,
    rings: np.ndarray | None = None,
) -> PathCollection:
    """Draws the places whose value is known over the image where there is one.

    Args:
      adata: (N, G) with the places.
      values: (N,), NaN where unknown.
      limits: values of the first and the last colour.
      spots: the run's predictions at the measured spots, which say how wide a spot is; if None, ``adata`` does.
      rings: (N,) bool, places that are drawn as rings.
    """
    if found := thumbnail(adata):
        image, scale = found
        extent = (0, image.shape[1] / scale, image.shape[0] / scale, 0)
        step = max(1, max(image.shape) // DRAWN_PX)
        ax.imshow(image[::step, ::step], extent=extent, alpha=0.4)
    spots = adata if spots is None else spots
    xy, known = np.asarray(adata.obsm["spatial"], float), np.isfinite(values)
    outline = _outline(adata, spots, min(_pitch(xy[known]), _spot_px(spots)))
    rings = np.zeros(len(xy), bool) if rings is None else rings
    for among, shape in ((known & rings, _ring(outline)), (known & ~rings, outline)):
        drawn = PathCollection(
            [shape], offsets=xy[among], offset_transform=ax.transData, transform=AffineDeltaTransform(ax.transData)
        )
        drawn.set(array=values[among], cmap=cmap, clim=limits, linewidth=0)
        drawn.set_rasterized(len(xy) >= AS_PIXELS)
        drawn.set_antialiased(len(shape.vertices) != 5)  # full squares that touch would have pale seams
        ax.add_collection(drawn, autolim=False)
    return drawn


def _outline(adata: AnnData, spots: AnnData, width: float) -> Outline:
    """What a place looks like, in pixels around it: a disc, or a square turned as the grid is."""
    info = spots.uns.get("spabit", {})
    in_um = str(adata.uns.get("spabit", {}).get("locations", "")).startswith("um:")
    if not in_um and (info.get("lattice") != "square" or info.get("format") not in SQUARE_FORMATS):
        return Outline.circle(radius=width / 2)
    turn = 0.0 if in_um else _turn(np.asarray(spots.obsm["spatial"], float))
    corners = width / 2**0.5 * np.exp(1j * (turn + np.pi * (np.arange(5) / 2 + 0.25)))
    return Outline(np.stack([corners.real, corners.imag], axis=1), closed=True)


def _ring(outline: Outline) -> Outline:
    points = outline.vertices
    hole = _HOLE * np.concatenate([points[-2::-1], points[-1:]])  # the other way round, or it would be filled
    return Outline.make_compound_path(outline, Outline(hole, outline.codes))


def _turn(xy: np.ndarray) -> float:
    """Angle by which a square grid, (N, 2) places, is turned from the axes, between -π/4 and π/4."""
    if len(xy) < 2:
        return 0.0
    nearest = KDTree(xy).query(xy, k=2)[1][:, 1]
    step = (xy[nearest] - xy) @ np.array([1, 1j])
    return float(np.angle(np.sum(step**4)) / 4)


def _spot_px(spots: AnnData) -> float:
    """Width of what is measured at a spot, in full-resolution pixels."""
    if "spot_px" in spots.uns.get("spabit", {}):
        return float(spots.uns["spabit"]["spot_px"])
    for library in spots.uns.get("spatial", {}).values():
        if "spot_diameter_fullres" in library["scalefactors"]:
            return float(library["scalefactors"]["spot_diameter_fullres"])
    xy, measured = np.asarray(spots.obsm["spatial"], float), (spots.obs["split"] != "new").to_numpy()
    for places in (xy[measured], xy):
        if (pitch := _pitch(places)) < np.inf:
            return pitch / 2
    return 1.0


def _pitch(xy: np.ndarray) -> float:
    """Distance of neighbouring places, (N, 2) → px; infinite where there are no two."""
    places = np.unique(xy, axis=0)
    return spot_pitch(places) if len(places) > 1 else np.inf


def colour_bar(figure: Figure, drawn: PathCollection, axes, shown: Sequence[np.ndarray], label: str) -> None:
    """A bar whose ends are pointed where values lie beyond the colours."""
    low, high = drawn.get_clim()
    beyond = any((values < low).any() for values in shown), any((values > high).any() for values in shown)
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[beyond]
    bar = figure.colorbar(drawn, ax=list(axes), extend=extend, shrink=0.9, aspect=14, pad=0.02)
    bar.set_label(label, fontsize=TEXT)
    bar.ax.tick_params(labelsize=TEXT)


def tidy(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25, linewidth=0.6)


def save(figure: Figure, path: Files) -> None:
    """Writes a figure that has a layout into a file, or several: PNG, PDF or SVG by the ending, text stays text."""
    axes = (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis))
    powers = {label for axis in axes for label in axis.get_ticklabels(which="both")}
    for text in set(figure.findobj(Text)) - powers:
        text.set_parse_math(False)  # names of genes and sections may hold $
    figure.dpi = DPI
    figure.get_layout_engine().execute(figure)
    with rc_context({"figure.autolayout": False, "figure.constrained_layout.use": False}):
        figure.set_layout_engine(None)  # laid out: or savefig would draw all, images too, once more beforehand
    box = figure.get_tightbbox().padded(PAD)
    for file in [path] if isinstance(path, str | os.PathLike) else path:
        with replacing(file) as temporary, rc_context({"pdf.fonttype": 42, "svg.fonttype": "none"}):
            # a picture of tissue hardly gets smaller at higher levels, and takes twice as long
            options = {"pil_kwargs": {"compress_level": 3}} if Path(file).suffix == ".png" else {}
            figure.savefig(temporary, dpi=DPI, bbox_inches=box, **options)
