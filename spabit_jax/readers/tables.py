"""Text tables: counts, positions and labels, as people have them."""

from __future__ import annotations

import gzip
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from spabit_jax.errors import InputError

POSITIONS_10X = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]

FURTHEST = 1e8  # pixels, rows or columns: no image is so large

# An exponent of more than 32 bits: pandas looks for its power of ten outside of a table of them, and crashes.
_EXPONENT = re.compile(r"[eE][+-]?\d{10}", re.ASCII)  # is found faster
_OVERFLOWS = re.compile(r"""(?:^|[\s,;|"'])[+-]?(?:\d+\.?\d*|\.\d+)[eE][+-]?\d{10}""", re.MULTILINE | re.ASCII)


@contextmanager
def reading(path: Path, what: str, remedy: str = "replace the file") -> Iterator[None]:
    """Turns whatever a library raises on a broken file into one line that names it."""
    try:
        with warnings.catch_warnings():
            # Genes are made unique, and repeated barcodes refused, in assemble().
            warnings.filterwarnings("ignore", "(Variable|Observation) names are not unique", UserWarning)
            yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # h5py, pandas and zlib share no base class
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: cannot be read as {what}, or is truncated ({reason}): {remedy}") from error


def positive(value, what: str, path: Path) -> float:
    """The number itself; InputError unless it is one, above 0, of a size that pixels and µm have."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not 1e-9 < number < 1e9:
        raise InputError(f"{path}: {what} is {value!r:.60}: it must be a number above 0, as pixels and µm have it")
    return number


def _open(path: Path):
    return gzip.open(path, "rt") if path.suffix == ".gz" else open(path)


def _first_line(path: Path) -> str:
    with _open(path) as file:
        return file.readline().rstrip("\r\n")


def read_csv(path: Path, **how):
    """``pd.read_csv`` of a file; ValueError for a number at which it would crash the process.

    Columns are separated by tabs, commas or semicolons, as the first line has them, unless ``sep`` is given.
    """
    with _open(path) as file:
        for line in file:
            if _EXPONENT.search(line) and (found := _OVERFLOWS.search(line)):
                raise ValueError(f"{found[0].strip()}… is too large for a number")
    return pd.read_csv(path, **{"sep": _separator(_first_line(path)), **how})


def to_numbers(column: pd.Series) -> pd.Series:
    """``pd.to_numeric``, NaN for what is no number, or one at which it would crash the process."""
    if not pd.api.types.is_numeric_dtype(column):
        column = column.mask(column.astype(str).str.contains(_OVERFLOWS))
    return pd.to_numeric(column, errors="coerce")


def _separator(line: str) -> str:
    return next((mark for mark in "\t,;" if mark in line), ",")


def read_counts(path: Path) -> AnnData:
    """Reads a text table of spots × genes, header the genes, first column the barcodes; sparse from the start.

    Raises:
      InputError: unreadable, or not numbers.
    """
    with reading(path, "a table of counts (spots × genes)"):
        barcodes, parts, genes = [], [], None
        # in pieces already: pandas's own, of a few rows, take half as long again
        how = {"converters": {0: str}, "chunksize": 512, "low_memory": False}  # 0001 is a name
        for chunk in read_csv(path, **how):
            if isinstance(chunk.index, pd.RangeIndex):  # else the header has no word for the barcodes
                chunk = chunk.set_index(chunk.columns[0])
            barcodes += [str(barcode) for barcode in chunk.index]
            parts.append(sparse.csr_matrix(chunk.to_numpy(np.float32)))
            genes = chunk.columns.astype(str)
        x = sparse.vstack(parts, format="csr")
        return AnnData(x, obs=pd.DataFrame(index=barcodes), var=pd.DataFrame(index=genes))


def read_positions_10x(path: Path) -> pd.DataFrame:
    """Reads a 10x positions file: parquet, or text with a header or without.

    Returns:
      A frame indexed by barcode, in the file's order: in_tissue, array_row, array_col (integers), x, y (float,
      full-resolution pixels; x is the file's pxl_col).

    Raises:
      InputError: unreadable, columns missing or not numbers, repeated barcodes.
    """
    with reading(path, "a positions file"):
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
            table = table if "barcode" in table else table.reset_index(names="barcode")
        else:
            line = _first_line(path)
            second = [*line.split(_separator(line)), ""][1].strip().strip('"')
            header = None if second.replace(".", "", 1).isdigit() or second.lower() in ("true", "false") else 0
            table = read_csv(path, header=header)
    others = [column for column in table if column not in POSITIONS_10X[1:]]
    if len(others) == 1:  # the barcodes, whatever they are called
        table = table.rename(columns={others[0]: "barcode"})
    if set(POSITIONS_10X) <= set(table.columns):
        table = table[POSITIONS_10X]
    if table.shape[1] != 6:
        raise InputError(f"{path}: {table.shape[1]} columns where {','.join(POSITIONS_10X)} are needed")
    table.columns = ["barcode", "in_tissue", "array_row", "array_col", "y", "x"]
    return check_positions(table.set_index("barcode"), path)


def read_affine(path: Path) -> np.ndarray:
    """Reads an affine matrix: 2 or 3 rows of 3 numbers, separated by commas, tabs or spaces, or a list of them in JSON.

    Returns:
      (3, 3), which maps (x, y, 1) of one image to that of another; its last row is 0, 0, 1.

    Raises:
      InputError: unreadable, of another shape, or not to be inverted.
    """
    with reading(path, "an affine matrix"):
        if path.suffix == ".json":
            rows = json.loads(path.read_text())
        else:
            rows = [re.split(r"[\s,;]+", line.strip(" ,;\t")) for line in path.read_text().splitlines() if line.strip()]
        matrix = np.array(rows, np.float64)
    return check_affine(matrix, path)


def check_affine(matrix: np.ndarray, path: Path) -> np.ndarray:
    """As ``read_affine``, of a matrix (2, 3) or (3, 3)."""
    if matrix.shape not in ((2, 3), (3, 3)):
        raise InputError(f"{path}: a matrix of shape {matrix.shape} where (3, 3) or (2, 3) is needed")
    matrix = np.concatenate([matrix, [[0, 0, 1]]])[[0, 1, -1 if len(matrix) == 2 else 2]]
    affine = np.isfinite(matrix).all() and np.allclose(matrix[2], [0, 0, 1])
    if not affine or np.linalg.matrix_rank(matrix) < 3:
        raise InputError(f"{path}: not an affine matrix that can be inverted: its last row must be 0,0,1")
    return matrix


def check_positions(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Gives the columns of ``read_positions_10x`` their types.

    Raises:
      InputError: no row, values that are not numbers, repeated barcodes, no spot in tissue.
    """
    as_given, table = table, table.assign(in_tissue=_numbers(table["in_tissue"])).apply(to_numbers)
    whole = table[["in_tissue", "array_row", "array_col"]]
    bad = ~np.isfinite(table.astype(np.float64))
    bad[whole.columns] |= whole != whole.round()
    bad |= table.abs() > FURTHEST
    if bad.to_numpy().any():
        spot, column = np.argwhere(bad.to_numpy())[0]
        raise InputError(
            f"{path}: the position of spot {table.index[spot]} is missing, not a number or beyond {FURTHEST:g} "
            f"({table.columns[column]} is {as_given.iloc[spot, column]}): correct it"
        )
    table.index = table.index.astype(str)
    if not table.index.is_unique:
        raise InputError(f"{path}: barcode {table.index[table.index.duplicated()][0]} occurs twice: remove one row")
    if not (table["in_tissue"] == 1).any():
        raise InputError(f"{path}: no spot is in tissue: in_tissue must be 1 for those to be used")
    integers = dict.fromkeys(whole.columns, np.int64)
    return table.astype({**integers, "x": np.float64, "y": np.float64})[[*integers, "x", "y"]]


