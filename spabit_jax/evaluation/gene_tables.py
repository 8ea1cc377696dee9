"""Tables of genes as CSV files, which spreadsheets open, too."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from spabit_jax.files import replacing

NAMES = ("section", "method", "gene")  # columns
_COMPUTED = r"(?='*[=+\-@])"  # what spreadsheets take for a formula, and what was escaped before


def write_genes(path: Path, table: pd.DataFrame, sealed: bool = False) -> None:
    """Names that a spreadsheet would compute get a ' before them, off by ``read_genes``."""
    names = [name for name in NAMES if name in table]
    inert = table.assign(**{n: table[n].astype(str).str.replace(f"^{_COMPUTED}", "'", regex=True) for n in names})
    with replacing(path, sealed) as temporary:
        inert.to_csv(temporary, index=False)


def read_genes(path: Path) -> pd.DataFrame:
    """What ``write_genes`` was given."""
    table = pd.read_csv(path, keep_default_na=False, na_values={"pcc": [""]})
    names = [name for name in NAMES if name in table]
    return table.assign(**{n: table[n].astype(str).str.replace(f"^'{_COMPUTED}", "", regex=True) for n in names})
