"""A simulated section with known truth: tissue layers and a tumour, counts, and an H&E-like image.

What a spot expresses depends on its layer, on smooth gradients, and on its local histology: fields that vary over
about a spot pitch, so that the train spots around a test spot say next to nothing about them; the image shows them.
NumPy, SciPy and scikit-image only.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from PIL import Image
from scipy import ndimage, sparse
from skimage.color import hed2rgb
from skimage.transform import resize

from spabit_jax.files import replacing

LATTICES = ("hex", "square")
HISTOLOGY = ("cellularity", "collagen", "immune")
N_LAYERS = 4
SPOT_DIAMETER = 0.55  # of the pitch, as on Visium (55 µm every 100 µm)
PITCH_UM = 100.0
_HISTOLOGY_SIGMA = 0.36  # of the pitch: smoothing width of the local fields, which nothing is left of two pitches away
_LIBRARY_SIZE = 5000.0
_DISPERSION = 5.0  # negative binomial: variance = mean + mean² / dispersion

_MARKERS = {
    "tumour": ["ERBB2", "EPCAM", "KRT8", "KRT18", "KRT19", "MUC1", "GRB7", "CDH1", "CLDN4", "ESR1"],
    "cellularity": ["MKI67", "TOP2A", "PCNA", "MCM2", "CCNB1", "CDK1", "HMGB2", "TYMS", "H2AZ1", "STMN1"],
    "collagen": ["COL1A1", "COL1A2", "COL3A1", "FN1", "SPARC", "DCN", "LUM", "POSTN", "FAP", "BGN"],
    "immune": ["CD3D", "CD74", "CD19", "CD79A", "CD8A", "CXCL13", "CCL19", "IGHG1", "GZMB", "LTB"],
}
_FAMILIES = ["ATP5F", "CCDC", "DNAJB", "EIF", "HSPA", "KIF", "LRRC", "NDUFA", "PSMA", "RAB", "SLC25A", "TMEM", "ZNF"]


def simulate_section(
    seed: int,
    *,
    n_rows: int = 44,
    n_cols: int = 40,
    n_genes: int = 400,
    lattice: str = "hex",
    pitch: float = 45.0,
    name: str = "simulated",
    density: int = 1,
) -> tuple[AnnData, np.ndarray]:
    """Simulates one section.

    Args:
      seed: seed of the NumPy generator; the same seed gives the same section.
      n_rows, n_cols: spots of the array, of which those on the tissue are kept.
      n_genes: genes, a thirtieth of them mitochondrial and a tenth ribosomal.
      lattice: ``hex`` (as Visium: every other row shifted, array_col in steps of 2) or ``square``.
      pitch: distance between neighbouring spots in pixels, standing for 100 µm.
      name: name of the section.
      density: spots per pitch along each axis. What they see stays that of a spot, so that they overlap: with 4, every
        fourth is the section that is measured, and the others say what was to be found between its spots.

    Returns:
      The section of N spots and G genes, and its image (height, width, 3) uint8 at full resolution. ``X`` holds the
      counts (sparse), ``layers["mu"]`` their expectation (N, G), ``obs`` array_row, array_col, in_tissue and label
      (layer or tumour), ``obsm["spatial"]`` (x, y) in pixels, ``obsm["histology"]`` the local fields under each
      spot, ``var["programme"]`` what a gene marks, ``uns["spatial"]`` what scanpy plots with.

    Raises:
      ValueError: unknown lattice, or fewer than 2 rows, 2 columns or 1 gene.
    """
    if lattice not in LATTICES:
        raise ValueError(f"unknown lattice {lattice!r}: one of {', '.join(LATTICES)}")
    if n_rows < 2 or n_cols < 2 or n_genes < 1:
        raise ValueError(f"{n_rows} rows, {n_cols} columns, {n_genes} genes: at least 2, 2 and 1 are needed")
    rng = np.random.default_rng(seed)
    array, xy = _array_positions(n_rows * density, n_cols * density, lattice, pitch / density)
    xy += 1.5 * pitch
    shape = tuple(np.ceil(xy.max(axis=0) + 1.5 * pitch).astype(int)[::-1])  # (height, width)

    tissue, depth, domain = _anatomy(rng, shape)
    fields = np.stack([_smooth_field(rng, shape, _HISTOLOGY_SIGMA * pitch) for _ in HISTOLOGY])
    image = _stain(rng, tissue, depth, domain, fields, pitch)

    row, col = np.rint(xy[:, ::-1]).astype(int).T
    kept = tissue[row, col]
    xy, row, col = xy[kept], row[kept], col[kept]
    radius = SPOT_DIAMETER * pitch / 2
    histology = np.stack([ndimage.gaussian_filter(f, radius / 2)[row, col] for f in fields], axis=1)
    gradients = np.stack([_smooth_field(rng, shape, min(shape) / 6)[row, col] for _ in range(3)], axis=1)

    names, programme = _gene_names(n_genes)
    mu = _expected_counts(rng, programme, domain[row, col], gradients, histology)
    counts = rng.negative_binomial(_DISPERSION, _DISPERSION / (_DISPERSION + mu))

    labels = np.array([f"layer {i + 1}" for i in range(N_LAYERS)] + ["tumour"])
    adata = AnnData(
        X=sparse.csr_matrix(counts.astype(np.float32)),
        obs=pd.DataFrame(
            {
                "in_tissue": 1,
                "array_row": array[kept, 0],
                "array_col": array[kept, 1],
                "label": pd.Categorical(labels[domain[row, col]]),
            },
            index=[f"spot_{r}x{c}" for r, c in array[kept]],
        ),
        var=pd.DataFrame({"programme": pd.Categorical(programme)}, index=names),
        obsm={"spatial": xy, "histology": histology},
        layers={"mu": mu.astype(np.float32)},
    )
    scale = min(1.0, 1000 / max(shape))
    hires = resize(image, [round(side * scale) for side in shape], anti_aliasing=True, preserve_range=True)
    adata.uns["spatial"] = {
        name: {
            "images": {"hires": hires.astype(np.uint8)},
            "scalefactors": {"tissue_hires_scalef": scale, "spot_diameter_fullres": 2 * radius},
        }
    }
    adata.uns["spabit"] = {
        "name": name,
        "format": "simulated",
        "array_min": array.min(axis=0),
        "array_max": array.max(axis=0),
        "lattice": lattice,
        "image_scale": 1.0,
        "um_per_px": PITCH_UM / pitch,
        "spot_px": 2.0 * radius,
    }
    return adata, image


def write_section(adata: AnnData, image: np.ndarray, out_dir: str | os.PathLike) -> Path:
    """Writes ``NAME.h5ad`` and beside it ``NAME.png``, the full-resolution image, where the h5ad reader finds it.

    Args:
      adata: a section whose name is ``uns["spabit"]["name"]``.
      image: (height, width, 3) uint8.
      out_dir: the folder; made if it is not there.

    Returns:
      Path of the h5ad file. Both files are renamed into place when whole, this one last.
    """
    path = Path(out_dir) / f"{adata.uns['spabit']['name']}.h5ad"
    with replacing(path.with_suffix(".png")) as temporary:
        Image.fromarray(image).save(temporary)
    with replacing(path) as temporary:
        adata.write_h5ad(temporary, compression="gzip")
    return path


def _array_positions(n_rows: int, n_cols: int, lattice: str, pitch: float) -> tuple[np.ndarray, np.ndarray]:
    """(N, 2) array (row, col) and (N, 2) pixel (x, y) of every spot of the array."""
    row, col = (index.ravel() for index in np.indices((n_rows, n_cols)))
    if lattice == "hex":
        col = 2 * col + row % 2
        x, y = col * pitch / 2, row * pitch * np.sqrt(3) / 2
    else:
        x, y = col * pitch, row * pitch
    return np.stack([row, col], axis=1), np.stack([x, y], axis=1)


def _smooth_field(rng: np.random.Generator, shape: tuple[int, int], sigma: float) -> np.ndarray:
    """A Gaussian random field (height, width) of smoothing width sigma pixels, with mean 0 and variance 1."""
    step = max(1.0, sigma / 4)  # smoothed on a grid just fine enough, then interpolated
    pad = 8  # so that a field much wider than the image still varies over it
    coarse = [int(np.ceil(side / step)) + 2 * pad for side in shape]
    field = ndimage.gaussian_filter(rng.standard_normal(coarse), sigma / step, mode="wrap")[pad:-pad, pad:-pad]
    field = (field - field.mean()) / field.std()
    return resize(field, shape, order=3).astype(np.float32) if step > 1 else field.astype(np.float32)


def _anatomy(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per pixel: on the tissue or not; depth 0 to 1 across the layers; domain (a layer, or N_LAYERS for the tumour)."""
    y, x = (axis.astype(np.float32) for axis in np.ogrid[-1 : 1 : 1j * shape[0], -1 : 1 : 1j * shape[1]])
    wobble, bend, rim = (_smooth_field(rng, shape, min(shape) / 8) for _ in range(3))
    tissue = np.abs(x) ** 5 + np.abs(y) ** 5 + 0.06 * wobble < 0.8
    depth = y + 0.25 * np.sin(2.2 * x + rng.uniform(0, 2 * np.pi)) + 0.07 * bend
    low, high = depth[tissue].min(), depth[tissue].max()
    depth = np.clip((depth - low) / (high - low), 0, 1)
    domain = np.digitize(depth, np.quantile(depth[tissue], np.linspace(0, 1, N_LAYERS + 1)[1:-1]))
    centre_x, centre_y = rng.uniform(-0.35, 0.35, 2)
    domain[(x - centre_x) ** 2 + (y - centre_y) ** 2 + 0.04 * rim < 0.16] = N_LAYERS
    return tissue, depth, domain


