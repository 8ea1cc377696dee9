"""The last stage of a run, where its predictions meet the truth of test spots."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from absl import logging
from anndata import AnnData
from threadpoolctl import threadpool_limits

from spabit_jax.errors import InputError
from spabit_jax.evaluation import baselines, curves, metrics, plots
from spabit_jax.evaluation.gene_tables import write_genes
from spabit_jax.evaluation.report import MEMBERS, NO_PART, RIVALS, check_method, run_blocks, write_report
from spabit_jax.files import write_json
from spabit_jax.predictions import measured_counts, scale_of
from spabit_jax.scale import TOTAL
from spabit_jax.training.devices import plain_jax

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # of the intervals whose coverage is measured
SCORES = ("pcc", "mse", "mae")


def evaluate(
    predictions: AnnData,
    members: Mapping[str, np.ndarray] | None = None,
    per_seed: Mapping[int, np.ndarray] | None = None,
) -> pd.DataFrame:
    """Predictions beside the truth of their test spots, and beside what a user could do without the model.

    Args:
      predictions: content of predictions.h5ad, with test spots.
      members: name → (N, G) predictions of each member alone, if they are known.
      per_seed: seed → (N, G) predictions of that seed, if they are known.

    Returns:
      A row for each gene and method: gene, method, seed (``ensemble``, a number, or "" of a rival), pcc, mse, mae.
      ``attrs["summary"]`` has what metrics.json says of them: pcc, mse, mae (mean, sd, per_seed), ensemble, members,
      baselines, ceiling, depth_only; ``attrs["coverage"]`` the share of measurements inside intervals of ``LEVELS``.

    Raises:
      InputError: there is no test spot or no train spot, or they are predictions at other places than the spots,
        or the method has the name of a rival.
    """
    test = np.flatnonzero((predictions.obs["split"] == "test").to_numpy())
    if (predictions.obs["split"] == "new").all():
        raise InputError("nothing is measured here: there is nothing to evaluate by")
    if not len(test):
        raise InputError("every spot is a train spot: there is no test spot to evaluate on")
    if TOTAL not in predictions.obs:
        raise InputError("predictions at new places cannot be evaluated: give those at the spots, of Model.predict()")
    n_train, n_known = int((predictions.obs["split"] == "train").sum()), predictions.uns["spabit"].get("n_train")
    if not n_train:
        raise InputError("no spot is a train spot: there is nothing to compare the prediction with")
    if n_known is not None and n_train < n_known:
        raise InputError(
            f"{n_known - n_train} of the {n_known} train spots are missing, from which what the prediction is compared "
            "with must learn, too: leave out test spots only"
        )
    truth, method = predictions.layers["truth"][test], predictions.uns["spabit"]["method"]
    check_method(method)

    def score(predicted: np.ndarray) -> pd.DataFrame:
        return metrics.gene_metrics(truth, predicted, predictions.var_names)

    members = members or {}
    seeds = {seed: score(predicted[test]) for seed, predicted in (per_seed or {}).items()}
    ensemble = score(predictions.X[test])
    alone = {name: score(predicted[test]) for name, predicted in members.items()}
    rivals = {name: score(predicted) for name, predicted in _rivals(predictions, test).items()}
    rows = [(method, seed, table) for seed, table in seeds.items()]
    rows += [(method, "ensemble", ensemble)]
    rows += [(f"{method}:{name}", "ensemble", table) for name, table in alone.items()]
    rows += [(name, "", table) for name, table in rivals.items()]
    genes = pd.concat(table.reset_index().assign(method=name, seed=seed) for name, seed, table in rows)

    of_seeds = [metrics.summarize(table) for table in seeds.values() or [ensemble]]
    summary = metrics.summarize_seeds(of_seeds, metrics.summarize(ensemble))
    sd = predictions.layers["sd"][test]
    covered = {level: metrics.coverage(truth, predictions.X[test], sd, level) for level in LEVELS}
    summary["ensemble"]["coverage90"] = covered[0.9]
    summary["members"] = {name: _three(table) for name, table in alone.items()}
    summary["baselines"] = {name: _three(table) for name, table in rivals.items()}
    counts, totals = measured_counts(predictions)
    ceiling = metrics.noise_ceiling(counts[test], totals[test], scale_of(predictions))
    summary["ceiling"] = metrics.number(np.nanmean(ceiling)) if np.isfinite(ceiling).any() else None
    train = np.flatnonzero((predictions.obs["split"] == "train").to_numpy())
    depth = metrics.depth_only(predictions.layers["truth"][train], totals[train], totals[test])
    summary["depth_only"] = _three(score(depth))["pcc"]
    genes = genes[["gene", "method", "seed", *SCORES]].reset_index(drop=True)
    genes.attrs = {"summary": summary, "coverage": covered}
    return genes


@plain_jax()
def _rivals(predictions: AnnData, test: np.ndarray) -> dict[str, np.ndarray]:
    """(n, G) at the test spots, by what a user could do without this model."""
    nothing, is_train = np.zeros((len(predictions), 0), np.float32), (predictions.obs["split"] == "train").to_numpy()
    components = np.asarray(predictions.obsm.get("image_components", nothing))
    spots = baselines.Spots(baselines.in_pitches(predictions.obsm["spatial"]), nothing, components)
    given, truth = spots.at(is_train), predictions.layers["truth"][is_train]
    predicted = {}
    with threadpool_limits(1, "blas"):  # or its threads wait for each other where others use the machine too
        for name in RIVALS:
            rival = baselines.BASELINES[name]().fit(given, truth)
            predicted[name] = np.maximum(rival.predict_mean(spots.at(test)), 0)
    return predicted


def write_evaluation(
    out: Path,
    predictions: AnnData,
    members: dict[str, np.ndarray],
    per_seed: np.ndarray,
    header: dict,
    seconds: dict,
    figure_format: str = "png",
) -> dict:
    """Writes ``genes.csv``, ``metrics.json``, ``figures/`` and ``report.html`` into a run folder.

    Without test spots, or without train spots (split image_only), there is nothing to compare with: of the metrics only
    the weights are known.

    Args:
      out: the run folder, with ``history.csv``.
      predictions, members: as ``evaluate`` takes them.
      per_seed: (S, N, G) predictions of each seed.
      header: the parts of metrics.json that describe the run.
      seconds: of each stage.
      figure_format: png, pdf or svg; the report has PNGs, which are written in any case.

    Returns:
      The content of metrics.json.
    """

    def figure(name: str) -> list[Path]:
        return [out / "figures" / f"{name}.{suffix}" for suffix in dict.fromkeys(("png", figure_format))]

    weights = {name: float(predictions.uns["spabit"]["weights"][name]) for name in members}
    content, genes = {**header, "weights": weights}, None
    if header["protocol"]["n_test"] and header["protocol"]["n_train"]:
        by_seed = zip(header["seeds"], per_seed, strict=False)  # one alone where no member has seeds
        genes = evaluate(predictions, members, dict(by_seed))
        content |= genes.attrs["summary"]
        table = genes.assign(section=header["section"])[["section", "method", "seed", "gene", *SCORES]]
        write_genes(out / "genes.csv", table, sealed=True)
        covered = genes.attrs["coverage"]
        with plots.one_panel(3.6, figure("calibration")) as ax:
            plots.draw_calibration(ax, covered)
        with plots.one_panel(4.6, figure("pcc_scatter")) as ax:
            plots.draw_pcc_scatter(ax, *beside_best_rival(genes))
    content["seconds"] = seconds
    if shown := genes_to_show(predictions, genes):
        plots.plot_gene_maps(predictions, shown, figure("gene_maps"))
    if (out / "history.csv").exists():
        try:
            history = pd.read_csv(out / "history.csv")
            if len(history):  # an imported network has none
                curves.plot_history(history, figure("history"), weights.get("spabit"))
        except (ValueError, KeyError, TypeError) as error:  # nothing depends on it
            logging.warning("%s is damaged (%s): no figure of it", out / "history.csv", error)
    write_report(out / "report.html", f"{header['section']}, {header['method']}", run_blocks(out, content))
    write_json(out / "metrics.json", content, sealed=True)  # last: its presence says that the run is whole
    return content


def beside_best_rival(scores: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, str, str]:
    """(G,) Pearson correlations of the best rival and of the prediction, gene by gene, and the names of both.

    Args:
      scores: of ``evaluate``.
    """
    baselines, method = scores.attrs["summary"]["baselines"], scores["method"].iloc[0]
    best = max(baselines, key=lambda name: baselines[name]["pcc"] or -2)
    final = scores[scores["seed"].isin(["", "ensemble"])]
    rival, own = (final.loc[final["method"] == name, "pcc"].to_numpy() for name in (best, method))
    return rival, own, RIVALS[best], method


def summary(content: dict) -> str:
    """The table of a run, as text: the prediction, its members with their weights, its rivals and its bounds."""
    protocol, weights = content["protocol"], content["weights"]
    what = f"{protocol['n_genes']} genes (panel {protocol['panel']}), {protocol['scale']}"
    lines = ["", f"{content['section']}: {protocol['n_train']} train spots, {protocol['n_test']} test spots, {what}"]
    if protocol["n_test"] and protocol["n_train"]:
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
        without = "no spot is a train spot" if protocol["n_test"] else "every spot is a train spot"
        lines.append(f"{without}: there is nothing to evaluate by. Weights: {shares}")
    for name, weight in weights.items():
        if weight < NO_PART:
            lines.append(f"the weight of {MEMBERS.get(name, name)} is {weight:.3f}: it is not in these numbers")
    return "\n".join(lines)


def _three(table: pd.DataFrame) -> dict[str, float | None]:
    summarized = metrics.summarize(table)
    return {name: metrics.number(summarized[name]) for name in SCORES}


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def genes_to_show(predictions: AnnData, scores: pd.DataFrame | None) -> dict[str, str]:
    """Label → gene: the best, the median and the worst; without scores those that are predicted to vary most.

    Args:
      scores: of ``evaluate``, or None without test spots.
    """
    if scores is None:
        order = np.argsort(-predictions.X.std(axis=0), kind="stable")
        return {f"varies most, {i + 1}": predictions.var_names[gene] for i, gene in enumerate(order[:3])}
    own = scores[(scores["method"] == predictions.uns["spabit"]["method"]) & (scores["seed"] == "ensemble")]
    ranked = own.dropna(subset=["pcc"]).sort_values("pcc", ascending=False, kind="stable")["gene"].to_list()
    return {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]} if ranked else {}
