"""Who may import whom: a room knows those on the floors below it, and nothing above."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = (
    (
        "errors",
        "files",
        "user_cache",
        "scale",
        "config",
        "presets",
        "chunks",
        "neighbours",
        "ops",
        "predictions",
        "geojson",
    ),
    ("readers", "datasets"),
    ("data",),
    ("models", "kriging", "predictions_spatialdata"),
    ("training",),
    ("reference",),
    ("ensemble",),
    ("evaluation",),
    ("downstream",),
    ("run",),
    ("api", "__main__"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
OUTSIDE = {"spabit_jax": {"experiments", "torch", "absl.flags"}, "feature_extraction": {"experiments", "jax"}}
FLAGS = {"feature_extraction/command.py", "feature_extraction/extract.py"}  # commands: these know flags
TORCH = "spabit_jax/reference/"  # lazily


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it; of ``from a import b`` also a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def sources(package: str) -> list[Path]:
    return sorted(path for path in (ROOT / package).rglob("*.py") if path != ROOT / "spabit_jax" / "__init__.py")


@pytest.mark.parametrize("path", sources("spabit_jax"), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_import_runs_upwards(path):
    own = path.relative_to(ROOT / "spabit_jax").parts[0].removesuffix(".py")
    for module in imports(path):
        room = module.split(".")[1] if module.startswith("spabit_jax.") else own
        assert room in FLOOR, f"{path} imports {module}, which is on no floor"
        assert room == own or FLOOR[room] <= FLOOR[own], f"{path} imports {module}, on a floor above"


@pytest.mark.parametrize("package", OUTSIDE)
def test_a_package_stays_on_its_side(package):
    for path in sources(package):
        name = str(path.relative_to(ROOT))
        for module in imports(path):
            for forbidden in OUTSIDE[package]:
                if module == forbidden or module.startswith(f"{forbidden}."):
                    assert forbidden == "torch" and name.startswith(TORCH), f"{name} imports {module}"


def test_nobody_imports_the_studies_but_commands():
    for path in sources("experiments"):
        if not str(path).startswith(str(ROOT / "experiments" / "studies")):
            assert path.name in ("benchmark.py", "compare_reference.py") or not any(
                module.startswith("experiments.studies") for module in imports(path)
            ), path
