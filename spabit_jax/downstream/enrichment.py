"""Marker genes of groups of spots, and the gene sets that they are enriched in."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.stats import false_discovery_control

from spabit_jax.downstream.expression import centred
from spabit_jax.errors import InputError

MARKER_FDR = 0.05
MIN_SET = 3  # genes of a set that must be in the panel
MIN_SPOTS = 3  # of a group
MARKER_COLUMNS = ["group", "gene", "score", "log2_fold_change", "p", "fdr"]
ENRICHMENT_COLUMNS = ["group", "test", "gene_set", "n_set", "n_shared", "effect", "p", "fdr", "genes"]


def find_markers(
    values: np.ndarray, genes: Sequence[str], groups: np.ndarray, scale: str = "log2_count"
) -> pd.DataFrame:
    """Genes that set each group of spots off from the rest: Wilcoxon's rank-sum test (scanpy's rank_genes_groups).

    Library size is taken out (``expression.centred``) before groups are compared.

    Args:
      values: (n, G) expression.
      genes: G names.
      groups: (n,) str, "" for spots of none; groups of fewer than ``MIN_SPOTS`` spots are left out.
      scale: of the expression, log2_count or log1p_normalised.

    Returns:
      Columns ``MARKER_COLUMNS``, a row per group and gene, the highest score first. log2_fold_change is the mean in
      the group less that in the rest, of logs to the base 2; p is adjusted by Benjamini and Hochberg within a group.
      No row where there are fewer than two groups.
    """
    import scanpy as sc

    names, counts = np.unique(groups[groups != ""].astype(str), return_counts=True)
    names = names[counts >= MIN_SPOTS]
    if len(names) < 2:
        return pd.DataFrame(columns=MARKER_COLUMNS)
    kept = np.isin(groups.astype(str), names)
    values, groups = centred(values[kept].astype(np.float64), scale), groups[kept].astype(str)
    obs = pd.DataFrame({"group": pd.Categorical(groups, names)}, index=np.flatnonzero(kept).astype(str))
    adata = AnnData(values, obs=obs, var=pd.DataFrame(index=pd.Index(genes)))
    to_log2 = 1 / np.log(2) if scale == "log1p_normalised" else 1.0
    tables = []
    with warnings.catch_warnings():
        # scanpy's own: it takes the values for logs of positive numbers, and fragments its table
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="scanpy")
        warnings.filterwarnings("ignore", category=pd.errors.PerformanceWarning, module="scanpy")
        sc.tl.rank_genes_groups(adata, "group", method="wilcoxon", tie_correct=True)
        for name in names:
            inside = groups == name
            difference = to_log2 * (values[inside].mean(axis=0) - values[~inside].mean(axis=0))
            table = sc.get.rank_genes_groups_df(adata, name)
            change = table["names"].map(pd.Series(difference, adata.var_names))
            tables.append(table.assign(group=name, log2_fold_change=change))
    renamed = {"names": "gene", "scores": "score", "pvals": "p", "pvals_adj": "fdr"}
    return pd.concat(tables, ignore_index=True).rename(columns=renamed)[MARKER_COLUMNS]


def read_gene_sets(path: str | os.PathLike, panel: Sequence[str]) -> dict[str, list[str]]:
    """Reads a GMT file: a line per set, tab between name, description and genes.

    Returns:
      Set → its genes that are in the panel; sets with fewer than ``MIN_SET`` of those are left out.

    Raises:
      InputError: unreadable, not a GMT file, or no set has ``MIN_SET`` genes of the panel.
    """
    try:
        lines = [line.rstrip("\r\n").split("\t") for line in Path(path).read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a GMT file ({error})") from error
    if short := [line for line in lines if len(line) < 3]:
        raise InputError(f"{path}: {short[0][0][:60]!r} has no genes: a GMT line is name, description, genes, by tabs")
    known = set(panel)
    sets = {name: [gene for gene in dict.fromkeys(genes) if gene in known] for name, _, *genes in lines}
    sets = {name: genes for name, genes in sets.items() if len(genes) >= MIN_SET}
    if not sets:
        example = ", ".join(list(panel)[:3])
        raise InputError(
            f"{path}: no set has {MIN_SET} genes of the panel ({example}, …): give sets with the same gene names"
        )
    return sets


def enrich(markers: pd.DataFrame, sets: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Both tests for each group of a table of ``find_markers``: columns ``ENRICHMENT_COLUMNS``."""
    tables = []
    for group, table in markers.groupby("group", sort=False):
        top = table[(table["fdr"] < MARKER_FDR) & (table["score"] > 0)]["gene"]
        tables.append(over_representation(list(top), sets, list(table["gene"])).assign(group=group, test="ora"))
        parts = {name: members for name, members in sets.items() if len(members) < len(table)}  # of the panel
        if parts:
            tables.append(gsea(table.set_index("gene")["score"], parts).assign(group=group, test="gsea"))
    if not tables:
        return pd.DataFrame(columns=ENRICHMENT_COLUMNS)
    return pd.concat(tables, ignore_index=True)[ENRICHMENT_COLUMNS]


