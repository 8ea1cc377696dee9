"""What the installed package must do, in an environment of its own and from a folder without the sources.

    cd OTHER_FOLDER && ENVIRONMENT/bin/python CHECKOUT/tests/wheel_smoke.py

Writes simulated sections, their stain features, and what the README's Python makes of one into the current folder.
"""

import importlib
import os
import pkgutil
import re
import sys
from importlib.metadata import files, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import feature_extraction
import spabit_jax
from feature_extraction.cache import read_cache
from feature_extraction.extract import extract_section
from spabit_jax.datasets.simulate import simulate_section, write_section
from spabit_jax.readers import read_section

PACKAGES = (spabit_jax, feature_extraction)
OF_EXTRAS = ("feature_extraction.conch15",)  # a PyTorch module, imported where that encoder is asked for

for package in PACKAGES:
    assert Path(package.__file__).is_relative_to(sys.prefix), f"{package.__file__} is not of {sys.prefix}"
    assert Path(package.__file__).with_name("py.typed").exists()
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if module.name not in OF_EXTRAS:
            importlib.import_module(module.name)  # with the dependencies alone
assert version("spabit_jax") == spabit_jax.__version__
folders = {file.parts[0] for file in files("spabit_jax")}
assert folders == {package.__name__ for package in PACKAGES} | {f"spabit_jax-{spabit_jax.__version__}.dist-info"}
assert find_spec("torch") is None, "PyTorch is for neural encoders: an extra"

path = write_section(*simulate_section(seed=0, n_rows=8, n_cols=8, n_genes=40), Path("section"))
section = read_section(path)
extract_section(section, "stain", 32, "cache")
features = read_cache(section, "stain", 32, "cache")
assert features.shape == (section.n_obs, 42) and np.isfinite(features).all()

sys.path.append(str(Path(__file__).parent))
from legacy_section import write_legacy_section  # noqa: E402

os.environ["MPLBACKEND"] = "Agg"
write_legacy_section(Path("data"))
readme = (Path(__file__).parents[1] / "README.md").read_text()
(code,) = re.findall(r"### In Python\n+```python\n(.*?)```", readme, re.DOTALL)
exec(code, {})
assert Path("dense.png").stat().st_size > 10_000 and Path("report.html").exists()
print(f"spabit_jax {version('spabit_jax')} from its wheel: {section.n_obs} spots, {features.shape[1]} stain features")
