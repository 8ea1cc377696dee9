"""Gene panels: which genes are predicted, and in which order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from spabit_jax.errors import InputError

NAMED_PANELS = ("reference", "train_spots", "hvg")


def select_genes(adata: AnnData, panel: str, n_genes: int, is_train: np.ndarray) -> list[str]:
    """Names of the genes of a panel, in its order.

    Args:
      adata: (N, all genes) raw counts.
      panel: ``reference`` (``reference_panel`` on all spots, test spots included, as the reference does),
        ``train_spots`` (the same rule on train spots only), ``hvg`` (scanpy's highly variable genes of the train
        spots, by name), or a text file with one gene name a line.
      n_genes: the panel's size; a file's panel is taken whole.
      is_train: (N,) bool.

    Raises:
      InputError: the panel is empty, or its file is missing or names genes that the section lacks.
    """
    if panel == "reference":
        genes = reference_panel(adata.X, adata.var_names, n_genes)
    elif panel == "train_spots":
        genes = reference_panel(adata.X[is_train], adata.var_names, n_genes)
    elif panel == "hvg":
        genes = _highly_variable(adata[is_train], n_genes)
    else:
        return _from_file(panel, adata)
    if not genes:
        raise InputError(f"panel {panel!r} has no gene of this section: does it hold any counts?")
    return genes


def reference_panel(counts, names, n_genes: int, n_top: int = 1000) -> list[str]:
    """The reference's panel rule.

    Genes that sum to 0 are dropped; of counts per 10,000, log1p, the ``n_top`` highest means are intersected with the
    ``n_top`` highest standard deviations (ddof 1); names are sorted, those that start with MT-, mt-, RP or rp dropped,
    and the first ``n_genes`` taken, or what there is.

    Args:
      counts: (N, G) raw counts, sparse or dense.
      names: (G,) gene names.
    """
    counts = sp.csr_matrix(counts, dtype=np.float64)
    names = np.asarray(names, dtype=str)
    expressed = np.asarray(counts.sum(axis=0)).ravel() > 0
    counts, names = counts[:, expressed], names[expressed]
    total = np.asarray(counts.sum(axis=1)).ravel()
    logged = (sp.diags(1e4 / np.maximum(total, 1)) @ counts).log1p()
    n = logged.shape[0]
    mean = np.asarray(logged.mean(axis=0)).ravel()
    square = np.asarray(logged.multiply(logged).mean(axis=0)).ravel()
    sd = np.sqrt(np.maximum(square - mean**2, 0) * n / max(n - 1, 1))
    top = np.intersect1d(names[_largest(mean, n_top)], names[_largest(sd, n_top)])  # sorted
    return [name for name in top if not name.startswith(("MT-", "mt-", "RP", "rp"))][:n_genes]


def _largest(values: np.ndarray, n: int) -> np.ndarray:
    return np.argsort(-values, kind="stable")[:n]


def _highly_variable(adata: AnnData, n_genes: int) -> list[str]:
    import scanpy as sc

    normalised = AnnData(adata.X.copy(), var=adata.var[[]].copy())
    normalised = normalised[:, np.asarray(normalised.X.sum(axis=0)).ravel() > 0].copy()
    sc.pp.normalize_total(normalised, target_sum=1e4)
    sc.pp.log1p(normalised)
    chosen = sc.pp.highly_variable_genes(normalised, n_top_genes=min(n_genes, normalised.n_vars), inplace=False)
    # scanpy cuts at the dispersion of the last gene, so that ties would make the panel larger than asked for
    return sorted(chosen["dispersions_norm"].set_axis(normalised.var_names).nlargest(n_genes).index)


def _from_file(panel: str, adata: AnnData) -> list[str]:
    path = Path(panel)
    if not path.is_file():
        raise InputError(f"unknown panel {panel!r}: give {', '.join(NAMED_PANELS)} or a text file of gene names")
    try:
        genes = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"panel file {path} is no text file: give one gene of the section a line") from error
    missing = [gene for gene in genes if gene not in adata.var_names]
    if missing or not genes or len(set(genes)) < len(genes):
        problem = f"names {missing[0]}, which the section lacks" if missing else "is empty or names a gene twice"
        raise InputError(f"panel file {path} {problem}: give one gene of the section a line, each once")
    return genes
