"""Train and test spots."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from spabit_jax.config import OWN_SPLITS, SPLITS, is_own_split
from spabit_jax.errors import InputError
from spabit_jax.readers.tables import of_barcodes, read_csv

N_BLOCKS = 16


def split_spots(adata: AnnData, split: str, train_fraction: float = 0.25, seed: int = 0) -> np.ndarray:
    """Which spots are train spots.

    Args:
      adata: a section; ``uns["spabit"]`` has its lattice and the extent of all its array positions.
      split: ``lattice`` (the reference's, no randomness), ``random``, ``block`` (whole regions are held out: of 16
        k-means clusters of the spots, train regions are drawn until they hold ``train_fraction`` of the spots),
        ``none`` (every spot is a train spot), ``image_only`` (none is: all is learned from related sections), or the
        user's own (``own_split``).

    Returns:
      (N,) bool, True for train spots.

    Raises:
      InputError: an unknown split, or one that leaves no train or no test spot.
    """
    rng = np.random.default_rng(seed)
    if is_own_split(split):
        return own_split(adata, split)
    if split in ("none", "image_only"):
        return np.full(adata.n_obs, split == "none")
    if split == "lattice":
        info = adata.uns["spabit"]
        is_train = lattice_split(
            adata.obs["array_row"].to_numpy(),
            adata.obs["array_col"].to_numpy(),
            np.asarray(info["array_min"]),
            np.asarray(info["array_max"]),
            hexagonal=info["lattice"] == "hex",
        )
    elif split == "random":
        is_train = np.zeros(adata.n_obs, bool)
        is_train[rng.permutation(adata.n_obs)[: round(train_fraction * adata.n_obs)]] = True
    elif split == "block":
        is_train = _blocks(adata.obsm["spatial"], train_fraction, rng)
    else:
        raise InputError(f"unknown split {split!r}: known are {', '.join(SPLITS)}, {OWN_SPLITS}")
    if is_train.all() or not is_train.any():
        what = "no test spot" if is_train.all() else "no train spot"
        raise InputError(
            f"split {split!r} leaves {what} of {adata.n_obs} in section {adata.uns['spabit']['name']}: "
            "choose another with --config.data.split or --config.data.train_fraction"
        )
    return is_train


def own_split(adata: AnnData, split: str) -> np.ndarray:
    """A split of the user's own: of each spot train or test, or true or false, or 1 or 0 (true and 1: train).

    Args:
      split: ``obs:COLUMN`` of an .h5ad, or a CSV file: a column of barcodes, then one of these words, with a header.

    Raises:
      InputError: no such column or file, another word, a spot that it does not name, or no train spot.
    """
    of_spots = _of_obs(adata, split.removeprefix("obs:")) if split.startswith("obs:") else _of_csv(Path(split))
    found = of_barcodes(of_spots, adata.obs_names)
    of_spots = of_spots.reindex(adata.obs_names) if found is None else found
    words = of_spots.astype(object).map(lambda value: str(value).strip().lower().removesuffix(".0"))
    where = f"split {split}, section {adata.uns['spabit']['name']}"
    if len(wrong := words[~words.isin(TRAIN + TEST)]):
        word = "nothing" if pd.isna(of_spots[wrong.index[0]]) else repr(str(of_spots[wrong.index[0]]))
        each = f"give train or test for each of {len(of_spots)} spots"
        raise InputError(f"{where}: spot {wrong.index[0]} is {word}: {each}")
    is_train = words.isin(TRAIN).to_numpy()
    if not is_train.any():
        raise InputError(f"{where}: no spot is train: give some")
    return is_train


TRAIN, TEST = ("train", "true", "1"), ("test", "false", "0")


def _of_obs(adata: AnnData, column: str) -> pd.Series:
    if column not in adata.obs:
        name, known = adata.uns["spabit"]["name"], ", ".join(adata.obs)
        raise InputError(f"split obs:{column}: section {name} has no such column in obs, but {known}: give an .h5ad")
    return adata.obs[column]


def _of_csv(path: Path) -> pd.Series:
    try:
        table = read_csv(path, dtype=str)
    except (OSError, ValueError) as error:
        raise InputError(f"split {path}: not a readable CSV file ({' '.join(str(error).split())})") from error
    if table.shape[1] != 2:
        raise InputError(f"split {path}: {table.shape[1]} columns: give barcodes and train or test, with a header")
    table = table.set_index(table.columns[0]).iloc[:, 0]
    if not table.index.is_unique:
        raise InputError(f"split {path}: {table.index[table.index.duplicated()][0]} occurs twice: give each spot once")
    return table


def lattice_split(row, col, array_min, array_max, hexagonal: bool) -> np.ndarray:
    """The reference's lattice: every second row and, on a hexagonal array, every fourth column.

    The lattice starts at the smallest row and column of the whole array (spots off the tissue included), raised to the
    next even number. On a hexagonal array its columns stop before the last one. On a square array it has steps of 2
    both ways, last row and column included.

    Args:
      row, col: (N,) int array coordinates.
      array_min, array_max: (2,) int (row, col), over all positions of the array.
    """
    start_row, start_col = (int(a) + int(a) % 2 for a in array_min)
    step = 4 if hexagonal else 2
    is_train = (row >= start_row) & ((row - start_row) % 2 == 0) & (col >= start_col) & ((col - start_col) % step == 0)
    if hexagonal:
        is_train &= col < array_max[1]
    return is_train


def _blocks(xy: np.ndarray, train_fraction: float, rng: np.random.Generator) -> np.ndarray:
    from sklearn.cluster import KMeans

    n_blocks = min(N_BLOCKS, len(xy))
    block = KMeans(n_blocks, n_init=4, random_state=int(rng.integers(2**31))).fit_predict(xy)
    order = rng.permutation(n_blocks)
    size = np.bincount(block, minlength=n_blocks)[order]
    # a block belongs to the train side while the middle of it still lies within the fraction asked for
    train_blocks = order[np.cumsum(size) - size / 2 < train_fraction * len(xy)]
    return np.isin(block, train_blocks)
