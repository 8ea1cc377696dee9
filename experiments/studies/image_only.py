"""Sections of which nothing is measured, predicted from their image: each in turn, learned from its group's others.

    python -m experiments.studies.image_only --sections=data/C2.tsv.gz,data/C3.tsv.gz,data/C5.tsv.gz --out=runs/images

Beside the model of ``--config`` stands a ridge regression from image features, standardised section by section, to
expression. The true means of genes are not known either: PCC does not need them, MSE does.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from absl import flags

from feature_extraction import command as cli
from spabit_jax.data.prepared import Prepared
from spabit_jax.ensemble.predictor import fit
from spabit_jax.ensemble.ridge import ridge
from spabit_jax.evaluation import metrics
from spabit_jax.evaluation.report import markdown_table
from spabit_jax.files import replacing


def main() -> None:
    config = cli.read_flagged_config().with_data(split="image_only")
    sections, rows, encoder = list(cli.read_flagged_sections()), [], cli.asked_encoder()
    for adata, patch_px in sections:
        here = cli.with_windows(config, patch_px)
        others = [(other, cli.with_windows(config, width)) for other, width in sections if other is not adata]
        related = [Prepared(other, its.of_related(), encoder, cli.FLAGS.cache_dir) for other, its in others]
        prepared = Prepared(adata, here, encoder, cli.FLAGS.cache_dir, related)
        prepared.extract()
        found = fit(prepared, range(cli.FLAGS.num_seeds)).predict_spots()
        row = {"Section": prepared.name, "learned from": " + ".join(other.name for other in related)}
        rows.append({**row, **scores(prepared, predict_ridge(prepared), "ridge"),
                     **scores(prepared, found.mean, config.name, found.sd)})  # fmt: skip
    lines = [[value if isinstance(value, str) else f"{value:.3f}" for value in row.values()] for row in rows]
    table = markdown_table(list(rows[0]), lines)
    print(table)
    if cli.FLAGS.out:
        with replacing(Path(cli.FLAGS.out) / "image_only.md") as temporary:
            temporary.write_text(table)


def predict_ridge(prepared: Prepared) -> np.ndarray:
    """(N, G) at the section's spots."""
    _, features, is_train = prepared.joined()
    known, n = prepared.section().expression[is_train], prepared.adata.n_obs
    return ridge().fit(features[is_train], known).predict(features[:n])


def scores(prepared: Prepared, mean: np.ndarray, name: str, sd: np.ndarray | None = None) -> dict[str, float]:
    """PCC, MSE and, of an sd, coverage of 90% intervals."""
    truth = prepared.truth()
    summary = metrics.summarize(metrics.gene_metrics(truth, mean, prepared.genes))
    found = {f"{name}, PCC": summary["pcc"], f"{name}, MSE": summary["mse"]}
    return found if sd is None else found | {f"{name}, coverage": metrics.coverage(truth, mean, sd)}


if __name__ == "__main__":
    cli.define_section_flags(several=True)
    cli.define_config_flag()
    flags.DEFINE_string("out", None, "Folder for image_only.md.")
    flags.DEFINE_integer("num_seeds", 1, "Networks, where the members have some.", lower_bound=1)
    cli.run(main)
