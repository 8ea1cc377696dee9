"""The last stage of a run, where its predictions meet the truth of test spots."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from spabit_jax.data.prepared import Inputs
from spabit_jax.evaluation import baselines, metrics, plots
from spabit_jax.evaluation.report import MEMBERS, RIVALS, run_blocks, write_report
from spabit_jax.files import replacing, write_json
from spabit_jax.scale import total_counts

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # of the intervals whose coverage is measured
NO_PART = 0.01  # weight below which a member is not in the numbers
SCORES = ("pcc", "mse", "mae")


def evaluate(
    out: Path,
    inputs: Inputs,
    predictions: AnnData,
    per_seed: np.ndarray,
    members: dict[str, np.ndarray],
    header: dict,
    seconds: dict,
) -> dict:
    """Writes ``genes.csv``, ``metrics.json``, ``figures/`` and ``report.html``, and prints the table.

    Without test spots there is nothing to compare with: of the metrics only the weights are known.

    Args:
      out: the run folder, with ``history.csv``.
      inputs: the section that was predicted.
      predictions: content of predictions.h5ad, N spots.
      per_seed: (S, N, G) predictions of each seed.
      members: name → (N, G) predictions of each member alone.
      header: the parts of metrics.json that describe the run.
      seconds: of each stage.

    Returns:
      The content of metrics.json.
    """
    weights = {name: float(predictions.uns["spabit"]["weights"][name]) for name in members}
    content = {**header, "weights": weights}
    if len(inputs.test_spots):
        content |= _scores(out, inputs, predictions, per_seed, members, header)
    content["seconds"] = seconds
    _figures(out, predictions, content)
    write_report(out / "report.html", f"{header['section']}, {header['method']}", run_blocks(out, content))
    write_json(out / "metrics.json", content)  # last: its presence says that the run is whole
    print(summary(content))
    print(f"written to {out}: metrics.json, genes.csv, predictions.h5ad, report.html, figures/")
    return content


def _scores(out: Path, inputs: Inputs, predictions: AnnData, per_seed, members: dict, header: dict) -> dict:
    """What metrics.json says of the test spots; writes ``genes.csv`` and the figures that compare with the truth."""
    test, method = inputs.test_spots, header["method"]
    truth = predictions.layers["truth"][test]

    def score(predicted: np.ndarray) -> pd.DataFrame:
        return metrics.gene_metrics(truth, predicted, predictions.var_names)

    seeds = [score(predicted[test]) for predicted in per_seed]
    ensemble = score(predictions.X[test])
    alone = {name: score(predicted[test]) for name, predicted in members.items()}
    rivals = {name: score(predicted) for name, predicted in _rivals(inputs, members).items()}
    rows = [(method, seed, table) for seed, table in zip(header["seeds"], seeds, strict=True)]
    rows += [(method, "ensemble", ensemble)]
    rows += [(f"{method}:{name}", "ensemble", table) for name, table in alone.items()]
    rows += [(name, "", table) for name, table in rivals.items()]
    genes = pd.concat(
        table.reset_index().assign(method=name, seed=seed, section=header["section"]) for name, seed, table in rows
    )
    with replacing(out / "genes.csv") as temporary:
        genes[["section", "method", "seed", "gene", *SCORES]].to_csv(temporary, index=False)

    summary = metrics.summarize_seeds([metrics.summarize(table) for table in seeds], metrics.summarize(ensemble))
    covered = [metrics.coverage(truth, predictions.X[test], predictions.layers["sd"][test], level) for level in LEVELS]
    summary["ensemble"]["coverage90"] = covered[LEVELS.index(0.9)]
    summary["members"] = {name: _three(table) for name, table in alone.items()}
    summary["baselines"] = {name: _three(table) for name, table in rivals.items()}
    totals = total_counts(inputs.adata)
    ceiling = metrics.noise_ceiling(inputs.counts()[test], totals[test], inputs.scale)
    summary["ceiling"] = _number(np.nanmean(ceiling)) if np.isfinite(ceiling).any() else None
    train = np.flatnonzero(inputs.is_train)
    depth = metrics.depth_only(predictions.layers["truth"][train], totals[train], totals[test])
    summary["depth_only"] = _three(score(depth))["pcc"]

    plots.plot_calibration(LEVELS, covered, out / "figures" / "calibration.png")
    best = max(rivals, key=lambda name: np.nan_to_num(rivals[name]["pcc"].mean(), nan=-2))
    x, y = rivals[best]["pcc"].to_numpy(), ensemble["pcc"].to_numpy()
    plots.plot_pcc_scatter(x, y, RIVALS[best], method, out / "figures" / "pcc_scatter.png")
    return summary


def _rivals(inputs: Inputs, members: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """(n, G) at the test spots, by what a user could do without this model; learned kriging is a member's already."""
    is_train, test = inputs.is_train, inputs.test_spots
    spots = baselines.make_spots(inputs.adata.obsm["spatial"], inputs.features())
    given, truth = spots.at(is_train), inputs.truth()[is_train]
    predicted = {}
    for name in RIVALS:
        if name == "kriging_learned" and "kriging" in members:
            predicted[name] = members["kriging"][test]
        else:
            predicted[name] = np.maximum(baselines.BASELINES[name]().fit(given, truth).predict(spots.at(test))[0], 0)
    return predicted


