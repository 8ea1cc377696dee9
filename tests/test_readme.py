"""Runs the Python example of the README as it is written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from legacy_section import write_legacy_section
from PIL import Image

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
    assert weights == "weights: pretrained 1.000"
    n_spots, n_dense, sd, pcc = numbers.split()
    assert 3 < int(n_dense) / int(n_spots) < 5 and float(sd) > 0 and -1 <= float(pcc) <= 1
    assert "gene ERBB3 is not among these predictions" in error and "ERBB2" in error
    with Image.open(tmp_path / "dense.png") as image:
        assert image.width > 400
    assert "How good is it?" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "runs" / "C2_api" / "config.json").exists()
