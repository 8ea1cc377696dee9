"""The last stage of a run, where its predictions meet the truth of test spots."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from spabit_jax import baselines, metrics, plots
from spabit_jax.files import replacing, write_json
from spabit_jax.report import write_report


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
    content = {**header, **summary, "seconds": seconds}
    table = [(method, metrics.summarize(ensemble))]
    table += [(name, metrics.summarize(other)) for name, other in others.items()]
    figures = _figures(out, predictions, ensemble, others["knn_mean"], method)
    write_report(out / "report.html", content, table, figures)
    write_json(out / "metrics.json", content)  # last: its presence says that the run is whole

    print(f"\n{section}: {header['protocol']['n_train']} train spots, {test.sum()} test spots, {len(ensemble)} genes")
    print(f"{'method':<22}{'PCC':>8}{'MSE':>8}{'MAE':>8}")
    for name, values in table:
        print(f"{name:<22}{values['pcc']:8.4f}{values['mse']:8.4f}{values['mae']:8.4f}")
    print(f"written to {out}: metrics.json, genes.csv, predictions.h5ad, report.html, figures/")
    return content


def _baselines(predictions: AnnData, test: np.ndarray, features) -> dict[str, np.ndarray]:
    xy, y = predictions.obsm["spatial"], predictions.layers["truth"]
    out = {"knn_mean": baselines.knn_mean(xy[~test], y[~test], xy[test])}
    if features is not None:
        x = np.asarray(features, np.float32)
        x = (x - x.mean(axis=0)) / np.where(x.std(axis=0) > 0, x.std(axis=0), 1)
        out["ridge"] = baselines.ridge(x[~test], y[~test], x[test])
    return out


def _figures(out: Path, predictions, ensemble: pd.DataFrame, knn: pd.DataFrame, method: str) -> dict[str, Path]:
    folder = out / "figures"
    ranked = ensemble["pcc"].dropna().sort_values(ascending=False).index
    shown = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]} if len(ranked) else {}
    figures = {}
    if shown:
        figures["Measured and predicted expression"] = folder / "gene_maps.png"
        plots.plot_gene_maps(predictions, shown, folder / "gene_maps.png")
        x, y = knn["pcc"].to_numpy(), ensemble["pcc"].to_numpy()
        figures["PCC of each gene"] = folder / "pcc_scatter.png"
        plots.plot_pcc_scatter(x, y, "mean of the 6 nearest train spots", method, folder / "pcc_scatter.png")
    history = pd.read_csv(out / "history.csv") if (out / "history.csv").exists() else ()
    if len(history):  # an imported network has none
        figures["Training"] = folder / "history.png"
        plots.plot_history(history, folder / "history.png")
    return figures