def summary(content: dict) -> str:
    """The table of a run, as text: the prediction, its members with their weights, its rivals and its bounds."""
    protocol, weights = content["protocol"], content["weights"]
    what = f"{protocol['n_genes']} genes (panel {protocol['panel']}), {protocol['scale']}"
    lines = ["", f"{content['section']}: {protocol['n_train']} train spots, {protocol['n_test']} test spots, {what}"]
    if protocol["n_test"]:
        lines.append(f"{'method':<28}{'weight':>8}{'PCC':>8}{'MSE':>8}{'MAE':>8}")
        rows = [(content["method"], "", content["ensemble"])]
        rows += [(f"  {MEMBERS.get(n, n)} alone", f"{weights[n]:.3f}", of) for n, of in content["members"].items()]
        rows += [(RIVALS[name], "", scores) for name, scores in content["baselines"].items()]
        for name, weight, scores in rows:
            lines.append(f"{name:<28}{weight:>8}" + "".join(f"{_text(scores[score]):>8}" for score in SCORES))
        lines.append(f"{'noise ceiling':<28}{'':>8}{_text(content['ceiling']):>8}")
        lines.append(f"{'depth only':<28}{'':>8}{_text(content['depth_only']):>8}")
        covered = content["ensemble"]["coverage90"]
        lines.append(f"90% intervals hold {covered:.1%} of the test measurements")
    else:
        shares = ", ".join(f"{MEMBERS.get(name, name)} {weight:.3f}" for name, weight in weights.items())
        lines.append(f"every spot is a train spot: there is no test spot to evaluate on. Weights: {shares}")
    for name, weight in weights.items():
        if weight < NO_PART:
            lines.append(f"the weight of {MEMBERS.get(name, name)} is {weight:.3f}: it is not in these numbers")
    return "\n".join(lines)


def _three(table: pd.DataFrame) -> dict[str, float | None]:
    summarized = metrics.summarize(table)
    return {name: _number(summarized[name]) for name in SCORES}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _figures(out: Path, predictions: AnnData, content: dict) -> None:
    folder = out / "figures"
    shown = _shown(out, predictions, content)
    if shown:
        plots.plot_gene_maps(predictions, shown, folder / "gene_maps.png")
    history = pd.read_csv(out / "history.csv") if (out / "history.csv").exists() else ()
    if len(history):  # an imported network has none
        plots.plot_history(history, folder / "history.png", content["weights"]["spabit"])


def _shown(out: Path, predictions: AnnData, content: dict) -> dict[str, str]:
    """Label → gene: the best, the median and the worst; without test spots those that are predicted to vary most."""
    if not content["protocol"]["n_test"]:
        order = np.argsort(-predictions.X.std(axis=0), kind="stable")
        return {f"varies most, {i + 1}": predictions.var_names[gene] for i, gene in enumerate(order[:3])}
    genes = pd.read_csv(out / "genes.csv", keep_default_na=False, na_values={"pcc": [""]})
    own = genes[(genes["method"] == content["method"]) & (genes["seed"] == "ensemble")]
    ranked = own.dropna(subset=["pcc"]).sort_values("pcc", ascending=False, kind="stable")["gene"].to_list()
    return {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]} if ranked else {}