def over_representation(genes: Sequence[str], sets: Mapping[str, Sequence[str]], background: Sequence[str]):
    """Whether more of the genes are in a set than chance would have it: hypergeometric test (gseapy).

    Args:
      genes: the markers.
      sets: set → genes.
      background: all genes that could have been markers: the panel, not the genome.

    Returns:
      A row per set, lowest p first: gene_set, n_set, n_shared, effect (odds ratio, 1/2 added to each count), p, fdr
      (Benjamini and Hochberg, over all sets), genes. A set without any of the genes has p 1.
    """
    from gseapy.stats import calc_pvalues

    background = set(background)
    shared = {name: sorted(set(members) & set(genes)) for name, members in sets.items()}
    n_set = {name: len(set(members) & background) for name, members in sets.items()}
    found = list(zip(*calc_pvalues(set(genes), dict(sets), background=background), strict=True))
    p = dict.fromkeys(sets, 1.0) | {name: p for name, p, *_ in found}
    odds = dict.fromkeys(sets, np.nan) | {name: odds for name, _, odds, *_ in found}
    table = pd.DataFrame(
        {
            "gene_set": list(sets),
            "n_set": [n_set[name] for name in sets],
            "n_shared": [len(shared[name]) for name in sets],
            "effect": [odds[name] for name in sets],
            "p": [p[name] for name in sets],
            "genes": [" ".join(shared[name]) for name in sets],
        }
    )
    return table.assign(fdr=false_discovery_control(table["p"])).sort_values("p", kind="stable", ignore_index=True)


def gsea(scores: pd.Series, sets: Mapping[str, Sequence[str]], n_permutations: int = 1000):
    """Gene set enrichment analysis of ranked genes (Subramanian et al., 2005; gseapy's prerank).

    Args:
      scores: a number for each gene, by which they are ranked.
      sets: set → genes; at least one, none of all the ranked genes.
      n_permutations: of the null distribution; p and fdr are at least 1 / (permutations + 1) (Phipson and Smyth, 2010).

    Returns:
      A row per set, lowest p first: gene_set, n_set, n_shared (genes of the leading edge), effect (normalised
      enrichment score), p, fdr, genes (the leading edge).
    """
    import gseapy

    ranked = scores.sort_values(ascending=False, kind="stable")
    ranked = ranked - 1e-9 * np.arange(len(ranked))  # gseapy would order ties at random
    result = gseapy.prerank(
        ranked, dict(sets), outdir=None, min_size=MIN_SET, max_size=len(ranked), permutation_num=n_permutations,
        threads=1, seed=0, no_plot=True,
    ).res2d  # fmt: skip
    genes = result["Lead_genes"].str.split(";")
    table = pd.DataFrame(
        {
            "gene_set": result["Term"],
            "n_set": [len(sets[name]) for name in result["Term"]],
            "n_shared": genes.str.len(),
            "effect": result["NES"].astype(float),
            "p": result["NOM p-val"].astype(float).clip(lower=1 / (n_permutations + 1)),
            "fdr": result["FDR q-val"].astype(float).clip(lower=1 / (n_permutations + 1)),
            "genes": genes.str.join(" "),
        }
    )
    return table.sort_values(["p", "effect"], ascending=[True, False], kind="stable", ignore_index=True)
