"""The port beside the reference: the PyTorch oracle run here on the same arrays, and result files of the reference.

    python -m experiments.compare_reference --section=data/C2.tsv.gz --out=runs/compare --num_seeds=5 --gat_per_seed \
        --config.gat.epochs=300 --config.train.epochs=300

Both sides have the same panel, split, graph, imputed expression and image features, and as many epochs; each trains its
own GAT. The row ``seconds`` is what training and predicting with one seed took, its GAT and all compilation included:
run nothing beside it where that matters. With ``--sections=A,B,…`` over the 12 DLPFC sections, ``--encoder=uni``, ten
seeds and the published epochs, which are the preset's, ``port_results.csv`` is the paper's table. What is done already
in the folder is not done again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from absl import flags
from scipy import stats

from feature_extraction import command as cli
from spabit_jax.data.prepared import Prepared
from spabit_jax.errors import InputError
from spabit_jax.evaluation import metrics, plots
from spabit_jax.files import replacing, write_or_match

REFERENCE_ROWS = {"PCC": "pcc_defined", "MSE": "mse", "MAE": "mae"}  # the reference's file → our metric
CONFIDENCE = 0.995
# What the oracle does, whatever the configuration says; the other fields act on both sides.
FIXED = {
    "model.n_components": 0,
    "model.members": "spabit",
    "gat.joint": False,
    "gat.learning_rate": 1e-4,
    "gat.weight_decay": 5e-4,
    "gat.dropout": 0.2,
    "model.name": "spabit",
    "model.cross_attention": "both",
    "train.learning_rate": 1e-3,
    "train.weight_decay": 0.0,
    "train.epoch_spots": 0,
    "train.loss": "mse",
    "data.image_transform": "reference",
    "faults.single_key": True,  # a setting, no password  # nosec B105
    "faults.batch_attention": True,
    "faults.self_in_gene_token": True,
    "faults.no_validation": True,
    "faults.relu_output": True,
}


def main() -> None:
    out = Path(cli.given("out"))
    config = cli.read_flagged_config()
    for name, value in FIXED.items():
        part, field = name.split(".")
        if getattr(getattr(config, part), field) != value:
            raise InputError(f"the oracle has {name} = {value}: leave config.{name} at that, or use experiments.ablate")
    published = read_reference_csv(Path(cli.FLAGS.reference_csv)) if cli.FLAGS.reference_csv else {}
    rows, scores = [], {}
    for adata, patch_px in cli.read_flagged_sections():
        prepared = Prepared(adata, cli.with_windows(config, patch_px), cli.asked_encoder(), cli.FLAGS.cache_dir)
        prepared.check_test_spots()
        prepared.extract()
        write_or_match(out / prepared.name / "config.json", settings(prepared), keys=("inputs", "config"))
        predictions, seconds = _predictions(prepared, out / prepared.name)
        truth = prepared.truth()[prepared.test_spots]
        tables = {side: [metrics.gene_metrics(truth, p) for p in runs] for side, runs in predictions.items()}
        scores[prepared.name] = {
            side: pd.DataFrame(map(metrics.summarize, runs)).assign(seconds=seconds[side])
            for side, runs in tables.items()
        }
        rows += compare(prepared.name, scores[prepared.name], published)
        x, y = (np.mean([t["pcc"] for t in tables[side]], axis=0) for side in ("oracle", "port"))
        with plots.one_panel(4.6, out / f"{prepared.name}_genes.png") as ax:
            plots.draw_pcc_scatter(ax, x, y, "reference (PyTorch)", "port (JAX)")
    table = pd.DataFrame(rows)
    with replacing(out / "comparison.csv") as temporary:
        table.to_csv(temporary, index=False)
    for side in ("oracle", "port"):
        with replacing(out / f"{side}_results.csv") as temporary:
            reference_format({name: score[side] for name, score in scores.items()}).to_csv(temporary)
    print(table.to_string(index=False))
    print(f"written to {out}: comparison.csv, port_results.csv, oracle_results.csv, *_genes.png")


def settings(prepared: Prepared) -> dict:
    """What results in a folder have in common; epochs are in their files' names."""
    config = prepared.config.to_dict()
    del config["gat"]["epochs"], config["train"]["epochs"]
    return {"inputs": prepared.describe(), "config": config}


