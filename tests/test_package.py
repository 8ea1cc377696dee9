"""What pyproject.toml says is what the code imports, what the lock installs and what other files say."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import spabit_jax

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PACKAGES = ("spabit_jax", "feature_extraction")
BY_HAND = {"conch"}  # no release of it: what asks for it names its source


def ranges(*extras):
    """Distribution → range, of the dependencies and of these extras."""
    found = map(Requirement, PROJECT["dependencies"] + [line for extra in extras for line in EXTRAS[extra]])
    return {canonicalize_name(requirement.name): requirement.specifier for requirement in found}


def test_what_is_imported_is_declared():
    distributions = packages_distributions()
    declared = set(ranges(*EXTRAS.keys() - {"dev"}))
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            for name in {name.partition(".")[0] for name in imported} - {*sys.stdlib_module_names, *PACKAGES, *BY_HAND}:
                assert declared & set(map(canonicalize_name, distributions.get(name, [name]))), f"{path}: {name}"


def test_the_lock_is_within_the_ranges():
    files = ("requirements.txt", "requirements-light.txt", "requirements-docs.txt")
    lines = [(ROOT / file).read_text().splitlines() for file in files]
    pins = dict(line.split("==") for line in sum(lines, []) if "==" in line)
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    asked = ranges(*EXTRAS.keys() - {"spatialdata"})
    assert pins.keys() == asked.keys()
    for name, version in pins.items():
        assert asked[name].contains(version, prereleases=True), name


def test_one_version():
    assert f"\nversion: {spabit_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    newest = re.search(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest[1] == spabit_jax.__version__
