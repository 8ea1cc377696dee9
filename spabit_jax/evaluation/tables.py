"""The tables of a benchmark: rows of run folders, and as Markdown."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy import stats

from spabit_jax.evaluation import metrics
from spabit_jax.evaluation.baselines import BASELINES, NEED_IMAGE
from spabit_jax.evaluation.gene_tables import read_genes
from spabit_jax.evaluation.report import markdown_table
from spabit_jax.files import read_json
from spabit_jax.predictions import measured_counts, scale_of
from spabit_jax.scale import LABELS

PIECE = ["section", "split", "scale", "encoder"]
STAND_IN = "kriging"  # for methods that need an image, in means over sections, on sections that have none


def pivot(table: pd.DataFrame, value: str) -> pd.DataFrame:
    """Means of a column: a row per (section, split, scale, encoder), a column per method, in the order of the table."""
    return table.pivot_table(value, PIECE, "method", sort=False, dropna=False).dropna(how="all")


def markdown(rows: pd.DataFrame, genes: pd.DataFrame, model: str) -> str:
    """Tables for each split, scale and encoder.

    Args:
      rows: content of results.csv.
      genes: content of genes.csv.
      model: the method that is compared with the best baseline.
    """
    rows, genes = (table[table["seed"].isin(["", "ensemble"])] for table in (rows, genes))
    encoders = [encoder for encoder in rows["encoder"].unique() if encoder != "none"] or ["none"]
    parts = []
    for (split, scale), of_split in rows.groupby(["split", "scale"], sort=False):
        for encoder in encoders:
            r = of_split[of_split["encoder"].isin([encoder, "none"])]
            if r.empty:
                continue
            g = genes[(genes["split"] == split) & (genes["scale"] == scale) & genes["encoder"].isin([encoder, "none"])]
            n_genes = " to ".join(map(str, sorted({r["n_genes"].min(), r["n_genes"].max()})))
            title = f"{LABELS[scale]}, panel {r['panel'].iloc[0]} ({n_genes} genes), split {split}, encoder {encoder}"
            parts.append(f"## {title}\n\n{accuracy_table(r, g)}")
            if model in set(r["method"]) and set(BASELINES) & set(r["method"]):
                parts.append(comparison_table(r, g, model))
    return "\n".join(parts)


def accuracy_table(rows: pd.DataFrame, genes: pd.DataFrame) -> str:
    """PCC of each section and method, with the noise ceiling; below it means over sections."""
    methods = list(rows["method"].unique())
    same = rows.groupby(PIECE)[["panel", "n_genes", "n_train", "n_test", "depth_only"]].nunique().max()
    alike = same.max() == 1  # not so in a sweep of panels or splits
    ceiling = pivot(genes, "ceiling").max(axis=1)  # the same whatever the method, where they are alike
    sizes = rows.groupby(PIECE, sort=False)[["n_train", "n_test"]].first()
    depth = rows.groupby(PIECE, sort=False)["depth_only"].first()
    pcc = pivot(rows, "pcc")[methods]
    lines = []
    for label, values in pcc.iterrows():
        n_train, n_test = sizes.loc[label] if same[["n_train", "n_test"]].max() == 1 else "––"
        bounds = [f"{ceiling[label]:.3f}", f"{depth[label]:.3f}"] if alike else ["–", "–"]
        best = values.max() if alike else None
        lines.append([label[0], f"{n_train} / {n_test}", *bounds, *_cells(values, best)])
    columns = ("pcc", "mse", "coverage90")
    means = {c: _filled(pivot(rows, c).reindex(columns=methods)).mean(skipna=False) for c in columns}
    bounds = [f"{ceiling.mean():.3f}", f"{depth.mean():.3f}"] if alike else ["–", "–"]
    best = (means["pcc"].max(), means["mse"].min()) if alike else (None, None)
    lines.append(["mean PCC", "", *bounds, *_cells(means["pcc"], best[0])])
    lines.append(["mean MSE", "", "", "", *_cells(means["mse"], best[1])])
    lines.append(["mean coverage of 90% intervals", "", "", "", *_cells(means["coverage90"])])
    weights = pivot(rows, "weight").reindex(columns=methods).mean()
    lines.append(["mean weight in the prediction", "", "", "", *_cells(weights)])
    head = ["Section", "train / test", "noise ceiling", "depth only", *methods]
    note = (
        "Mean over the genes of the Pearson correlation on test spots; of a model, that of its ensemble, and with a "
        "colon that of one of its members alone. The ceiling is what a perfect prediction would have, by the noise of "
        "counts. Depth only is no method: it knows the true total count of each test spot, and nothing else of it.\n"
    )
    if not alike:
        note += "Here methods have panels or spots of their own: figures over different ones cannot be compared.\n"
    if pcc.isna().to_numpy().any() and STAND_IN in methods:
        note += f"In the means a method that needs an image takes the value of {STAND_IN} where there is none.\n"
    return f"{markdown_table(head, lines)}\n{note}"


def comparison_table(rows: pd.DataFrame, genes: pd.DataFrame, model: str) -> str:
    """The model against the baseline that is best on each section, known only from the test spots."""
    lines, differences = [], []
    keyed = rows.set_index([*PIECE, "method"])
    for label, section in genes.groupby(PIECE, sort=False):
        pcc = section.pivot(index="gene", columns="method", values="pcc").dropna(how="all")
        baselines = [method for method in pcc if method in BASELINES]
        if not (baselines and len(pcc)):
            continue
        best = pcc[baselines].mean().idxmax()
        difference = (pcc[model] - pcc[best]).to_numpy()
        low, high = metrics.bootstrap_interval(difference)
        p = stats.wilcoxon(difference).pvalue if difference.any() else 1.0
        ours, theirs = keyed.loc[(*label, model)], keyed.loc[(*label, best)]
        differences.append([difference.mean(), ours["mse"], theirs["mse"], ours["coverage90"], theirs["coverage90"]])
        interval = "–" if np.isnan(low) else f"{low:+.4f} to {high:+.4f}"
        mean = differences[-1]
        lines.append([label[0], best, f"{mean[0]:+.4f}", interval, f"{p:.2g}", *_numbers(mean[1:])])
    if not lines:
        return ""
    mean = np.mean(differences, axis=0)
    lines.append(["mean", "", f"{mean[0]:+.4f}", "", "", *_numbers(mean[1:])])
    head = ["Section", "best baseline", "difference in PCC", "95% interval", "p"]
    head += [f"MSE, {model}", "MSE, baseline", f"coverage, {model}", "coverage, baseline"]
    note = (
        f"{model} minus the baseline with the highest PCC on the section's test spots. Interval: bootstrap over genes; "
        "p: Wilcoxon signed-rank test, paired over genes. Coverage: share of test values within mean ± 1.645 sd.\n"
    )
    return f"{markdown_table(head, lines)}\n{note}"


def _filled(table: pd.DataFrame) -> pd.DataFrame:
    table = table.copy()
    for method in set(NEED_IMAGE) & set(table) if STAND_IN in table else ():
        table[method] = table[method].fillna(table[STAND_IN])
    return table


def _cells(values: pd.Series, bold: float | None = None) -> list[str]:
    cells = ["–" if np.isnan(value) else f"{value:.3f}" for value in values]
    return [f"**{cell}**" if value == bold else cell for cell, value in zip(cells, values, strict=True)]


def _numbers(values) -> list[str]:
    return [f"{value:.3f}" for value in values]


def rows_of_run(run: Path) -> tuple[list[dict], pd.DataFrame]:
    """A run folder as rows of the benchmark's results.csv (each seed, the ensemble, members) and of its genes.csv."""
    content = read_json(run / "metrics.json", "delete it and run again")
    protocol, method = content["protocol"], content["method"]
    key = {name: content[name] for name in ("section", "encoder")}
    key |= {"method": method, "split": protocol["split"], "scale": protocol["scale"]}
    more = {name: protocol[name] for name in ("n_train", "n_test", "n_genes", "panel")}
    more["depth_only"] = content["depth_only"]
    of_seeds = zip(*(content[metric]["per_seed"] for metric in metrics.METRICS), strict=True)
    rows = [
        {**key, **more, "seed": seed, **dict(zip(metrics.METRICS, of_seed, strict=True))}
        for seed, of_seed in zip(content["seeds"], of_seeds, strict=False)  # one alone where no member has seeds
    ]
    seconds = round(sum(content["seconds"].values()), 3)
    rows.append({**key, **more, "seed": "ensemble", **content["ensemble"], "seconds": seconds})
    for name, scores in content["members"].items() if len(content["members"]) > 1 else ():
        of_member = {"method": f"{method}:{name}", "seed": "ensemble", "weight": content["weights"][name]}
        rows.append({**key, **more, **of_member, **scores})

    predictions = anndata.read_h5ad(run / "predictions.h5ad")
    test, (counts, totals) = (predictions.obs["split"] == "test").to_numpy(), measured_counts(predictions)
    ceiling = metrics.noise_ceiling(counts[test], totals[test], scale_of(predictions))
    ceiling = pd.Series(ceiling, predictions.var_names)
    genes = read_genes(run / "genes.csv")
    genes = genes[genes["method"].isin([row["method"] for row in rows])]
    key.pop("method")
    return rows, genes.assign(**key, ceiling=ceiling.reindex(genes["gene"]).to_numpy())
