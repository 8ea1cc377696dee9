"""Runs the text of docs/EXTENDING.md."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import anndata

ROOT = Path(__file__).parents[1]


def test_the_walkthrough_runs_as_written(simulated, tmp_path):
    text = (ROOT / "docs" / "EXTENDING.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert 15 <= len([line for line in code.split("MODELS[")[0].splitlines() if line.strip()]) <= 25
    (tmp_path / "gated.py").write_text(code)
    command = shlex.split(re.search(r"^python (-m experiments\.run .*)$", text, re.MULTILINE).group(1))
    places = {"--section": simulated, "--config": tmp_path / "gated.py", "--out": tmp_path / "run"}
    command = [f"{a.split('=')[0]}={places[a.split('=')[0]]}" if a.split("=")[0] in places else a for a in command]
    small = ["--config.train.epochs=10", f"--cache_dir={tmp_path / 'cache'}"]
    done = subprocess.run([sys.executable, *command, *small], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "gated" in done.stdout
    predictions = anndata.read_h5ad(tmp_path / "run" / "predictions.h5ad")
    assert predictions.uns["spabit"]["method"] == "gated"
