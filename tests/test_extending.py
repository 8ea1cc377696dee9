"""Runs the text of docs/EXTENDING.md."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import anndata

ROOT = Path(__file__).parents[1]


def test_the_walkthrough_runs_as_written(simulated, tmp_path):
    """The two commands, and the number that the text says is the model's: it changes with the model."""
    text = (ROOT / "docs" / "EXTENDING.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert 15 <= len([line for line in code.split("MODELS[")[0].splitlines() if line.strip()]) <= 25
    (tmp_path / "gated.py").write_text(code)
    small = ["--config.train.epochs=10", "--config.data.n_genes=20", f"--cache_dir={tmp_path / 'cache'}"]
    alone = {}
    for line in re.findall(r"^python (-m experiments\.run .*)$", text, re.MULTILINE):
        name = re.search(r"--out=runs/(\w+)", line).group(1)
        places = {"--section": simulated, "--config": tmp_path / "gated.py", "--out": tmp_path / name}
        command = [f"{a.split('=')[0]}={places[a.split('=')[0]]}" if a.split("=")[0] in places else a
                   for a in shlex.split(line)]  # fmt: skip
        done = subprocess.run([sys.executable, *command, *small], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert name in done.stdout and "SpaBiT alone" in done.stdout
        alone[name] = json.loads((tmp_path / name / "metrics.json").read_text())["members"]["spabit"]["pcc"]
    assert set(alone) == {"gated", "default"} and abs(alone["gated"] - alone["default"]) > 1e-5
    predictions = anndata.read_h5ad(tmp_path / "gated" / "predictions.h5ad")
    assert predictions.uns["spabit"]["method"] == "gated"
