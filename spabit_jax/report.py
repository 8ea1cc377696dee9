"""report.html: one file that says in plain words what was run and how good it is, figures inside."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from spabit_jax.files import replacing

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 46rem; margin: 0 auto; padding: 1rem; color: #222;
  background: #fff; overflow-wrap: anywhere; }
h1 { line-height: 1.2; } h2 { margin: 2.2rem 0 .4rem; line-height: 1.25; }
.lead { font-size: 1.15rem; } .small { color: #555; font-size: .85rem; }
img { display: block; max-width: 100%; height: auto; margin: .8rem auto; }
.table { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #ddd; vertical-align: bottom;
  overflow-wrap: normal; }
td:first-child, th:first-child { text-align: left; padding-left: 0; }
@media (max-width: 480px) { table { font-size: .8rem; } td, th { padding: .2rem .35rem; } }
@media print { body { max-width: none; font-size: 10.5pt; padding: 0; } h2 { break-after: avoid; }
  img { max-height: 20cm; break-inside: avoid; } table { break-inside: avoid; } .table { overflow: visible; } }
"""
BASELINES = {
    "gene_mean": "average of each gene",
    "knn_mean": "average of the 6 nearest measured spots",
    "ridge": "linear regression on the image",
}
FIGURES = {  # file: heading and what to see
    "gene_maps.png": (
        "Measured and predicted expression",
        "The gene that is predicted best, one in the middle and the worst, over the tissue. Both maps of a gene have "
        "the same colours.",
    ),
    "pcc_scatter.png": (
        "Each gene beside the simplest method",
        "A dot is a gene. Above the line the model predicts it better than the average of the nearest measured spots.",
    ),
    "calibration.png": (
        "Is the uncertainty right?",
        "Every prediction comes with intervals. On the dashed line they hold as many measurements as they say; below "
        "it they are too narrow, above it too wide.",
    ),
    "history.png": (
        "Training",
        "The error during training, a line for each network. Training ends when the error on spots held back for that "
        "purpose (valid) no longer falls.",
    ),
}


class Block(NamedTuple):
    """A part of the report; text is plain, paragraphs by empty lines."""

    title: str
    text: str = ""
    table: pd.DataFrame | None = None
    figure: Path | None = None


def run_blocks(run: Path, metrics: dict) -> list[Block]:
    """What a run folder has to say.

    Args:
      run: the folder, with ``genes.csv``, ``config.json`` and ``figures/``.
      metrics: the content of metrics.json.
    """
    method, protocol = metrics["method"], metrics["protocol"]
    genes = pd.read_csv(run / "genes.csv", keep_default_na=False, na_values={"pcc": [""]})
    final = genes[genes["seed"].isin(["", "ensemble"])]
    table = final.groupby("method", sort=False)[["pcc", "mse", "mae"]].mean()
    blocks = [Block("", _summary(metrics, table, final[final["method"] == method]))]
    given = "All methods were given the same measured spots"
    if related := protocol.get("related"):
        more = " and ".join(f"{n} of {name}" for name, n in related.items())
        given += f" (the model was also given {more}, which the others were not)"
    named = table.rename(index=BASELINES | {method: f"this model ({method})"}).round(3)
    named.columns = ["PCC", "MSE", "MAE"]
    blocks.append(
        Block(
            "How good is it?",
            f"{given}, and asked for the same others. PCC is the correlation of "
            "prediction and measurement, gene by gene, averaged over the genes: 1 is perfect, 0 no better than a "
            "constant. MSE and MAE are mean squared and absolute errors in log2(count + 1): lower is better. "
            "Measurements are noisy, so that no method can reach a PCC of 1.",
            named.rename_axis("method").reset_index(),
        )
    )
    for file, (title, text) in FIGURES.items():
        if (run / "figures" / file).exists():
            blocks.append(Block(title, text, figure=run / "figures" / file))
    ranked = final[final["method"] == method].dropna(subset=["pcc"]).sort_values("pcc", ascending=False)
    if len(ranked):
        top = ranked.head(10)[["gene", "pcc"]].round(3).rename(columns={"pcc": "PCC"})
        blocks.append(Block("The ten genes that are predicted best", "All genes are in genes.csv.", top))
    blocks.append(Block("How it was made", _provenance(run, metrics, protocol)))
    return blocks


