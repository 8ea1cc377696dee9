"""Several sections in one AnnData: which spots and images are of which."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from spabit_jax.errors import InputError

# Columns of obs that say which section a spot is of, also as sampleID or Sample.name
LIBRARIES = ("library", "sample", "section", "slice", "slide", "orig.ident", "image", "donor", "patient", "batch")
_LIBRARY = re.compile(rf"({'|'.join(LIBRARIES)})[_. ]?(id|name)?", re.IGNORECASE)
WHOLE = "n_spots"  # in uns["spabit"] of a section that a run keeps: of one section, whatever columns of obs say


def one_library(adata: AnnData, name: str, path: Path) -> AnnData:
    """The spots and images of one section of a concatenated AnnData, or all of an AnnData of one section.

    Sections are told apart by the first column of several values that is called as in ``LIBRARIES`` or holds the names
    of the libraries in ``uns["spatial"]``; that they are several, also by array places that occur twice.

    Raises:
      InputError: it holds several, and none is called ``name``, or no column says which spots are its.
    """
    libraries = libraries_of(adata)
    words = {column: _words(adata.obs[column]) for column in sorted(adata.obs, key=_rank)}
    columns = {column: values.dropna() for column, values in words.items()}
    columns = {
        column: values
        for column, values in columns.items()
        if values.nunique() > 1 and (_LIBRARY.fullmatch(str(column)) or set(values) == set(libraries))
    }
    column = next((column for column, values in columns.items() if name in set(values)), None)
    if column is not None:
        found = adata[(words[column] == name).to_numpy()].copy()
        found.uns.pop("spabit", None)  # of the whole
        _check_places(found, path)
        return _with_library(found, name if name in libraries else _only_library(found))
    is_one = mapping(adata.uns.get("spabit")).get(WHOLE) == adata.n_obs
    if columns and not is_one:
        column, values = next(iter(columns.items()))
        names = sorted(set(values))
        raise InputError(
            f'{path}: holds {len(names)} sections by obs["{column}"] ({_few(names)}): name one with --name=, or remove '
            "the column if they are one section"
        )
    if len(libraries) > 1 and (only := _only_library(adata)):
        adata = _with_library(adata.copy(), only)
    elif len(libraries) > 1:
        raise InputError(
            f'{path}: uns["spatial"] holds {len(libraries)} sections ({_few(list(libraries))}), and no column of obs '
            "(library_id) says which spots are whose: write one file for each"
        )
    _check_places(adata, path)
    return adata


def _words(column: pd.Series) -> pd.Series:
    """Values as text, NaN where there is none; of floats only where all are whole, as R writes whole numbers."""
    if not pd.api.types.is_float_dtype(column):
        return column.astype(object).map(str, na_action="ignore")
    is_whole = (column.dropna() % 1 == 0).all()
    return column.astype(object).map("{:.0f}".format if is_whole else lambda value: np.nan, na_action="ignore")


def libraries_of(adata: AnnData) -> dict[str, Mapping]:
    """Images and scale factors of each section; ``uns["spatial"]`` may hold other things, as CELLxGENE's is_single."""
    return {key: value for key, value in mapping(adata.uns.get("spatial")).items() if isinstance(value, Mapping)}


def _only_library(adata: AnnData) -> str | None:
    """The library that columns of obs name for all spots: of a section that was cut out of several."""
    named = [set(_words(adata.obs[column])) for column in adata.obs]
    found = {value for values in named if len(values) == 1 for value in values} & libraries_of(adata).keys()
    return found.pop() if len(found) == 1 else None


def _with_library(adata: AnnData, library: str | None) -> AnnData:
    """With the images of this one alone, or of none."""
    if "spatial" in adata.uns:
        adata.uns["spatial"] = {} if library is None else {library: adata.uns["spatial"][library]}
    return adata


def _rank(column) -> int:
    """Where in ``LIBRARIES`` the word is that a column is named by; all others come last."""
    return next((i for i, word in enumerate(LIBRARIES) if word in str(column).lower()), len(LIBRARIES))


def _check_places(adata: AnnData, path: Path) -> None:
    """Raises InputError where two spots share an array place, unless places are squares in which cells lie."""
    places = ["array_row", "array_col"]
    if "spabit" in adata.uns or not set(places) <= set(adata.obs):
        return
    twice = adata.obs[places].astype(str).duplicated()
    if twice.any():
        row, col = adata.obs.loc[twice, places].iloc[0]
        raise InputError(
            f"{path}: {twice.sum() + 1} spots share array places (row {row}, column {col}, …), as of several sections: "
            "add a column library_id to obs and name one with --name=, or remove array_row and array_col"
        )


def _few(names: list[str]) -> str:
    return ", ".join([*(str(name)[:40] for name in names[:6]), *["…"] * (len(names) > 6)])


def mapping(value) -> Mapping:
    """The value itself where it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}
