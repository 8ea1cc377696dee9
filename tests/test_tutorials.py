"""The notebooks are made from the programs beside them, and one of these programs runs."""

import json
import re
from pathlib import Path

import matplotlib
import pytest

TUTORIALS = Path(__file__).parents[1] / "docs" / "tutorials"


def cells(program: Path) -> list[str]:
    """Of a program in the percent format: of text its lines, of code what a notebook has."""
    found = []
    for cell in re.split(r"^# %%", program.read_text(), flags=re.MULTILINE)[1:]:
        kind, _, text = cell.partition("\n")
        mark = r"^# ?" if "markdown" in kind else r"^# (?=[!%])"
        found.append(re.sub(mark, "", text.strip(), flags=re.MULTILINE))
    return found


@pytest.mark.parametrize("program", sorted(TUTORIALS.glob("*.py")), ids=lambda path: path.stem)
def test_a_notebook_is_what_its_program_says_and_was_run(program):
    notebook = program.with_suffix(".ipynb")
    content = json.loads(notebook.read_text())["cells"]
    assert ["".join(cell["source"]).strip() for cell in content] == cells(program), "make tutorials"
    code = [cell for cell in content if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert notebook.stat().st_size < 600_000
    assert f"({notebook.name})" in (TUTORIALS / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of other libraries, in a program that is not a test
def test_a_denser_map():
    text = (TUTORIALS / "visium.py").read_text()
    smaller = {"n_rows=18, n_cols=18, n_genes=120": "n_rows=10, n_cols=10, n_genes=40"}
    smaller |= {".grid(section, 4))\n": ".grid(section, 2))\n"}
    for large, small in smaller.items():
        assert text.count(large) == 1
        text = text.replace(large, small)
    matplotlib.use("agg")
    variables = {}
    exec(text, variables)
    assert variables["table"].loc["this model", "pcc"] < variables["table"].loc["noise ceiling", "pcc"]
    assert 3 < variables["dense"].n_obs / variables["adata"].n_obs < 8  # 4, and on this small section its rim
    assert variables["dense"].obs["cluster"].nunique() == 5