def _predictions(prepared: Prepared, folder: Path) -> tuple[dict[str, list[np.ndarray]], dict[str, list[float]]]:
    """For each side lists over the seeds, computed unless they are on disk: predictions (n, G) at the test spots, and
    the seconds that they took."""
    from experiments.studies import sides
    from spabit_jax.reference.separate_gat import GAT_SEED

    config, per_seed = prepared.config, cli.FLAGS.gat_per_seed
    section = prepared.section()
    predictions, seconds = {"oracle": [], "port": []}, {"oracle": [], "port": []}
    for seed in range(cli.FLAGS.num_seeds):
        gat_seed = seed if per_seed else GAT_SEED
        for side in predictions:
            name = f"{side}_gat{gat_seed}x{config.gat.epochs}"
            tokens, gat_seconds = sides.kept(
                folder / f"{name}_tokens.npz", sides.gene_tokens, side, section, config, gat_seed
            )
            predicted, own_seconds = sides.kept(
                folder / f"{name}_seed{seed}x{config.train.epochs}.npz",
                sides.predict,
                *(side, section, tokens, prepared.test_spots, config, seed),
            )
            predictions[side].append(predicted)
            seconds[side].append(gat_seconds + own_seconds)
    return predictions, seconds


def compare(section: str, scores: dict[str, pd.DataFrame], published: dict) -> list[dict]:
    """Rows of the comparison: both sides over their seeds, and Welch's interval of their difference.

    Args:
      scores: ``oracle`` and ``port``, a row per seed and a column per metric and ``seconds``.
      published: (section, metric) → (mean, sd) of a reference result file.
    """
    rows = []
    for metric in (*metrics.METRICS, "seconds"):
        oracle, port = scores["oracle"][metric].to_numpy(float), scores["port"][metric].to_numpy(float)
        difference, error, verdict = port.mean() - oracle.mean(), np.nan, "one seed: no interval"
        if len(port) > 1:
            error, half_width = welch(port, oracle)
            verdict = "equal" if abs(difference) <= half_width else "differs"
        if metric == "seconds":
            verdict = f"port {oracle.mean() / port.mean():.1f} times as fast"
        theirs = published.get((section, metric))
        rows.append(
            {
                "section": section,
                "metric": metric,
                "reference (PyTorch, run here)": metrics.format_mean_sd(oracle.mean(), oracle.std()),
                "reference (its file)": metrics.format_mean_sd(*theirs) if theirs else "",
                "port": metrics.format_mean_sd(port.mean(), port.std()),
                "difference": round(difference, 5),
                "standard_error": round(error, 5),
                "verdict": verdict,
            }
        )
    return rows


def welch(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Standard error of mean(a) − mean(b), and half the width of Welch's ``CONFIDENCE`` interval (Welch 1947)."""
    error = float(np.hypot(stats.sem(a), stats.sem(b)))
    if not error:
        return 0.0, 0.0
    low, high = stats.ttest_ind(a, b, equal_var=False).confidence_interval(CONFIDENCE)
    return error, float(high - low) / 2


def reference_format(scores: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Results as the reference writes them: rows PCC, MSE, MAE, a column per section, cells ``mean ± sd``."""
    columns = {
        section: [metrics.format_mean_sd(s[m].mean(), s[m].std(ddof=0)) for m in REFERENCE_ROWS.values()]
        for section, s in scores.items()
    }
    return pd.DataFrame(columns, index=list(REFERENCE_ROWS))


def read_reference_csv(path: Path) -> dict[tuple[str, str], tuple[float, float]]:
    """(section, metric) → (mean, sd) of the reference's own result file, or of a table typed in by hand.

    The former has rows PCC, MSE, MAE and a column per section with ``mean ± sd``; the latter has columns dataset,
    metric, mean, sd, source. Their PCC leaves out constant predictions, which is our ``pcc_defined``.

    Raises:
      InputError: no such file, or it is neither of the two.
    """
    try:
        table = pd.read_csv(path)
        if {"dataset", "metric", "mean", "sd"} <= set(table.columns):
            cells = table[["dataset", "metric", "mean", "sd"]].itertuples(index=False)
        else:
            long = table.set_index(table.columns[0]).stack()
            cells = [(section, metric, *cell.split("±")) for (metric, section), cell in long.items()]
        return {(str(s), REFERENCE_ROWS[m.strip().upper()]): (float(mean), float(sd)) for s, m, mean, sd in cells}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(
            f"{path} is no table of reference results ({type(error).__name__}: {error}): it needs rows PCC, MSE, MAE "
            "with a column 'mean ± sd' per section, or columns dataset, metric, mean, sd, source"
        ) from error


if __name__ == "__main__":
    cli.define_section_flags(several=True)
    cli.define_config_flag("experiments/configs/reference.py")
    flags.DEFINE_string("out", None, "Folder for the tables and for what they are made from.")
    flags.DEFINE_integer("num_seeds", 5, "Seeds of each side.", lower_bound=1)
    flags.DEFINE_boolean("gat_per_seed", False, "Train a GAT for each seed; the reference trains one for all.")
    flags.DEFINE_string("reference_csv", None, "The reference's result file, or a table typed in by hand.")
    cli.run(main)
