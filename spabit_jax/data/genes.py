"""Gene panels: which genes are predicted, and in which order."""

from __future__ import annotations

import itertools
import os
import re
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from spabit_jax.config import NAMED_PANELS
from spabit_jax.errors import InputError
from spabit_jax.neighbours import morans_i
from spabit_jax.scale import find_scale, total_counts

FEW = 3  # train spots: a gene that fewer have is in no named panel but the reference's
CANDIDATES = 5  # times the panel's size: genes that most train spots have, among which those that vary are looked for
LEAST_SHARE = 0.25  # of a panel, that a related section has measured
# Columns of var that name genes, ids before symbols; in capitals, with dots or without a mark between words too
NAMINGS = ("geneids", "geneid", "ensemblid", "ensembl", "genename", "genenames", "genesymbol", "genesymbols")
NAMINGS += ("featurename", "symbol")
VERSION = r"^(ENS[A-Z]*\d+)\.\d+$"
GENOME = r"^(GRCh|GRCm|hg|mm)\d+_+"  # before names and ids where there are several
# Mitochondrial and ribosomal genes; not RPS6KA1, a kinase, nor RPS19BP1
NOT_BIOLOGY = re.compile(r"MT-|MTRNR|M?RP[LS]\d+(?!\d|K|BP)", re.IGNORECASE)


def select_genes(
    adata: AnnData, panel: str, n_genes: int, is_train: np.ndarray, chosen: list[str] | None = None
) -> list[str]:
    """Names of the genes of a panel, in its order.

    Args:
      adata: (N, all genes) raw counts.
      panel: ``informative`` (``informative_panel`` of the train spots), ``hvg`` (scanpy's highly variable genes of the
        train spots, by name), ``train_spots`` (``reference_panel`` of the train spots), ``reference`` (the same rule on
        all spots, test spots included, as the reference does), or a text file with one gene name a line. ``+A,B`` at
        the end of any adds genes.
      n_genes: the panel's size; a file's panel is taken whole.
      is_train: (N,) bool.
      chosen: what the rule has chosen already, where too little is known here.

    Raises:
      InputError: the panel is empty, its file is missing, or the section lacks a gene that is named.
    """
    panel, _, added = panel.partition("+") if not os.path.isfile(panel) else (panel, "", "")
    if chosen is not None and panel in NAMED_PANELS:
        genes = chosen
    elif panel == "reference":
        genes = reference_panel(adata.X, adata.var_names, n_genes)
    elif panel == "train_spots":
        genes = reference_panel(adata.X[is_train], adata.var_names, n_genes)
    elif panel == "hvg":
        genes = _highly_variable(adata[is_train], n_genes)
    elif panel == "informative":
        genes = informative_panel(adata[is_train], n_genes)
    else:
        genes = _from_file(panel, adata)
    added = [gene.strip() for gene in added.split(",") if gene.strip()]
    if added := _as_named(added, adata):
        check_genes(added, adata.var_names, f"not measured in section {adata.uns['spabit']['name']}")
    genes = list(dict.fromkeys([*genes, *added]))
    if not genes:
        raise InputError(f"panel {panel!r} has no gene of this section: does it hold any counts?")
    return genes


def check_genes(asked, names, problem: str) -> None:
    """Raises InputError for the first gene asked for that is not among the names, with those that are like it."""
    for gene in asked:
        if gene not in names:
            upper = {name.upper(): name for name in names}
            found = get_close_matches(gene.upper(), upper, n=3, cutoff=0.75)
            like = f"; like it are {', '.join(upper[name] for name in found)}" if found else f", as {names[0]}"
            raise InputError(f"gene {gene} is {problem}, which has {len(names)} genes{like}")


def match_genes(adata: AnnData, genes: pd.DataFrame) -> np.ndarray:
    """Columns of a section that hold the genes of another one's panel: (G,), -1 for a gene that it has not measured.

    A gene is found by its id where both have ids, else by its name; then by id among names and by name among ids.
    Versions of Ensembl ids and genomes before names do not count, and what two genes are called says nothing.

    Args:
      adata: the section.
      genes: the panel, as rows of ``var`` of the section that it is of.
    """
    found = np.full(len(genes), -1)
    for asked, known in itertools.product(_namings(genes), _namings(adata.var)):
        column = pd.Series(np.arange(len(known)), known)[~known.duplicated(keep=False)].reindex(asked).fillna(-1)
        free = (found < 0) & ~asked.duplicated(keep=False) & ~np.isin(column, found)
        found[free] = column[free]
    return found


