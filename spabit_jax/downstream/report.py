"""What the analyses of ``experiments.downstream`` say, in tables and plain words, for results.md and report.html."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from spabit_jax.downstream.expression import OWN_MEASUREMENT
from spabit_jax.downstream.spatial import rank_agreement
from spabit_jax.evaluation.report import Block, format_cell, markdown_table

KINDS = ["measured", "predicted", "merged", OWN_MEASUREMENT]
METHODS = {"kmeans": "k-means", "mixture": "Gaussian mixture", "leiden": "Leiden"}
TOP_MARKERS = 20
FDR = 0.05


def downstream_blocks(tables: dict[str, pd.DataFrame], left_out: Sequence[str], figures: Path, grouping: str):
    """Parts of the report for the tables that there are.

    Args:
      tables: domains, tumour, markers, enrichment, moran, as ``experiments.downstream`` writes them.
      left_out: a line for each analysis that was not made.
      figures: the folder of the figures.
      grouping: what the groups of the marker genes are.
    """
    blocks = [
        Block(
            "What follows from the predictions",
            "Each analysis is made four times: on the measured spots alone, on predictions at every spot, on both "
            "merged (measured where there is a measurement, predicted elsewhere), and on each spot's own measurement, "
            "which only a test like this one has. It is no upper limit: it is noisy, and predictions can do better. "
            "Where merged does better than measured, the predictions are worth having for that analysis.",
        )
    ]
    if "domains" in tables:
        blocks += _domains(tables["domains"], figures)
    if "tumour" in tables:
        blocks += _tumour(tables["tumour"], figures)
    if "markers" in tables:
        blocks += _markers(tables["markers"], grouping)
    if "enrichment" in tables:
        blocks += _enrichment(tables["enrichment"], figures)
    blocks.append(_spatial(tables["moran"].set_index("gene"), figures))
    if left_out:
        blocks.append(Block("Left out", "\n\n".join(line[0].upper() + line[1:] + "." for line in left_out)))
    return blocks


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """The same as Markdown, without figures."""
    parts = [f"# {title}"]
    for block in blocks:
        parts += [f"## {block.title}", block.text]
        if block.table is not None:
            lines = [[format_cell(value) for value in row] for row in block.table.itertuples(index=False)]
            parts.append(markdown_table([str(column) for column in block.table], lines))
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _domains(table: pd.DataFrame, figures: Path) -> list[Block]:
    title, figure = "Spatial domains", figures / "domain_maps.png"
    what = (
        "Spots grouped by their expression. The map is that of the Gaussian mixture with smoothing over neighbouring "
        "spots, of the first seed. Where there is an annotation, each domain has the colour of another part of it, so "
        "that as many spots as possible agree. That does not make it that part, and some share no spot with it: how "
        "well the maps agree says the ARI (1 is perfect, 0 is chance), of measured expression over the measured spots, "
        "of the others over all; on the map that of its seed, in the table the mean over the seeds."
    )
    blocks = [Block(title, what, figure=figure)]
    if table["ari"].isna().all():
        return blocks
    n_seeds = table["seed"].nunique()
    for score, name in (("ari", "adjusted Rand index"), ("nmi", "normalised mutual information")):
        for spots, where in (("train", "the measured spots"), ("all", "all spots")):
            rows = table[table["scored_on"] == spots]
            means = rows.pivot_table(score, ["method", "smoothing"], "expression", sort=False)
            means = means[[kind for kind in KINDS if kind in means]]
            means.insert(0, "method", [METHODS[m] + (", smoothed" if smooth else "") for m, smooth in means.index])
            n = rows["n_spots"].iloc[0]
            text = f"Agreement of domains and annotation: 1 is perfect, 0 is chance. Mean over seeds ({n_seeds}), "
            blocks.append(Block(f"Domains: {name}, {where}", text + f"{n} annotated spots.", means))
    return blocks


def _tumour(table: pd.DataFrame, figures: Path) -> list[Block]:
    first = table.iloc[0]
    text = (
        f"A classifier (logistic regression) learned tumour from {first['n_train']} measured and annotated spots, and "
        f"was asked about {first['n_test']} others, {first['n_tumour']} of them tumour. 'Predicted': it learned from "
        "predictions at the annotated spots and was given predictions. 'Neighbour labels' uses no expression at all: "
        "it asks what the nearest annotated spots are. In the other rows it learned from measurements, and was given "
        "the average of the nearest measured spots ('nearest'), predictions, which look unlike what it learned from, "
        "or the spots' own measurements, which only a test like this one has. AUROC: the probability that a tumour "
        "spot gets the higher value of two; 0.5 is chance."
    )
    shown = table[["input", "auroc", "average_precision", "f1"]]
    shown = shown.set_axis(["given", "AUROC", "average precision", "F1"], axis=1)
    return [
        Block("Tumour regions", text, shown, figures / "tumour_roc.png"),
        Block("Where the tumour is", "By the row 'predicted'.", figure=figures / "tumour_map.png"),
    ]


def _markers(table: pd.DataFrame, grouping: str) -> list[Block]:
    positive = table[table["score"] > 0]
    top = positive.groupby(["expression", "group"])["gene"].agg(lambda genes: set(genes.head(TOP_MARKERS)))
    rows, first = [], []
    for group in table["group"].unique():
        truth = top.get((OWN_MEASUREMENT, group), set())
        shared = {kind: len(top[kind, group] & truth) if (kind, group) in top else "–" for kind in KINDS[:-1]}
        names = positive[(positive["expression"] == "merged") & (positive["group"] == group)]["gene"].head(5)
        rows.append({grouping: group, **shared})
        first.append({grouping: group, "genes": " ".join(names)})
    text = (
        f"Of the {TOP_MARKERS} first marker genes of each {grouping} by the spots' own measurements, how many are "
        "found among the first by each kind of expression (Wilcoxon's rank-sum test, within the predicted panel). "
        "p-values of predicted expression are too small: predictions of neighbouring spots are not independent."
    )
    return [
        Block("Marker genes", text, pd.DataFrame(rows)),
        Block("First marker genes by merged expression", "", pd.DataFrame(first)),
    ]


def _enrichment(table: pd.DataFrame, figures: Path) -> list[Block]:
    ora = table[table["test"] == "ora"]
    found = {kind: set(zip(*_significant(ora, kind), strict=True)) for kind in KINDS}
    rows = [
        {
            "expression": kind,
            "sets found": len(found[kind]),
            "also by own measurement": len(found[kind] & found[OWN_MEASUREMENT]),
        }
        for kind in KINDS
    ]
    text = (
        f"Gene sets that more marker genes are in than chance would have it, among the genes of the panel "
        f"(hypergeometric test, false discovery rate below {FDR:.0%}); GSEA, which looks at the ranks of all genes, is "
        "in enrichment.csv. The bars are for merged expression."
    )
    best = ora[ora["expression"] == "merged"].nsmallest(10, "fdr")
    of_set = [f"{row.n_shared}/{row.n_set}" for row in best.itertuples()]
    best = best.assign(genes=of_set, fdr=[f"{p:.1g}" for p in best["fdr"]])
    return [
        Block("Enrichment", text, pd.DataFrame(rows), figures / "enrichment.png"),
        Block("First sets by merged expression", "", best[["group", "gene_set", "genes", "fdr"]]),
    ]


def _significant(table: pd.DataFrame, kind: str) -> tuple[pd.Series, pd.Series]:
    rows = table[(table["expression"] == kind) & (table["fdr"] < FDR)]
    return rows["group"], rows["gene_set"]


def _spatial(table: pd.DataFrame, figures: Path) -> Block:
    names = {
        "measured": "measured spots alone",
        "nearest": "average of the nearest",
        "predicted": "predicted",
        "with_noise": "predicted, with noise",
    }
    known = table[["truth", *names]].dropna()
    rows = [{"Moran's I by": name} | rank_agreement(known["truth"], known[column]) for column, name in names.items()]
    top = rows[0]["top"]
    shown = pd.DataFrame(rows).drop(columns="top").rename(columns={"spearman": "Spearman", "shared": f"of top {top}"})
    text = (
        "Moran's I says how much of a gene's expression is a spatial pattern. How well genes are ranked by it, beside "
        "what was measured at the spots that the model never saw. Predictions alone are smooth for every gene; 'with "
        "noise' adds to each gene the noise that the model expects of a measurement."
    )
    return Block("Spatially variable genes", text, shown, figures / "moran.png")
