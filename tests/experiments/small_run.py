"""experiments.run with a small model, as a command."""

import sys

from tests import commands

SMALL = [
    "--config=experiments/configs/demo.py",
    *("--config.model.width=16", "--config.model.cross_heads=2", "--config.model.mlp_width=16"),
    *("--config.gat.head_width=4", "--config.train.epochs=24", "--config.train.chunk_epochs=4"),
    *("--config.data.n_genes=23", "--config.model.n_context=4", "--num_seeds=2", "--patch_px=48"),
]


def command(section, folder, *flags):
    paths = [f"--section={section}", f"--out={folder / 'run'}", f"--cache_dir={folder / 'cache'}"]
    return [sys.executable, "-m", "experiments.run", *paths, *SMALL, *flags]


def run(*args):
    return commands.run(*command(*args)[2:])
