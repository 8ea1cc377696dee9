import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from spabit_jax.errors import InputError
from spabit_jax.genes import reference_panel, select_genes


def section(counts, names):
    return anndata.AnnData(sp.csr_matrix(counts, dtype=np.float32), var=pd.DataFrame(index=names))


@pytest.fixture
def counts():
    rng = np.random.default_rng(3)
    return rng.poisson(rng.gamma(1.0, 3.0, 41), (29, 41)), [f"G{i:02d}" for i in rng.permutation(41)]


def test_reference_panel_follows_the_rule_step_by_step(counts):
    x, names = counts
    names[3], names[5], names[8] = "MT-CO1", "RPL3", "rpx"
    x[:, 11] = 0
    logged = pd.DataFrame(np.log1p(x / x.sum(axis=1, keepdims=True) * 1e4), columns=names).loc[:, x.sum(axis=0) > 0]
    top = set(logged.mean().nlargest(30).index) & set(logged.std().nlargest(30).index)
    wanted = sorted(n for n in top if not n.startswith(("MT-", "mt-", "RP", "rp")))
    assert len(wanted) > 9
    assert reference_panel(sp.csr_matrix(x), names, n_genes=9, n_top=30) == wanted[:9]
    assert reference_panel(sp.csr_matrix(x), names, n_genes=99, n_top=30) == wanted


@pytest.mark.parametrize("panel", ["train_spots", "hvg"])
def test_panels_of_train_spots_do_not_look_at_test_spots(counts, panel):
    x, names = counts
    is_train = np.arange(29) % 2 == 0
    other = x.copy()
    other[~is_train] = np.random.default_rng(0).permuted(other[~is_train] * 7, axis=1)
    with np.errstate(all="ignore"):
        chosen = [select_genes(section(c, names), panel, 9, is_train) for c in (x, other)]
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 9


def test_the_reference_panel_does_look_at_all_spots(counts):
    x, names = counts
    is_train = np.arange(29) < 5
    assert select_genes(section(x, names), "reference", 9, is_train) == reference_panel(x, names, 9)


def test_panel_from_a_file(counts, tmp_path):
    x, names = counts
    file = tmp_path / "genes.txt"
    file.write_text("G07\nG03\n\n")
    assert select_genes(section(x, names), str(file), 300, np.ones(29, bool)) == ["G07", "G03"]
    file.write_text("G07\nNOPE\n")
    with pytest.raises(InputError, match="NOPE"):
        select_genes(section(x, names), str(file), 300, np.ones(29, bool))
    with pytest.raises(InputError, match="reference, train_spots, hvg"):
        select_genes(section(x, names), "nonsense", 300, np.ones(29, bool))
