"""Visium folders as Space Ranger writes them, version 1 and later."""

from __future__ import annotations

import fnmatch
import glob
import gzip
import json
import os
import re
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
from absl import logging
from anndata import AnnData
from scipy import sparse
from scipy.io import mmread

from spabit_jax.errors import InputError
from spabit_jax.readers.assemble import NO_IMAGE, THUMBNAIL_PX, Images, assemble
from spabit_jax.readers.hdf5 import check_heaps
from spabit_jax.readers.image import IMAGE_SUFFIXES, open_image
from spabit_jax.readers.kept import unpacked
from spabit_jax.readers.nearest import archive_in
from spabit_jax.readers.samples import Samples, by_prefix, one_sample
from spabit_jax.readers.tables import positive, read_counts, read_positions_10x, reading

LOOKS_FOR = (
    "a folder (or its outs/) with filtered_feature_bc_matrix.h5, such a folder, or matrix.mtx, features.tsv and "
    "barcodes.tsv, and tissue_positions[_list].csv|parquet there or in spatial/; all perhaps as PREFIX_… and .gz"
)
GENE = "Gene Expression"  # the type of features that are genes
_PICTURE = r"\.(png|jpe?g|tiff?)"
ENDINGS = {
    "counts": (
        r"filtered_feature_bc_matrix\.h5",
        r"filtered_feature_bc_matrix",
        r"matrix\.mtx",
        r"raw_feature_bc_matrix\.h5",
        r"raw_feature_bc_matrix",
    ),
    "positions": (
        r"tissue_positions\.csv",
        r"tissue_positions_list\.csv",
        r"tissue_positions(_list)?\.(parquet|tsv|txt)",
    ),
    "scalefactors": (r"scalefactors_json\.json",),
    "hires": (rf"tissue_hires_image{_PICTURE}",),
    "lowres": (rf"tissue_lowres_image{_PICTURE}",),
}
_NOT_FULL = re.compile(r"tissue_(hires|lowres)_|(^|_)(detected|aligned)_|cytassist", re.IGNORECASE)


def matches(path: Path) -> bool:
    return find_counts(root(path)) is not None


def root(path: Path) -> Path:
    """The folder itself, or its ``outs/``."""
    return path / "outs" if (path / "outs").is_dir() else path


def first_existing(folder: Path, *patterns: str) -> Path | None:
    """The first file in ``folder`` that one of the glob patterns finds."""
    return next((path for pattern in patterns for path in find(folder, pattern)), None)


def find(folder: Path, pattern: str) -> list[Path]:
    """What a glob pattern finds, in order; InputError for a link to what is not there, which is not "no such file"."""
    inner, _, name = pattern.rpartition("/")
    folders = [each for each in (sorted(folder.glob(inner)) if inner else [folder]) if each.is_dir()]
    found = [each / file for each in folders for file in sorted(os.listdir(each)) if fnmatch.fnmatchcase(file, name)]
    for path in found:
        if path.is_symlink() and not path.exists():
            raise InputError(f"{path}: a link to {os.readlink(path)}, which is not there: put it back, or remove it")
    return found


def samples(folder: Path) -> Samples:
    """The files of each sample in a folder and in its ``spatial/`` or ``PREFIX_spatial/``."""
    return by_prefix([folder / "spatial", *sorted(folder.glob("*_spatial")), folder], ENDINGS)


def find_counts(folder: Path) -> Path | None:
    """Counts in a folder, of whichever sample."""
    return next((files["counts"] for files in samples(folder).values() if "counts" in files), None)


def read(path: Path, name: str, image: Path | None, positions: Path | None, labels: Path | None) -> AnnData:
    """Reads a Visium section; see ``spabit_jax.readers.read_section``.

    Of several samples in a folder, each file with the sample's prefix before its name (as GEO publishes them), ``name``
    says which.
    """
    folder = root(path)
    if find_counts(folder) is None:
        raise InputError(f"{path}: no counts: looked for {LOOKS_FOR}")
    return read_folder(folder, "visium", name, image, positions, labels)


def read_folder(
    folder: Path,
    format: str,
    name: str,
    image: Path | None,
    positions: Path | None,
    labels: Path | None,
    counts: Path | None = None,
) -> AnnData:
    """Reads a folder; the reference's layout, which has ``counts`` of its own, shares all the rest.

    The image is, in this order: the one given; one in full resolution (``full_image``) that is as large as the previews
    say (in folders of bins also beside ``binned_outputs/``);
    ``spatial/tissue_hires_image.png``; ``…_lowres_image.png``.
    """
    found = samples(folder)
    if counts is None:
        prefix, files = one_sample(found, name, folder, whole=("counts", "positions"))
    else:
        prefix, files = "", found.get("", {}) | {"counts": counts}
    counts, positions = files["counts"], positions or files.get("positions")
    if positions is None:
        wanted = "tissue_positions.csv, tissue_positions_list.csv, tissue_positions.parquet"
        whose, archive = f" of {prefix}" if prefix else "", archive_in(folder, prefix)
        mend = f"unpack {archive} there" if archive else "give --positions"
        raise InputError(f"{folder}: no positions{whose}: looked for {wanted}, there and in spatial/; {mend}")
    if counts.name.removeprefix(prefix).strip("_.-").startswith("raw_"):
        logging.info("%s: no filtered matrix: the counts are those of %s at the spots in tissue", name, counts)
    alone = sum("counts" in sample for sample in found.values()) < 2
    images = read_images(files, image or full_image(folder, prefix, alone) or _beside_bins(folder), given=image)
    section = folder.resolve().name
    return assemble(
        read_10x(counts),
        read_positions_10x(positions),
        name=name,
        format=format,
        counts_path=counts,
        positions_path=positions,
        labels=labels or first_existing(folder, f"{glob.escape(section)}_truth.txt", "label.txt", "layers.csv"),
        images=images,
        um_per_px=images.scalefactors.get("microns_per_pixel"),
    )