def _gene_names(n_genes: int) -> tuple[list[str], list[str]]:
    """Names and programmes of the genes: mitochondrial, ribosomal, markers in turn, and others."""
    n_mt, n_rp = n_genes // 30, n_genes // 10
    turns = zip(*_MARKERS.values(), strict=True)
    markers = [(gene, kind) for genes in turns for gene, kind in zip(genes, _MARKERS, strict=True)]
    others = [(f"{_FAMILIES[i % len(_FAMILIES)]}{i // len(_FAMILIES) + 1}", "other") for i in range(n_genes)]
    pairs = [(f"MT-ND{i + 1}", "mitochondrial") for i in range(n_mt)]
    pairs += [(f"RPL{i + 1}", "ribosomal") for i in range(n_rp)]
    pairs += (markers + others)[: n_genes - len(pairs)]
    names, programme = zip(*pairs, strict=True)
    return list(names), list(programme)


def _expected_counts(
    rng: np.random.Generator, programme: list[str], domain: np.ndarray, gradients: np.ndarray, histology: np.ndarray
) -> np.ndarray:
    """(N, G) expected counts: library size × share of each gene, log-linear in domain, gradients and histology."""
    n_genes = len(programme)
    by_domain = rng.normal(0, 0.45, (N_LAYERS + 1, n_genes))
    by_gradient = rng.normal(0, 0.25, (gradients.shape[1], n_genes))
    # Each gene follows some of the histology: a few features strongly, not all a little.
    by_histology = rng.normal(0, 0.5, (len(HISTOLOGY), n_genes)) * (rng.random((len(HISTOLOGY), n_genes)) < 0.5)
    for i, kind in enumerate(programme):
        if kind in _MARKERS:
            by_histology[:, i] = 0.8 * (np.array(HISTOLOGY) == kind)
        if kind == "tumour":
            by_domain[:, i] = rng.normal(0, 0.15, N_LAYERS + 1) + 1.5 * (np.arange(N_LAYERS + 1) == N_LAYERS)
    log_share = (
        rng.normal(0, 1, n_genes)
        + 1.5 * np.isin(programme, ["mitochondrial", "ribosomal"])
        + by_domain[domain]
        + gradients @ by_gradient
        + histology @ by_histology
    )
    share = np.exp(log_share)
    share /= share.sum(axis=1, keepdims=True)
    # Dense tissue holds more RNA; the rest of the library size is technical.
    library = _LIBRARY_SIZE * np.exp(0.15 * histology[:, 0] + rng.normal(0, 0.25, len(domain)))
    return library[:, None] * share