def _summary(metrics: dict, table: pd.DataFrame, genes: pd.DataFrame) -> str:
    protocol, method = metrics["protocol"], metrics["method"]
    n_spots = protocol["n_train"] + protocol["n_test"]
    text = (
        f"The expression of {protocol['n_genes']} genes was measured at {protocol['n_train']} of {n_spots} spots of "
        f"section {metrics['section']} and predicted at the other {protocol['n_test']}, whose measurements the model "
        f"never saw and with which its predictions are compared here.\n\n"
    )
    pcc = table.loc[method, "pcc"]
    others = table["pcc"].drop(method)
    if pd.isna(pcc):
        return text + "No gene varies over these spots, so that no correlation can be given."
    best = others.idxmax()
    text += f"The mean correlation of prediction and measurement is {pcc:.3f}, "
    text += f"that of the best simple method ({BASELINES.get(best, best)}) {others[best]:.3f}: "
    if pcc > others[best]:
        text += "the model is better" + (f" by {pcc / others[best] - 1:.0%}. " if others[best] > 0 else ". ")
    else:
        text += "the model is no better, and the simple method is the one to use. "
    text += f"{(genes['pcc'] > 0.5).sum()} of {len(genes)} genes have a correlation above 0.5."
    if (covered := metrics["ensemble"].get("coverage90")) is not None:
        text += f" Intervals that should hold 90% of the measurements hold {covered:.1%}."
    return text


def _provenance(run: Path, metrics: dict, protocol: dict) -> str:
    image = "no image" if metrics["encoder"] == "none" else f"image features by {metrics['encoder']}"
    n_seeds = len(metrics["seeds"])
    text = (
        f"Method {metrics['method']}, {n_seeds} {'network' if n_seeds == 1 else 'networks averaged'}, {image}; "
        f"spots split by the rule {protocol['split']}, genes chosen by {protocol['panel']}."
    )
    path = run / "config.json"
    if path.exists():
        config = json.loads(path.read_text())
        versions = ", ".join(f"{name} {version}" for name, version in config.get("versions", {}).items())
        text += f"\n\nCommand: python -m experiments.run {' '.join(config.get('command', []))}\n\nVersions: {versions}"
    return text


def write_report(path: Path, title: str, blocks: Sequence[Block]) -> None:
    """Writes the report: no script, no reference to any other file; to be read on a phone and on paper."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += '<link rel="icon" href="data:,">'  # or browsers ask the server for one
    title = f"SpaBiT: {escape(title)}"
    page = f'<!doctype html><html lang="en"><head>{head}<title>{title}</title><style>{STYLE}</style></head><body>'
    parts = [page, f"<h1>{title}</h1>"]
    for i, block in enumerate(blocks):
        if block.title:
            parts.append(f"<h2>{escape(block.title)}</h2>")
        lead = ' class="lead"' if i == 0 else ""
        parts += [f"<p{lead}>{escape(text)}</p>" for text in block.text.split("\n\n") if text]
        if block.table is not None:
            parts.append(f'<div class="table">{_html_table(block.table)}</div>')
        if block.figure is not None:
            data = base64.b64encode(block.figure.read_bytes()).decode()
            parts.append(f'<img alt="{escape(block.title)}" src="data:image/png;base64,{data}">')
    with replacing(path) as temporary:
        temporary.write_text("\n".join([*parts, "</body></html>"]))


def _html_table(table: pd.DataFrame) -> str:
    head = "".join(f"<th>{escape(str(column))}</th>" for column in table.columns)
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(format_cell(value))}</td>' for value in row)}</tr>"
        for row in table.itertuples(index=False)
    )
    return f"<table><tr>{head}</tr>{rows}</table>"


def format_cell(value) -> str:
    """A number with three decimals, a missing one as a dash."""
    if isinstance(value, float):
        return "–" if pd.isna(value) else f"{value:.3f}"
    return str(value)


def markdown_table(head: list[str], lines: list[list[str]]) -> str:
    """Cells as a table in Markdown."""
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, ["---"] * len(head), *lines])
