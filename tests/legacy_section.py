"""A section as the README's Python finds it; needs no pytest, as the installed package is tried with it too."""

import pandas as pd
from PIL import Image

from spabit_jax.datasets.simulate import simulate_section


def write_legacy_section(folder):
    """C2.tsv.gz, C2_selection.tsv and C2.jpg, as a user of the README has them."""
    adata, image = simulate_section(seed=3, n_rows=9, n_cols=9, n_genes=50, lattice="square")
    folder.mkdir()
    Image.fromarray(image).save(folder / "C2.jpg")
    names = [f"{col}x{row}" for row, col in zip(adata.obs["array_row"], adata.obs["array_col"], strict=True)]
    pd.DataFrame(adata.X.toarray().astype(int), names, adata.var_names).to_csv(folder / "C2.tsv.gz", sep="\t")
    x, y = adata.obsm["spatial"].T
    table = {"x": adata.obs["array_col"], "y": adata.obs["array_row"], "pixel_x": x, "pixel_y": y, "selected": 1}
    pd.DataFrame(table).to_csv(folder / "C2_selection.tsv", sep="\t", index=False)