def _numbers(column: pd.Series) -> pd.Series:
    """True and False written as words, as 1 and 0; all else as it is."""
    if pd.api.types.is_numeric_dtype(column):
        return column
    words = column.astype(str).str.lower().map({"true": 1, "false": 0})
    return column.astype(object).where(words.isna(), words)


def read_labels(path: Path, barcodes: pd.Index) -> pd.Series:
    """Reads a label for each spot.

    Args:
      path: barcode and label (comma or tab, header or not); or a table with columns x, y and label, the spot's name
        being the rounded ``<x>x<y>`` (her2st); or one label per spot, separated by white space.
      barcodes: of the spots in tissue, in the order of the positions file.

    Returns:
      Labels (str or NaN) indexed by ``barcodes``.

    Raises:
      InputError: unreadable, none of these forms, or no barcode in common.
    """
    forms = "needed are barcode,label; or columns x, y, label; or one label for each spot in tissue"
    with reading(path, "labels"):
        line = _first_line(path)
        fields = line.split(_separator(line))
        if len(fields) == 1:
            values = path.read_text().split()
            if len(values) != len(barcodes):
                raise InputError(f"{path}: {len(values)} labels for {len(barcodes)} spots in tissue: {forms}")
            return pd.Series(values, index=barcodes).replace("NA", np.nan)
        if {"x", "y", "label"} <= set(fields):
            table = read_csv(path, dtype={"label": str}).dropna(subset=["x", "y"])
            x, y = (table[c].round().astype(int).astype(str) for c in "xy")
            labels = table["label"].set_axis(x + "x" + y)
        elif len(fields) == 2:
            labels = pd.read_csv(path, sep=_separator(line), header=None, dtype=str).dropna(subset=0).set_index(0)[1]
        else:
            raise InputError(f"{path}: {len(fields)} columns: {forms}")
    if not labels.index.is_unique:
        raise InputError(f"{path}: spot {labels.index[labels.index.duplicated()][0]} has two labels: remove one")
    found = of_barcodes(labels, barcodes)
    if found is None:
        raise InputError(f"{path}: names none of the spots ({barcodes[0]}, …): {forms}")
    return found


def of_barcodes(values: pd.Series, barcodes: pd.Index) -> pd.Series | None:
    """Values of the spots, NaN of those that they do not name, or None of all; -1 may be lost on either side."""
    wanted = barcodes
    if not values.index.isin(wanted).any():
        values, wanted = values.set_axis(without_suffix(values.index)), without_suffix(barcodes)
    return values.reindex(wanted).set_axis(barcodes) if values.index.isin(wanted).any() else None


def without_suffix(names: pd.Index) -> pd.Index:
    """Barcodes without the -1 at their ends, which some tools drop, where all have it."""
    return names.str.removesuffix("-1") if len(names) and names.str.endswith("-1").all() else names
