import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from spabit_jax.data.split import lattice_split, split_spots
from spabit_jax.errors import InputError


def section(row, col, lattice="hex"):
    row, col = np.asarray(row), np.asarray(col)
    obs = pd.DataFrame({"array_row": row, "array_col": col}, index=[f"{r}x{c}" for r, c in zip(row, col, strict=True)])
    adata = AnnData(np.zeros((len(row), 1), np.float32), obs=obs)
    adata.obsm["spatial"] = np.stack([col * 10.0, row * 17.0], axis=1)
    adata.uns["spabit"] = {
        "name": "s",
        "lattice": lattice,
        "array_min": [row.min(), col.min()],
        "array_max": [row.max(), col.max()],
    }
    return adata


def visium():
    return [np.array(a) for a in zip(*((r, c) for r in range(78) for c in range(r % 2, 128, 2)), strict=True)]


def test_hexagonal_lattice_is_the_reference_loop():
    row, col = visium()
    wanted = {(r, c) for r in range(0, 78, 2) for c in range(0, 127, 4)}
    got = lattice_split(row, col, (0, 0), (77, 127), hexagonal=True)
    assert {(r, c) for r, c in zip(row[got], col[got], strict=True)} == wanted
    assert got.mean() == pytest.approx(0.25, abs=0.002)


def test_the_lattice_starts_at_the_next_even_number_and_its_columns_stop_before_the_last():
    row, col = np.meshgrid(np.arange(3, 9), np.arange(5, 15), indexing="ij")
    got = lattice_split(row, col, (3, 5), (8, 14), hexagonal=True)
    assert set(row[got]) == {4, 6, 8}
    assert set(col[got]) == {6, 10}  # 14 is the last column


def test_square_lattice_takes_spots_whose_row_and_column_are_both_even():
    row, col = np.meshgrid(np.arange(1, 8), np.arange(3, 11), indexing="ij")
    got = lattice_split(row, col, (1, 3), (7, 10), hexagonal=False)
    np.testing.assert_array_equal(got, (row % 2 == 0) & (col % 2 == 0))


@pytest.mark.parametrize("split", ["lattice", "random", "block"])
def test_splits_are_reproducible_and_sized_as_asked(split):
    adata = section(*visium())
    got = split_spots(adata, split, train_fraction=0.25, seed=3)
    assert got.mean() == pytest.approx(0.25, abs=0.05)
    np.testing.assert_array_equal(got, split_spots(adata, split, train_fraction=0.25, seed=3))
    if split != "lattice":
        assert (got != split_spots(adata, split, train_fraction=0.25, seed=4)).any()


def test_block_split_holds_out_whole_regions():
    from scipy.spatial import KDTree

    adata = section(*visium())
    got = split_spots(adata, "block", train_fraction=0.5, seed=0)
    nearest = KDTree(adata.obsm["spatial"]).query(adata.obsm["spatial"], k=7)[1]
    assert (got[nearest] == got[:, None]).all(axis=1).mean() > 0.8


def test_every_spot_is_a_train_spot_without_a_split():
    assert split_spots(section(*visium()), "none").all()


def test_a_split_without_test_or_train_spots_is_refused():
    with pytest.raises(InputError, match="no test spot"):
        split_spots(section([0, 0, 2], [0, 4, 0, 4][:3], "square"), "lattice")
    with pytest.raises(InputError, match="no train spot"):
        split_spots(section([1, 1], [1, 3]), "lattice")
    with pytest.raises(InputError, match="no test spot"):
        split_spots(section(*visium()), "random", train_fraction=0.99999)
    with pytest.raises(InputError, match="lattice, random, block, none"):
        split_spots(section(*visium()), "thirds")
