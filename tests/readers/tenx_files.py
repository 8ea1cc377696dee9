"""Counts as 10x writes them."""

from __future__ import annotations

import gzip
from pathlib import Path

import h5py
import numpy as np
from scipy import sparse
from scipy.io import mmwrite

GENES = ["TP53", "ACTB", "ACTB", "MT-CO1", "KRT8"]


def write_h5(path: Path, counts: np.ndarray, barcodes: list[str], types: list[str] | None = None) -> None:
    """A 10x .h5 file of version 3; counts (spots, genes)."""
    x = sparse.csr_matrix(counts)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array(barcodes, "S")
        group["data"], group["indices"], group["indptr"] = x.data.astype(np.int32), x.indices, x.indptr
        group["shape"] = np.array(counts.shape[::-1])
        features = group.create_group("features")
        features["id"] = np.array([f"ENSG{i:03}" for i in range(len(GENES))], "S")
        features["name"] = np.array(GENES, "S")
        features["feature_type"] = np.array(types or ["Gene Expression"] * len(GENES), "S")
        features["genome"] = np.array(["GRCh38"] * len(GENES), "S")
        features["_all_tag_keys"] = np.array(["genome"], "S")


def write_mtx(folder: Path, counts: np.ndarray, barcodes: list[str], columns: int = 3) -> None:
    """matrix.mtx.gz, features.tsv.gz with that many columns, barcodes.tsv.gz."""
    folder.mkdir()
    with gzip.open(folder / "matrix.mtx.gz", "wb") as file:
        mmwrite(file, sparse.coo_matrix(counts.T))
    features = [(f"ENSG{i:03}", gene, "Gene Expression")[:columns] for i, gene in enumerate(GENES)]
    if columns == 1:
        features = [(gene,) for gene in GENES]
    with gzip.open(folder / "features.tsv.gz", "wt") as file:
        file.writelines("\t".join(row) + "\n" for row in features)
    with gzip.open(folder / "barcodes.tsv.gz", "wt") as file:
        file.writelines(barcode + "\n" for barcode in barcodes)
