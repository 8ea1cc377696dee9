import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("spabit_jax", ["jax", "torch", "numpy"]),
        ("spabit_jax.__main__", ["jax", "torch"]),
        ("spabit_jax.readers", ["jax", "torch"]),
        ("spabit_jax.training.network", ["torch", "orbax"]),
        ("experiments.run", ["jax", "torch"]),
        ("feature_extraction.extract", ["jax"]),
        ("feature_extraction.encoders", ["jax", "torch"]),
        ("spabit_jax.reference.torch_files", ["jax", "torch"]),
        ("experiments.studies.reference_torch", ["jax"]),
    ],
)
def test_imports_stay_on_their_side(module, forbidden):
    code = f"import {module}, sys; bad = [m for m in {forbidden} if m in sys.modules]; assert not bad, bad"
    subprocess.run([sys.executable, "-c", code], check=True)
