"""report.html: one file that says in plain words what was run and how good it is, figures inside."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from spabit_jax.errors import InputError
from spabit_jax.evaluation.gene_tables import read_genes
from spabit_jax.files import read_json, replacing
from spabit_jax.scale import LABELS

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
MEMBERS = {
    "pretrained": "pretrained SpaBiT",
    "spabit": "SpaBiT",
    "kriging": "learned kriging",
    "ridge": "ridge regression",
}
RIVALS = {  # of ``baselines.BASELINES``
    "knn_mean": "mean of 6 nearest spots",
    "ridge_neighbours": "ridge + neighbours",
    "kriging": "plain kriging",
    "kriging_learned": "learned kriging",
}
SCALES = {  # which question each answers
    "log2_count": "log2(count + 1), as the PyTorch original has it. A spot with more counts in all has more of every "
    "gene, so that much of what is predicted on this scale is sequencing depth",
    "log1p_normalised": "log1p of counts scaled to one total for every spot: which genes a place has more of than "
    "others, whatever its depth",
}
FIGURES = {  # file: heading and what to see
    "gene_maps.png": (
        "Given, predicted, measured",
        "Given: the measurements that the model had. Predicted: at every spot. Measured: what it is compared with. All "
        "maps of a gene have the same colours, and a pointed end of their bar means that some values lie beyond it.",
    ),
    "pcc_scatter.png": (
        "Each gene beside the best of the simple methods",
        "A dot is a gene. Above the line the model predicts it better.",
    ),
    "calibration.png": (
        "Is the uncertainty right?",
        "Every prediction comes with intervals. On the dashed line they hold as many measurements as they say; below "
        "it they are too narrow, above it too wide.",
    ),
    "history.png": (
        "Training of the network",
        "The error of SpaBiT during training, a line for each network. Training ends when the error on spots held back "
        "for that purpose (valid) no longer falls. Its part in the prediction is its weight, above.",
    ),
}
LEVEL = 0.01  # share by which two methods must differ to be told apart
NO_PART = 0.01  # weight below which a member is not in the numbers
BOUNDS = {"noise ceiling": "ceiling", "depth only": "depth_only"}

def check_method(name: str) -> None:
    """InputError for a configuration's name that a rival has in its tables."""
    if name in RIVALS:
        raise InputError(f"config.name is {name!r}, which is a method's name already: give another")


class Block(NamedTuple):
    """A part of the report; text is plain, paragraphs by empty lines."""

    title: str
    text: str = ""
    table: pd.DataFrame | None = None
    figure: Path | None = None


def run_blocks(run: Path, metrics: dict) -> list[Block]:
    """What a run folder has to say.

    Args:
      run: the folder, with ``config.json``, ``figures/`` and, where there are test spots, ``genes.csv``.
      metrics: the content of metrics.json.
    """
    blocks = [Block("", _summary(metrics))]
    if "ensemble" in metrics:  # there are train and test spots
        blocks.append(Block("How good is it?", _how_compared(metrics), _table(metrics)))
    for file, (title, text) in FIGURES.items():
        if (run / "figures" / file).exists():
            blocks.append(Block(title, text, figure=run / "figures" / file))
    if "ensemble" in metrics:
        genes = read_genes(run / "genes.csv")
        own = genes[(genes["method"] == metrics["method"]) & (genes["seed"] == "ensemble")]
        top = own.dropna(subset=["pcc"]).nlargest(10, "pcc")[["gene", "pcc"]].round(3)
        if len(top):
            title = "The ten genes that are predicted best"
            blocks.append(Block(title, "All genes are in genes.csv.", top.rename(columns={"pcc": "PCC"})))
    blocks.append(Block("How it was made", _provenance(run, metrics, metrics["protocol"])))
    return blocks


def _shares(weights: dict[str, float]) -> str:
    """Who predicts, in words."""
    named = [f"{MEMBERS.get(name, name)} {weight:.0%}" for name, weight in weights.items()]
    text = f"The prediction is {named[0].rsplit(' ', 1)[0]}'s alone."
    if len(named) > 1:
        if (rest := 1 - sum(weights.values())) > 0.005:
            named.append(f"each gene's mean {rest:.0%}")
        text = f"The prediction is a weighted mean: {', '.join(named)}; the weights were found on held-out train spots."
        if weights.get("spabit", 1) < NO_PART:
            text += " SpaBiT is not in these numbers."
    return text


