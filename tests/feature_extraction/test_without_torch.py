"""Stain features need no PyTorch; what does need it says what to install, in one line."""

import json
import subprocess
import sys

import numpy as np
import pytest

WITHOUT = """
import runpy, sys
from importlib.machinery import PathFinder

absent = {"torch", "torchvision", "timm", "huggingface_hub"}
spec, distributions = PathFinder.find_spec, PathFinder.find_distributions
PathFinder.find_spec = lambda name, *rest: None if name.partition(".")[0] in absent else spec(name, *rest)
PathFinder.find_distributions = lambda context: [] if context.name in absent else distributions(context)
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def run_without(module, *flags):
    command = [sys.executable, "-c", WITHOUT, module, *flags]
    return subprocess.run(command, capture_output=True, text=True)


def test_stain_features(simulated, tmp_path):
    flags = [f"--section={simulated}", "--patch_px=32", f"--cache_dir={tmp_path}"]
    done = run_without("feature_extraction.extract", *flags)
    assert done.returncode == 0, done.stderr
    (npy,) = tmp_path.glob("*.npy")
    assert np.load(npy).shape[1] == 42
    assert set(json.loads(npy.with_suffix(".json").read_text())["versions"]) == {
        "python", "numpy", "pillow", "scikit-image"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "instead"), [("--encoder=uni", "use --encoder=stain"), ("--num_workers=2", "leave it out")]
)
def test_neural_features(simulated, tmp_path, asked, instead):
    done = run_without("feature_extraction.extract", f"--section={simulated}", f"--cache_dir={tmp_path}", asked)
    assert done.returncode == 2
    line = f"{asked} needs PyTorch (No module named 'torch'): pip install \"spabit_jax[extract]\", or {instead}"
    assert done.stderr.splitlines()[-1] == f"error: {line}"
    assert not list(tmp_path.glob("*.npy"))


def test_commands_that_need_it(tmp_path):
    (tmp_path / "weights.pt").touch()
    flags = [f"--torch_weights={tmp_path / 'weights.pt'}", f"--out={tmp_path / 'out'}"]
    done = run_without("experiments.import_reference", *flags)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == 'error: torch is not installed: pip install "spabit_jax[extract]"'