def read_10x(path: Path) -> AnnData:
    """Reads counts of genes.

    Args:
      path: a 10x .h5 file; a folder of matrix.mtx, features.tsv and barcodes.tsv; a matrix.mtx with the two beside it,
        all with one prefix or without; or a text table. Each but the folder may be gzipped.
    """
    if path.is_dir():
        matrix = first_existing(path, "matrix.mtx*", "*matrix.mtx*")
        if matrix is None:
            raise InputError(f"{path}: matrix.mtx, features.tsv and barcodes.tsv (or .gz of each) are needed")
        return _read_mtx(matrix)
    if ".csv" in path.suffixes[-2:]:
        return read_counts(path)
    return _read_mtx(path) if ".mtx" in path.suffixes[-2:] else _read_h5(unpacked(path))


def _read_h5(path: Path) -> AnnData:
    """Genes of two genomes (a xenograft) are named GENOME_GENE, as Space Ranger names them since version 3."""
    with reading(path, "a 10x .h5 file"):
        check_heaps(path)
        with h5py.File(path, "r") as file:
            if "matrix" in file:
                adata = _read_matrix(file["matrix"])
                genomes = [*adata.var["genome"].unique()] if "genome" in adata.var else []
            else:
                genomes, parts = [*file], [_read_matrix(group) for group in file.values()]
                for genome, part in zip(genomes, parts, strict=True):
                    part.var_names = f"{genome}_" + part.var_names if len(genomes) > 1 else part.var_names
                adata = anndata.concat(parts, axis="var", join="outer", fill_value=0)
    if len(genomes) > 1:
        logging.warning(
            "%s: holds genes of %d genomes (%s), which all are read; --config.data.panel=FILE names those of one",
            path, len(genomes), ", ".join(genomes),
        )  # fmt: skip
    return adata


def _read_matrix(group: h5py.Group) -> AnnData:
    """Genes as ``scanpy.read_10x_h5`` has them, whose import takes a second.

    ValueError where the matrix points outside itself: compiled code follows its indices unchecked.
    """
    features = group.get("features")  # since Cell Ranger 3
    if features is None:
        var = {"names": group["gene_names"].asstr()[:], "gene_ids": group["genes"].asstr()[:]}
    else:
        columns = {"names": "name", "gene_ids": "id", "feature_types": "feature_type", "genome": "genome"}
        var = {key: features[name].asstr()[:] for key, name in columns.items() if name in features}
    n_features, n_barcodes = group["shape"][:]
    parts = (group[name][:] for name in ("data", "indices", "indptr"))
    x = sparse.csr_matrix(tuple(parts), shape=(n_barcodes, n_features), dtype=np.float32)
    x.check_format(full_check=True)
    obs = pd.DataFrame(index=group["barcodes"].asstr()[:])
    adata = AnnData(x, obs=obs, var=pd.DataFrame(var).set_index("names").rename_axis(None))
    return only_genes(adata)


def only_genes(adata: AnnData) -> AnnData:
    """Without antibodies, guides and control probes, where ``var["feature_types"]`` says which features are genes."""
    is_gene = adata.var.get("feature_types", "") == GENE
    return adata[:, is_gene].copy() if np.any(is_gene) and not np.all(is_gene) else adata


def _read_mtx(matrix: Path) -> AnnData:
    """Reads what scanpy.read_10x_mtx does not as well: prefixes, plain files, features with one column only."""
    folder, prefix = matrix.parent, glob.escape(matrix.name[: matrix.name.index("matrix.mtx")])
    features = first_existing(folder, f"{prefix}features.tsv*", f"{prefix}genes.tsv*")
    barcodes = first_existing(folder, f"{prefix}barcodes.tsv*")
    if not (features and barcodes):
        raise InputError(f"{matrix}: features.tsv and barcodes.tsv (or .gz of each) are needed beside it, as {prefix}…")
    with reading(matrix, "a Matrix Market file"):
        x = sparse.csr_matrix(mmread(matrix).T, dtype=np.float32)
    with reading(features, "a table of features"):
        var = pd.read_csv(features, sep="\t", header=None, dtype=str, keep_default_na=False)  # a gene is called nan
    with reading(barcodes, "a list of barcodes"):
        obs = pd.read_csv(barcodes, sep="\t", header=None, dtype=str, keep_default_na=False)
    if x.shape != (len(obs), len(var)):
        raise InputError(f"{matrix}: {x.shape[::-1]} counts, but {len(var)} features and {len(obs)} barcodes beside it")
    frame = pd.DataFrame({"gene_ids": var[0].to_numpy()}, index=var[min(1, var.shape[1] - 1)].to_numpy())
    genes = np.ones(len(var), bool) if var.shape[1] < 3 else (var[2] == GENE).to_numpy()
    with reading(folder, "10x counts"):
        return AnnData(x[:, genes], obs=pd.DataFrame(index=obs[0].to_numpy()), var=frame[genes])