def _namings(var: pd.DataFrame) -> list[pd.Index]:
    """Each way in which ``var`` names its genes, without the version of an Ensembl id and the genome."""
    plain = {re.sub(r"[^a-z]", "", str(column).lower()): column for column in var}
    namings = [*(pd.Index(var[plain[name]]) for name in NAMINGS if name in plain), var.index]
    bare = [naming.astype(str).str.replace(GENOME, "", regex=True) for naming in namings]
    return [naming.str.replace(VERSION, r"\1", regex=True) for naming in bare]


def _as_named(genes: list[str], adata: AnnData) -> list[str]:
    """Genes as the section's ``var_names`` have them, where another column of ``var`` names them so."""
    if all(gene in adata.var_names for gene in genes):
        return genes
    known = {}
    for naming in reversed(_namings(adata.var)):
        known |= pd.Series(adata.var_names, naming)[~naming.duplicated(keep=False)].to_dict()
    return [gene if gene in adata.var_names else known.get(gene, gene) for gene in genes]


def check_shares_genes(adata: AnnData, of: AnnData, genes: list[str]) -> None:
    """Raises InputError if a related section has measured less than ``LEAST_SHARE`` of the panel of section ``of``."""
    n = int((match_genes(adata, of.var.loc[genes]) >= 0).sum())
    if n < LEAST_SHARE * len(genes):
        name, here = (section.uns["spabit"]["name"] for section in (adata, of))
        raise InputError(
            f"related section {name} has {n} of the panel's {len(genes)} genes by name or id (it names genes as "
            f"{adata.var_names[0]}, {here} as {genes[0]}): name them alike, or leave it out"
        )


def informative_panel(adata: AnnData, n_genes: int) -> list[str]:
    """Genes that a map is asked for: half of them those with the most counts, half those that vary most in space.

    Mitochondrial and ribosomal genes are left out. The second half are the genes with the highest Moran's I (of log1p
    of normalised counts, over the graph of the 6 nearest spots) of the ``CANDIDATES`` times ``n_genes`` that most spots
    have, ``FEW`` at least: on few spots Moran's I is mostly chance, hence the first half. Sorted by name.

    Args:
      adata: (n, all genes) raw counts of the train spots.
    """
    names = adata.var_names.to_numpy(str)
    found, sums = (np.asarray(x.sum(axis=0)).ravel() for x in (adata.X > 0, adata.X))
    namings = _namings(adata.var)
    left_out = np.any([[NOT_BIOLOGY.match(name) is not None for name in naming] for naming in namings], axis=0)
    kept = np.flatnonzero((found >= min(FEW, adata.n_obs)) & ~left_out)
    most = kept[np.lexsort((names[kept], -sums[kept]))][: -(-n_genes // 2)]
    rest = np.setdiff1d(kept, most)
    rest = rest[np.lexsort((names[rest], -found[rest]))][: CANDIDATES * n_genes]
    scale = find_scale("log1p_normalised", adata, np.ones(adata.n_obs, bool))
    expression = scale.expression(adata.X[:, rest].toarray(), total_counts(adata))
    i = np.nan_to_num(morans_i(expression, np.asarray(adata.obsm["spatial"], np.float64)), nan=-np.inf)
    spatial = rest[np.lexsort((names[rest], -np.round(i, 6)))[: n_genes - len(most)]]
    return sorted(names[np.concatenate([most, spatial])].tolist())


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
    if not os.path.isfile(panel):  # as Path.is_file, but for names that are too long for a file
        raise InputError(f"unknown panel {panel!r}: give {', '.join(NAMED_PANELS)} or a text file of gene names")
    try:
        genes = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"panel file {path} is no text file: give one gene of the section a line") from error
    genes = _as_named(genes, adata)
    missing = [gene for gene in genes if gene not in adata.var_names]
    if missing or not genes or len(set(genes)) < len(genes):
        problem = f"names {missing[0]}, which the section lacks" if missing else "is empty or names a gene twice"
        raise InputError(f"panel file {path} {problem}: give one gene of the section a line, each once")
    return genes
