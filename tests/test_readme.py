"""Runs the Python example of the README as it is written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from spabit_jax.datasets.simulate import simulate_section

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_ten_lines_of_python(tmp_path):
    (code,) = re.findall(r"### In Python\n+```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) == 9
    write_legacy_section(tmp_path / "data")
    small = "import matplotlib\nmatplotlib.use('Agg')\n"
    after = "print(model)\nprint(len(adata), len(dense), dense.layers['sd'].min(), scores['pcc'].mean())\n"
    after += "try:\n    sj.plot_gene(dense, 'ERBB3')\nexcept sj.InputError as error:\n    print(error)\n"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", small + code + after]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *_, weights, numbers, error = done.stdout.strip().splitlines()
    assert weights.startswith("weights: spabit ")
    n_spots, n_dense, sd, pcc = numbers.split()
    assert 3 < int(n_dense) / int(n_spots) < 5 and float(sd) > 0 and -1 <= float(pcc) <= 1
    assert "gene ERBB3 is not among these predictions" in error and "ERBB2" in error
    with Image.open(tmp_path / "dense.png") as image:
        assert image.width > 400
    assert "How good is it?" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "runs" / "C2_api" / "checkpoints" / "seed_1").is_dir()


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