def read_images(files: dict[str, Path], image: Path | None, given: Path | None) -> Images:
    """The image of which windows are read, and the previews, of the files of a sample.

    Args:
      files: ``hires``, ``lowres`` and ``scalefactors``, those that are there.
      image: in full resolution, or a preview; used if it is ``given`` or as large as the previews say.
    """
    previews, scalefactors = _previews(files)  # {key: (file, image pixels per full-resolution pixel)}
    if given is None:
        image = _whole(image, previews) or next((file for file, _ in previews.values()), None)
    scale, pixels = 1.0, {}
    for key, (file, factor) in previews.items() if image != NO_IMAGE else ():
        if image.resolve() == file.resolve() or f"tissue_{key}_image" in image.name:
            scale = factor
        pixels[key], shrunk = open_image(file).thumbnail(THUMBNAIL_PX)
        scalefactors[f"tissue_{key}_scalef"] = factor * shrunk
    return Images(image, scale, pixels, scalefactors)


def full_image(folder: Path, prefix: str = "", alone: bool = True) -> Path | None:
    """``image.*``, ``PREFIX_tissue_image.*``, ``PREFIX_image.*``, ``spatial/*_full_image.*``, ``spatial/image.*``.

    Args:
      prefix: of the sample; an image called PREFIX alone is its image, too.
      alone: whether the folder holds no other sample. If it does, only images with the prefix are taken.
    """
    # 10x publishes CytAssist's picture as PREFIX_image.tif, and the microscope's as PREFIX_tissue_image.tif
    own = [f"{glob.escape(prefix)}{end}" for end in ("_tissue_image", "_image", "_full_image", "")] if prefix else []
    anyones = ["image", "*_tissue_image", "*_image", "spatial/*_full_image", "spatial/image"] if alone else []
    for pattern in own + anyones:
        for suffix in IMAGE_SUFFIXES:
            for path in sorted([*find(folder, pattern + suffix), *find(folder, f"{pattern}{suffix}.gz")]):
                if not _NOT_FULL.search(path.name):
                    return unpacked(path)
    return None


def _beside_bins(folder: Path) -> Path | None:
    """The image in full resolution of Visium HD, which Space Ranger does not copy, beside ``binned_outputs/``."""
    return full_image(folder.parent.parent) if folder.parent.name == "binned_outputs" else None


def _whole(image: Path | None, previews: dict[str, tuple[Path, float]]) -> Path | None:
    """The image, unless a preview shows that it is another than the one that positions refer to (CytAssist's)."""
    if image is None or not previews:
        return image
    (file, scale), slide = next(iter(previews.values())), open_image(image)
    preview = open_image(file)
    width, height = preview.width / scale, preview.height / scale
    if max(abs(slide.width - width), abs(slide.height - height)) <= 2 / scale + 1:
        return image
    logging.warning(
        "%s: %d x %d px, but %s shows a picture of %.0f x %.0f px: used is the latter; --image names another",
        image, slide.width, slide.height, file, width, height,
    )  # fmt: skip
    return None


def is_scale(key: str) -> bool:
    """Whether a scale factor is one that is used: the others may be anything."""
    return key == "spot_diameter_fullres" or re.fullmatch("tissue_.*_scalef", key) is not None


def _previews(files: dict[str, Path]) -> tuple[dict[str, tuple[Path, float]], dict[str, float]]:
    """The small images that have a scale factor, hires first, and the scale factors that belong to no image."""
    path, scalefactors = files.get("scalefactors"), {}
    if path is not None:
        with reading(path, "scale factors"):
            content = json.loads(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_text())
            content = {key: value for key, value in dict(content).items() if value is not None}
        used = [key for key in content if is_scale(key) or key == "microns_per_pixel"]
        scalefactors = content | {key: positive(content[key], key, path) for key in used}
    previews = {}
    for key in ("hires", "lowres"):
        # Files give the factor of an image that is not there, too: scanpy would look for the image.
        scale = scalefactors.pop(f"tissue_{key}_scalef", None)
        file = files.get(key)
        if file is not None and scale is None:
            missing = f"{path} has no" if path else "no scalefactors_json.json is there with a"
            logging.warning("%s: not used, because %s scale factor for it", file, missing)
        elif file is not None:
            previews[key] = unpacked(file), scale
    return previews, scalefactors
