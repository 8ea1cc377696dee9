"""All analyses of one run's predictions, and their files."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData

from spabit_jax.downstream import plots
from spabit_jax.downstream.domains import agreement, find_domains
from spabit_jax.downstream.enrichment import enrich, find_markers
from spabit_jax.downstream.expression import kinds, known_labels
from spabit_jax.downstream.report import downstream_blocks, markdown
from spabit_jax.downstream.spatial import spatial_genes
from spabit_jax.downstream.tumour import MIN_SPOTS, find_tumour
from spabit_jax.errors import InputError
from spabit_jax.evaluation.report import run_blocks, write_report
from spabit_jax.files import check_whole, read_json, replacing
from spabit_jax.predictions import scale_of
from spabit_jax.readers.tables import read_labels

MAP = (True, "mixture")  # the clustering that is drawn, whatever the scores: mclust's model, with smoothing
FIGURES = {
    "domains": ["domain_maps"],
    "tumour": ["tumour_roc", "tumour_map"],
    "markers": [],
    "enrichment": ["enrichment"],
    "moran": ["moran"],
}  # of each table


def read_run(run: Path, labels: str | None = None) -> tuple[AnnData, dict]:
    """The predictions of a run, with the labels of a file if one is given, and its metrics.

    Raises:
      InputError: not a finished run, no train or no test spot, or labels that do not fit.
    """
    for name in ("predictions.h5ad", "metrics.json"):
        if not (run / name).exists():
            raise InputError(
                f"{run / name} is missing: give --run the folder of a finished experiments.run that holds out spots"
            )
        check_whole(run / name, "run the stages predict and evaluate again (--stages=predict,evaluate)")
    metrics = read_json(run / "metrics.json", "run the stage evaluate again (--stages=evaluate)")
    if "weights" not in metrics:
        raise InputError(f"{run} was made by an older version: run experiments.run again, into another --out")
    if not (metrics["protocol"]["n_test"] and metrics["protocol"]["n_train"]):
        none = "train" if metrics["protocol"]["n_test"] else "test"
        raise InputError(f"{run} has no {none} spot, so that there is nothing to compare with: give another run")
    predictions = anndata.read_h5ad(run / "predictions.h5ad")
    if labels:
        if not Path(labels).is_file():
            raise InputError(f"{labels}: no such file")
        predictions.obs["label"] = read_labels(Path(labels), predictions.obs_names).astype("category")
    return predictions, metrics


class Analyses:
    """What is made of one run's predictions.

    Attributes:
      tables: file name without .csv → DataFrame, once made.
      left_out: a line for each analysis that could not be made, and why.
      grouping: what the groups of the marker genes are: ``label`` or ``domain``.
    """

    def __init__(self, predictions, figures: Path):
        self.predictions, self.figures = predictions, figures
        self.labels = known_labels(predictions)
        self.names = sorted(set(self.labels) - {""})
        xy = pd.DataFrame(predictions.obsm["spatial"], predictions.obs.index.rename("barcode"), columns=["x", "y"])
        self.spots = xy.assign(split=predictions.obs["split"], label=self.labels)
        self.groups, self.grouping = self.labels, "label"
        self.tables, self.left_out = {}, []

    def domains(self, n_domains: int | None, n_seeds: int) -> None:
        n_domains = n_domains or len(self.names)
        if n_domains > (self.spots["split"] == "train").sum():
            raise InputError(f"--n_domains={n_domains} is more than the run has train spots: give fewer")
        if n_domains < 2:
            self.left_out.append("spatial domains: there are no labels to say how many; give --n_domains")
            return
        self.tables["domains"], maps = find_domains(self.predictions, self.labels, n_domains, n_seeds)
        annotation = np.array([self.names.index(label) if label else -1 for label in self.labels])
        reference, drawn = annotation if self.names else maps["merged", *MAP], {}
        for kind in ("measured", "predicted", "merged"):
            domains = plots.matched(maps[kind, *MAP], reference)
            ari = agreement(domains[domains >= 0], self.labels[domains >= 0])[1]
            drawn[kind if np.isnan(ari) else f"{kind}, ARI {ari:.2f}"] = domains
        plots.plot_domains(self.predictions, drawn, annotation, self.names, self.figures / "domain_maps.png")
        self.spots["domain"] = [f"domain {number + 1}" for number in domains]  # of merged, the last
        if not self.names:
            self.groups, self.grouping = self.spots["domain"].to_numpy(object), "domain"

    def tumour(self, tumour_labels: list[str]) -> None:
        wanted = [label.strip().lower() for label in tumour_labels]
        positive = [label for label in self.names if label.lower() in wanted]
        if not positive:
            found = f"none of the labels {', '.join(self.names)} is in --tumour_labels"
            self.left_out.append(f"tumour regions: {found if self.names else 'there are no labels'}")
            return
        is_tumour = np.where(self.labels == "", np.nan, np.isin(self.labels, positive)).astype(float)
        table, maps = find_tumour(self.predictions, is_tumour)
        if table is None:
            self.left_out.append(f"tumour regions: fewer than {MIN_SPOTS} train spots, or no test spot, of one kind")
            return
        self.tables["tumour"] = table
        plots.plot_roc(is_tumour, maps, table.set_index("input")["auroc"], self.figures / "tumour_roc.png")
        plots.plot_probability(self.predictions, is_tumour, maps["predicted"], self.figures / "tumour_map.png")
        self.spots["tumour_probability"] = maps["predicted"]

    def markers(self, sets: dict) -> None:
        scale = scale_of(self.predictions).name
        found = {
            kind: find_markers(values, self.predictions.var_names, self.groups[spots], scale)
            for kind, (spots, values) in kinds(self.predictions).items()
        }
        if found["merged"].empty:
            self.left_out.append("marker genes and enrichment: there are no two groups of spots, labels or domains")
            return
        of_kinds = {"markers": found}
        if sets:
            of_kinds["enrichment"] = {kind: enrich(table, sets) for kind, table in found.items()}
        else:
            self.left_out.append("enrichment: there are no gene sets; give --gmt=FILE")
        for name, tables in of_kinds.items():
            tables = [table.assign(expression=kind) for kind, table in tables.items() if len(table)]
            table = pd.concat(tables, ignore_index=True)
            self.tables[name] = table[["expression", *table.columns.drop("expression")]]
        if sets:
            shown = self.tables["enrichment"].query("expression == 'merged' and test == 'ora'")
            plots.plot_enrichment(shown, self.figures / "enrichment.png")

    def spatial(self) -> None:
        table = spatial_genes(self.predictions)
        self.tables["moran"] = table.reset_index()
        plots.plot_spatial_genes(table, self.figures / "moran.png")


def write(run: Path, out: Path, metrics: dict, found: Analyses) -> str:
    """Tables, ``results.md`` and ``report.html``; returns the second, and where they are."""

    tables = found.tables | {"spots": found.spots.reset_index()}
    for name, table in tables.items():
        with replacing(out / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False)
    for name in FIGURES.keys() - tables.keys():  # of an earlier command, which had labels or gene sets
        for path in [out / f"{name}.csv", *(found.figures / f"{figure}.png" for figure in FIGURES[name])]:
            path.unlink(missing_ok=True)
    title = f"{metrics['section']}, {metrics['method']}"
    blocks = downstream_blocks(tables, found.left_out, found.figures, found.grouping)
    *of_run, how_it_was_made = run_blocks(run, metrics)
    write_report(out / "report.html", title, [*of_run, *blocks, how_it_was_made])
    text = markdown(title, blocks)
    with replacing(out / "results.md") as temporary:
        temporary.write_text(text)
    names = ", ".join(f"{name}.csv" for name in tables)
    return f"{text}\nwritten to {out}: {names}, results.md, report.html, figures/"
