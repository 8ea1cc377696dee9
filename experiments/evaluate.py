"""The last stage of a run, where its predictions meet the truth of test spots."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from spabit_jax import baselines, metrics, plots
from spabit_jax.files import replacing, write_json
from spabit_jax.report import run_blocks, write_report

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # of the intervals whose coverage is measured


def evaluate(out: Path, predictions: AnnData, per_seed: np.ndarray, features, header: dict, seconds: dict) -> dict:
    """Writes ``genes.csv``, ``metrics.json``, ``figures/`` and ``report.html``, and prints the table.

    Args:
      out: the run folder, with ``history.csv``.
      predictions: content of predictions.h5ad, N spots.
      per_seed: (S, N, G) predictions of each seed.
      features: (N, D) image features or None.
      header: the parts of metrics.json that describe the run.
      seconds: of each stage.

    Returns:
      The content of metrics.json.
    """
    test = (predictions.obs["split"] == "test").to_numpy()
    truth = predictions.layers["truth"][test]

    def score(predicted: np.ndarray) -> pd.DataFrame:
        return metrics.gene_metrics(truth, predicted, predictions.var_names)

    method, section = header["method"], header["section"]
    seeds = [score(predicted[test]) for predicted in per_seed]
    ensemble = score(predictions.X[test])
    others = {name: score(predicted) for name, predicted in _baselines(predictions, test, features).items()}
    rows = [(method, seed, table) for seed, table in zip(header["seeds"], seeds, strict=True)]
    rows += [(method, "ensemble", ensemble), *((name, "", table) for name, table in others.items())]
    genes = pd.concat(table.reset_index().assign(method=name, seed=seed, section=section) for name, seed, table in rows)
    with replacing(out / "genes.csv") as temporary:
        genes[["section", "method", "seed", "gene", "pcc", "mse", "mae"]].to_csv(temporary, index=False)

    summary = metrics.summarize_seeds([metrics.summarize(table) for table in seeds], metrics.summarize(ensemble))
    covered = [metrics.coverage(truth, predictions.X[test], predictions.layers["sd"][test], level) for level in LEVELS]
    summary["ensemble"]["coverage90"] = covered[LEVELS.index(0.9)]
    content = {**header, **summary, "seconds": seconds}
    table = [(method, metrics.summarize(ensemble))]
    table += [(name, metrics.summarize(other)) for name, other in others.items()]
    _figures(out, predictions, ensemble, others["knn_mean"], method)
    plots.plot_calibration(LEVELS, covered, out / "figures" / "calibration.png")
    write_report(out / "report.html", f"{section}, {method}", run_blocks(out, content))
    write_json(out / "metrics.json", content)  # last: its presence says that the run is whole

    print(f"\n{section}: {header['protocol']['n_train']} train spots, {test.sum()} test spots, {len(ensemble)} genes")
    print(f"{'method':<22}{'PCC':>8}{'MSE':>8}{'MAE':>8}")
    for name, values in table:
        print(f"{name:<22}{values['pcc']:8.4f}{values['mse']:8.4f}{values['mae']:8.4f}")
    print(f"90% intervals hold {covered[LEVELS.index(0.9)]:.1%} of the test measurements")
    print(f"written to {out}: metrics.json, genes.csv, predictions.h5ad, report.html, figures/")
    return content


def _baselines(predictions: AnnData, test: np.ndarray, features) -> dict[str, np.ndarray]:
    spots, truth = baselines.make_spots(predictions.obsm["spatial"], features), predictions.layers["truth"]
    return {
        name: baselines.BASELINES[name]().fit(spots.at(~test), truth[~test]).predict(spots.at(test))[0]
        for name in ("knn_mean", "ridge")
        if features is not None or name not in baselines.NEED_IMAGE
    }


def _figures(out: Path, predictions, ensemble: pd.DataFrame, knn: pd.DataFrame, method: str) -> None:
    folder = out / "figures"
    ranked = ensemble["pcc"].dropna().sort_values(ascending=False).index
    if len(ranked):
        shown = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
        plots.plot_gene_maps(predictions, shown, folder / "gene_maps.png")
        x, y = knn["pcc"].to_numpy(), ensemble["pcc"].to_numpy()
        plots.plot_pcc_scatter(x, y, "mean of the 6 nearest train spots", method, folder / "pcc_scatter.png")
    history = pd.read_csv(out / "history.csv") if (out / "history.csv").exists() else ()
    if len(history):  # an imported network has none
        plots.plot_history(history, folder / "history.png")
