"""A simulated section, written in one of the formats that are read.

    python -m experiments.simulate --format=visium_hd --spots=100000 --out=data/HD

What is expressed where, and what the image shows of it, is as in
``spabit_jax.datasets.simulate``; a spot stands for a bin or a cell.
"""

from __future__ import annotations

import os
from pathlib import Path

from absl import flags

from feature_extraction import command as cli
from spabit_jax.errors import InputError
from spabit_jax.files import temporary_name

FORMATS = ("h5ad", "visium", "visium_hd", "xenium")
PITCH = {"h5ad": 45.0, "visium": 45.0, "visium_hd": 16.0, "xenium": 20.0}  # pixels
ON_TISSUE = 0.875  # of the spots of a square array, about


def main() -> None:
    import numpy as np

    from spabit_jax.datasets import simulate, simulate_formats

    asked, seed = cli.FLAGS.format, cli.FLAGS.seed
    out = Path(cli.given("out"))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out={out} is not empty: give another")
    side = max(2, round((cli.FLAGS.spots / ON_TISSUE) ** 0.5))
    lattice = "hex" if asked == "visium" else "square"
    adata, image = simulate.simulate_section(
        seed, n_rows=side, n_cols=side, lattice=lattice, pitch=PITCH[asked], name=out.name
    )
    with temporary_name(out) as folder:
        if asked == "h5ad":
            path = simulate.write_section(adata, image, folder)
        elif asked == "xenium":
            path = simulate_formats.write_xenium(adata, image, folder, np.random.default_rng(seed))
        else:
            path = getattr(simulate_formats, f"write_{asked}")(adata, image, folder)
        os.replace(folder, out)
    path = out / path.relative_to(folder)
    print(f"{adata.n_obs} spots, {adata.n_vars} genes, image {image.shape[1]} x {image.shape[0]} px: --section={path}")


if __name__ == "__main__":
    flags.DEFINE_enum("format", "visium_hd", FORMATS, "What to write.")
    flags.DEFINE_integer("spots", 100_000, "Spots, bins or cells on the tissue, about.", lower_bound=50)
    flags.DEFINE_integer("seed", 0, "Of the simulation.")
    flags.DEFINE_string("out", None, "Folder to write into.")
    cli.run(main)
