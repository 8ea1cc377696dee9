"""What the kernels of ``spabit_jax/ops`` buy: an epoch of training with each, and with its plain formula instead.

    python -m experiments.studies.ops

Prints a table: SpaBiT's training (``trained.py``) on 729 train spots, and the reference's separate GAT on 1,024 spots.
"""

import time
from functools import partial
from unittest.mock import patch

import jax
import numpy as np
from absl import app

from spabit_jax import presets
from spabit_jax.config import Config
from spabit_jax.data.genes import select_genes
from spabit_jax.data.section import make_section
from spabit_jax.data.split import split_spots
from spabit_jax.datasets.simulate import simulate_section
from spabit_jax.evaluation.report import markdown_table
from spabit_jax.ops import layer_norm, neighbour_sum
from spabit_jax.reference.separate_gat import make_gat_epoch, new_gat
from spabit_jax.training.fit import make_chunk, seed_keys
from spabit_jax.training.network import Trainer

EPOCHS, TIMES = 3, 4
KERNELS = {
    "LayerNorm": partial(patch, "spabit_jax.models.layers.layer_norm", layer_norm.plain),
    "sum over neighbours": partial(patch, "spabit_jax.models.graph_attention.neighbour_sum", neighbour_sum.plain),
}


def make(config: Config, side: int):
    """A simulated section of (2 side)² spots, a quarter of them train spots, with noise for image features."""
    adata, _ = simulate_section(seed=0, n_rows=2 * side, n_cols=2 * side, n_genes=300)
    is_train = split_spots(adata, "lattice")
    genes = select_genes(adata, "train_spots", 100, is_train)
    return make_section(adata, genes, is_train, np.random.default_rng(0).standard_normal((adata.n_obs, 42)), config)


def epoch_seconds(chunk, state, data) -> float:
    """The least of a few times."""
    seconds = []
    for _ in range(TIMES):
        start = time.monotonic()
        state = jax.block_until_ready(chunk(state, data, seed_keys(0)[1], EPOCHS))
        seconds.append(time.monotonic() - start)
    return min(seconds[1:]) / EPOCHS  # the first one compiles


def trained() -> float:
    config = presets.trained()
    trainer = Trainer(make(config, 27), config)
    return epoch_seconds(trainer._chunk, trainer.initial_state(0), trainer.training_data(0))


def reference_gat() -> float:
    config = presets.reference()
    section = make(config, 16)
    n_genes = section.expression.shape[1]
    graphdef, new_state = new_gat(n_genes, config)
    chunk = make_chunk(make_gat_epoch(graphdef, config))
    return epoch_seconds(chunk, new_state(0), (section.imputed, section.graph))


def main(_):
    lines = []
    for title, seconds in (("SpaBiT, trained.py", trained), ("GAT, reference", reference_gat)):
        with_all = seconds()
        for name, replaced in KERNELS.items():
            with replaced():
                plain = seconds()
            lines.append([title, name, f"{with_all:.3f}", f"{plain:.3f}", f"{plain / with_all:.2f}"])
    print(markdown_table(["training", "kernel", "s an epoch with it", "with the formula", "ratio"], lines))


if __name__ == "__main__":
    app.run(main)
