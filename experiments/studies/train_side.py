"""Which image features? Cross-validation inside the train spots, test spots out of sight.

    python -m experiments.studies.train_side --sections=data/C2.tsv.gz,data/C3.tsv.gz,data/C5.tsv.gz \\
        --encoders=stain,nuclei,stain+nuclei --config.data.panel=reference --config.data.n_genes=300

Prints, for each section and encoder, the mean over genes of the correlation of held-out train spots with their
prediction from the other train spots, moved to the mean of all: the mean of ``--repeats`` random divisions into five
parts, the same ones for each encoder.
"""

from __future__ import annotations

import numpy as np
from absl import flags

from feature_extraction import command as cli
from spabit_jax.data.prepared import Prepared
from spabit_jax.ensemble.predictor import fit
from spabit_jax.evaluation import metrics

N_PARTS = 5


def main() -> None:
    config = cli.read_flagged_config()
    for adata, patch_px in cli.read_flagged_sections():
        for encoder in cli.FLAGS.encoders:
            prepared = Prepared(adata, cli.with_windows(config, patch_px), encoder, cli.FLAGS.cache_dir)
            prepared.extract()
            found = [held_out_pcc(prepared, seed) for seed in range(cli.FLAGS.repeats)]
            each = ", ".join(f"{pcc:.4f}" for pcc in found)
            print(f"{prepared.name} {encoder}: {np.mean(found):.4f} ({each})", flush=True)


def held_out_pcc(prepared: Prepared, seed: int) -> float:
    """Mean correlation over the genes of the section's panel, on the scale that all its train spots give.

    What a fold is predicted from has a mean that leans away from the fold's own: predictions are moved to the mean of
    all train spots, or one of nothing but means would be anticorrelated with what was measured.
    """
    train, is_train, truth = np.flatnonzero(prepared.is_train), prepared.is_train, prepared.truth()
    order, predicted = np.random.default_rng(seed).permutation(train), np.empty((len(is_train), len(prepared.genes)))
    for part in range(N_PARTS):
        held_out = order[part::N_PARTS]
        without = Prepared(prepared.adata, prepared.config, prepared.encoder, cli.FLAGS.cache_dir)
        without.genes, without.scale = prepared.genes, prepared.scale
        without.is_train = is_train & ~np.isin(np.arange(len(is_train)), held_out)
        moved = truth[train].mean(axis=0) - truth[without.is_train].mean(axis=0)
        predicted[held_out] = fit(without, [0]).predict()[held_out].X + moved
    return metrics.summarize(metrics.gene_metrics(truth[train], predicted[train]))["pcc"]


if __name__ == "__main__":
    cli.define_section_flags(several=True, features=False)
    cli.define_config_flag()
    flags.DEFINE_list(
        "encoders", ["stain", "nuclei", "stain+nuclei"], "Encoders, each perhaps several as stain+nuclei."
    )
    flags.DEFINE_integer("repeats", 1, "Random divisions of the train spots.", 1)
    cli.run(main)