def _summary(metrics: dict) -> str:
    protocol = metrics["protocol"]
    n_spots = protocol["n_train"] + protocol["n_test"]
    genes = f"The expression of {protocol['n_genes']} genes (panel {protocol['panel']})"
    scale = f"Expression is {SCALES[protocol['scale']]}."
    if not protocol["n_train"]:
        return (
            f"{genes} was predicted at the {n_spots} spots of section {metrics['section']} from the image alone, by "
            "what related sections say: nothing measured here tells how good it is. "
            f"{_shares(metrics['weights'])}\n\n{scale}"
        )
    if not protocol["n_test"]:
        return (
            f"{genes} was measured at all {n_spots} spots of section {metrics['section']}, and the model learned from "
            f"all of them: no spot is left to say how good it is. {_shares(metrics['weights'])}\n\n{scale} For "
            "figures of accuracy run the same section with a split."
        )
    text = (
        f"{genes} was measured at {protocol['n_train']} of {n_spots} spots of section {metrics['section']} and "
        f"predicted at the other {protocol['n_test']}, whose measurements the model never saw and with which its "
        f"predictions are compared here. {_shares(metrics['weights'])}\n\n{scale}\n\n"
    )
    pcc = metrics["ensemble"]["pcc"]
    if pcc is None:
        return text + "No gene varies over these spots, so that no correlation can be given."
    rivals = {name: scores["pcc"] for name, scores in metrics["baselines"].items()}
    best = max(rivals, key=rivals.get)
    text += f"The mean correlation of prediction and measurement is {pcc:.3f}. The best of {len(rivals)} simple "
    text += f"methods ({RIVALS[best]}) has {rivals[best]:.3f}: the model is "
    ratio = pcc / rivals[best] if rivals[best] > 0 else None
    if ratio is not None and abs(ratio - 1) < LEVEL:
        text += "level with it. "
    elif pcc > rivals[best]:
        text += "better" + (f" by {ratio - 1:.1%}. " if ratio else ". ")
    else:
        text += "no better, and the simple method is the one to use. "
    if len(metrics["members"]) > 1 and "spabit" in metrics["members"]:
        text += f"SpaBiT alone has {metrics['members']['spabit']['pcc']:.3f}. "
    if metrics["ceiling"] is not None:
        text += f"Measurements are noisy: a perfect prediction would have about {metrics['ceiling']:.2f}. "
    if metrics["depth_only"] is not None:
        text += (
            f"Whoever knew nothing of a spot but its true total count would have {metrics['depth_only']:.3f}: that "
            "much of such a figure can be sequencing depth. "
        )
    if (covered := metrics["ensemble"].get("coverage90")) is not None:
        text += f"Intervals that should hold 90% of the measurements hold {covered:.1%}."
    return text


def _how_compared(metrics: dict) -> str:
    given = "All methods were given the same measured spots"
    if related := metrics["protocol"].get("related"):
        more = " and ".join(f"{n} of {name}" for name, n in related.items())
        given += f" (the model also {more})"
    parts = "Rows with a weight are the parts of the prediction, each alone. " if len(metrics["weights"]) > 1 else ""
    if parts and "kriging" in metrics["weights"]:
        parts += "Learned kriging is among them with the run's settings, and beside the model with the usual ones. "
    return (
        f"{given}, and asked for the same others. PCC is the correlation of prediction and measurement, gene by gene, "
        "averaged over the genes: 1 is perfect, 0 no better than a constant. MSE and MAE are mean squared and absolute "
        f"errors of {LABELS[metrics['protocol']['scale']]}: lower is better. {parts}"
        "The noise ceiling is an estimate from the counts; depth only is no method, as it is given the test spots' "
        "totals."
    )


def _table(metrics: dict) -> pd.DataFrame:
    weights = metrics["weights"]
    rows = [(f"this model ({metrics['method']})", "", metrics["ensemble"])]
    if len(weights) > 1:
        rows += [(f"its {MEMBERS.get(n, n)} alone", f"{weights[n]:.3f}", of) for n, of in metrics["members"].items()]
    rows += [(RIVALS[name], "", scores) for name, scores in metrics["baselines"].items()]
    rows += [(name, "", {"pcc": metrics[key]}) for name, key in BOUNDS.items()]
    cells = [(name, weight, *(_cell(of.get(score)) for score in ("pcc", "mse", "mae"))) for name, weight, of in rows]
    table = pd.DataFrame(cells, columns=["method", "weight", "PCC", "MSE", "MAE"])
    return table if len(weights) > 1 else table.drop(columns="weight")


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _provenance(run: Path, metrics: dict, protocol: dict) -> str:
    windows = " and ".join(f"{width:g}" for width in metrics["patch_px"])
    image = f"image features by {metrics['encoder']} of windows of {windows} full-resolution pixels"
    image = "no image" if metrics["encoder"] == "none" else image
    n_seeds, networks = len(metrics["seeds"]), ""
    if n_seeds and "spabit" in metrics["weights"]:
        networks = f" {n_seeds} {'network' if n_seeds == 1 else 'networks averaged'},"
    text = (
        f"Method {metrics['method']},{networks} {image}; spots split by the rule {protocol['split']}, genes chosen by "
        f"{protocol['panel']}."
    )
    path = run / "config.json"
    if path.exists():
        config = read_json(path, "run experiments.run again, into another --out")
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
    with pd.option_context("display.max_colwidth", None):  # or long cells are cut
        return table.map(format_cell).to_html(index=False, border=0)


def format_cell(value) -> str:
    """A number with three decimals, a missing one as a dash."""
    if isinstance(value, float):
        return "–" if pd.isna(value) else f"{value:.3f}"
    return str(value)


def markdown_table(head: list[str], lines: list[list[str]]) -> str:
    """Cells as a table in Markdown."""
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, ["---"] * len(head), *lines])