def _stain(
    rng: np.random.Generator,
    tissue: np.ndarray,
    depth: np.ndarray,
    domain: np.ndarray,
    fields: np.ndarray,
    pitch: float,
) -> np.ndarray:
    """The H&E image (height, width, 3) uint8: stain densities of eosin fibres and haematoxylin nuclei, made RGB."""
    cellularity, collagen, immune = fields
    shape = tissue.shape
    um = pitch / PITCH_UM  # pixels per µm
    crowding = np.array([0.7, 1.6, 1.0, 2.0, 2.8])[domain]

    # Fibres run along the layers: streaks of noise whose rows follow the depth.
    streaks = ndimage.gaussian_filter(rng.standard_normal(shape).astype(np.float32), (2 * um, 22 * um))
    streaks /= streaks.std()
    along = np.rint(depth * shape[0]).astype(np.intp) % shape[0]
    fibres = np.take_along_axis(streaks, along, axis=0)
    pinkness = np.array([0.022, 0.030, 0.025, 0.033, 0.022])[domain]
    eosin = ndimage.gaussian_filter(pinkness, 10 * um) * np.exp(0.3 * collagen + 0.18 * fibres)

    haematoxylin = 0.004 + 0.003 * crowding
    usual = 1.3e-3 * crowding * np.exp(0.9 * cellularity - 0.3)  # nuclei per µm²
    lymphocytes = 1.2e-3 * np.exp(1.2 * immune - 1)
    for density, size, darkness in ((usual, 4.5, 0.055), (lymphocytes, 2.8, 0.10)):
        y, x = np.nonzero(rng.random(shape) < density * tissue / um**2)
        larger = 1 + 0.3 * (domain[y, x] == N_LAYERS)
        radius = um * size * larger * rng.uniform(0.8, 1.2, len(x))
        _draw_nuclei(rng, haematoxylin, x, y, radius, darkness * rng.uniform(0.7, 1.2, len(x)))

    on_tissue = ndimage.gaussian_filter(tissue.astype(np.float32), 3 * um)
    # A share of the third stain takes the violet out of scikit-image's eosin.
    density = np.stack([haematoxylin, eosin, 0.5 * eosin], axis=-1) * on_tissue[..., None]
    rgb = hed2rgb(density) + rng.normal(0, 0.012, (*shape, 1))
    return np.rint(255 * np.clip(0.97 * rgb, 0, 1)).astype(np.uint8)


def _draw_nuclei(
    rng: np.random.Generator, canvas: np.ndarray, x: np.ndarray, y: np.ndarray, radius: np.ndarray, darkness: np.ndarray
) -> None:
    """Draws soft-edged ellipses on the canvas (height, width) in place; where they overlap the darker one stays."""
    angle = rng.uniform(0, np.pi, len(x))
    longer = rng.uniform(1.0, 1.5, len(x))
    reach = int(np.ceil(1.5 * radius.max(initial=1)))
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            major = (dx * np.cos(angle) + dy * np.sin(angle)) / longer
            minor = (dy * np.cos(angle) - dx * np.sin(angle)) * longer
            cover = np.clip(radius - np.hypot(major, minor) + 0.5, 0, 1)
            at_y, at_x = y + dy, x + dx
            inside = (cover > 0) & (at_y >= 0) & (at_y < canvas.shape[0]) & (at_x >= 0) & (at_x < canvas.shape[1])
            np.maximum.at(canvas, (at_y[inside], at_x[inside]), (darkness * cover)[inside])
