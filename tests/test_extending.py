"""Runs the text of docs/EXTENDING.md."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pytest

import spabit_jax as sj
from spabit_jax.ensemble import members

ROOT = Path(__file__).parents[1]


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "EXTENDING.md").read_text(), re.DOTALL)


@pytest.mark.slow
def test_the_walkthrough_runs_as_written(simulated, tmp_path):
    """The two commands, and the number that the text says is the model's: it changes with the model."""
    text = (ROOT / "docs" / "EXTENDING.md").read_text()
    code, _ = blocks()
    assert 15 <= len([line for line in code.split("MODELS[")[0].splitlines() if line.strip()]) <= 25
    (tmp_path / "gated.py").write_text(code)
    small = ["--config.train.epochs=6", "--config.data.n_genes=20", "--config.model.members=spabit"]
    small += ["--patch_px=48", f"--cache_dir={tmp_path / 'cache'}"]
    alone = {}
    for line in re.findall(r"^python (-m experiments\.run .*)$", text, re.MULTILINE)[:2]:
        name = re.search(r"--out=runs/(\w+)", line).group(1)
        places = {"--section": simulated, "--out": tmp_path / name}
        places |= {"--config": tmp_path / "gated.py"} if name == "gated" else {}
        command = [f"{a.split('=')[0]}={places[a.split('=')[0]]}" if a.split("=")[0] in places else a
                   for a in shlex.split(line)]  # fmt: skip
        done = subprocess.run([sys.executable, *command, *small], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert name in done.stdout and "SpaBiT alone" in done.stdout
        alone[name] = json.loads((tmp_path / name / "metrics.json").read_text())["members"]["spabit"]["pcc"]
    assert set(alone) == {"gated", "trained"} and abs(alone["gated"] - alone["trained"]) > 1e-5
    predictions = anndata.read_h5ad(tmp_path / "gated" / "predictions.h5ad")
    assert predictions.uns["spabit"]["method"] == "gated"


@pytest.mark.slow
def test_a_member_of_ones_own_as_written(simulated, monkeypatch, tmp_path):
    monkeypatch.setattr(members, "MEMBERS", dict(members.MEMBERS))
    _, code = blocks()
    namespace = {}
    exec(code, namespace)
    config = namespace["get_config"]()
    config.data.n_genes = 12
    model = sj.fit(sj.prepare(simulated, config, cache_dir=tmp_path), seeds=1)
    assert list(model.weights) == ["pretrained", "nearest"]
    dense = model.predict("grid:2x")
    assert np.isfinite(dense.X).all() and dense.uns["spabit"]["method"] == "with_nearest"
    alone = sj.evaluate(model.predict(), model).attrs["summary"]
    baseline = alone["baselines"]["knn_mean"]["pcc"]  # the same but for ties
    assert alone["members"]["nearest"]["pcc"] == pytest.approx(baseline, abs=0.01)
