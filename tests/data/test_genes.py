import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from spabit_jax.data.genes import match_genes, reference_panel, select_genes
from spabit_jax.errors import InputError


def section(counts, names):
    adata = anndata.AnnData(sp.csr_matrix(counts, dtype=np.float32), var=pd.DataFrame(index=names))
    adata.obsm["spatial"] = np.random.default_rng(4).uniform(0, 9, (len(counts), 2))
    adata.uns["spabit"] = {"name": "S"}
    return adata


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


@pytest.mark.parametrize("panel", ["informative", "train_spots", "hvg"])
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
    with pytest.raises(InputError, match="informative, hvg, train_spots, reference"):
        select_genes(section(x, names), "nonsense", 300, np.ones(29, bool))


def test_genes_are_added_to_any_panel(counts, tmp_path):
    x, names = counts
    adata, everywhere = section(x, names), np.ones(29, bool)
    file = tmp_path / "genes+more.txt"  # a plus in its own name
    file.write_text("G07\n")
    for panel in ("informative", "reference", str(file)):
        alone = select_genes(adata, panel, 5, everywhere)
        added = [gene for gene in names if gene not in alone][:2]
        if "+" not in panel:
            assert select_genes(adata, f"{panel}+{added[0]}, {added[1]},{alone[0]}", 5, everywhere) == alone + added
    assert select_genes(adata, str(file), 5, everywhere) == ["G07"]
    many = select_genes(adata, "informative+" + ",".join(names * 3), 5, everywhere)  # longer than a file's name
    assert sorted(many) == sorted(names)
    adata.var["feature_name"] = [f"symbol{i}" for i in range(len(names))]
    assert select_genes(adata, f"{file}", 5, everywhere) == ["G07"]
    assert names[3] in select_genes(adata, "informative+symbol3", 5, everywhere)
    file.write_text("symbol4\nG07\n")
    assert select_genes(adata, str(file), 5, everywhere) == [names[4], "G07"]
    with pytest.raises(InputError, match="g07 is not measured in section S, which has 41 genes; like it are G07"):
        select_genes(adata, "informative+g07", 5, everywhere)


def test_an_informative_panel_is_half_counts_and_half_space():
    rng = np.random.default_rng(0)
    row, col = (index.ravel() for index in np.indices((20, 20)))
    mean = np.full((400, 100), 2.0)
    mean[:, :10] = 40.0  # many counts, no pattern
    mean[:, 10:20] = np.where(col < 10, 0.5, 3.5)[:, None]  # few counts, in one half
    names = [f"G{i:03d}" for i in range(100)]
    names[0], names[10], names[11] = "mt-Co1", "Rpl3", "Rps6ka1"  # the third is a kinase
    adata = section(rng.poisson(mean), names)
    adata.obsm["spatial"] = np.stack([col, row], axis=1) * 100.0
    panel = select_genes(adata, "informative", 18, np.ones(400, bool))
    assert panel == sorted(names[1:10] + names[11:20])
    adata.var_names, adata.var["feature_name"] = [f"ENSG{i:011}" for i in range(100)], names
    assert len(select_genes(adata, "informative", 18, np.ones(400, bool))) == 18
    assert not {"ENSG00000000000", "ENSG00000000010"} & {*select_genes(adata, "informative", 18, np.ones(400, bool))}


def test_genes_of_another_section_are_found_by_id_and_by_name():
    panel = pd.DataFrame({"gene_ids": ["ENSG1", "ENSG2", "ENSG3"]}, ["A", "B", "C"])
    order = [2, 0, 1]

    def columns(names, ids=None, column="gene_ids"):
        var = pd.DataFrame(index=names) if ids is None else pd.DataFrame({column: ids}, names)
        return match_genes(anndata.AnnData(np.ones((1, len(names)), np.float32), var=var), panel).tolist()

    assert columns(["B", "C", "A"]) == order  # symbols alone
    assert columns(["ENSG2.7", "ENSG3", "ENSG1.1"]) == order  # ids for symbols, with versions
    assert columns(["b", "c", "a"], ["ENSG2", "ENSG3", "ENSG1"]) == order  # other symbols, the same ids
    assert columns(["A", "A-1", "B"], ["ENSG3", "ENSG1", "ENSG2"]) == [1, 2, 0]  # a symbol that two genes have
    assert columns(["B", "X"], ["ENSG2", "ENSG2"]) == [-1, 0, -1]  # an id that two have says nothing
    for column in ("Gene.ID", "ensembl_id", "ENSEMBL", "geneId"):
        assert columns(["b", "c", "a"], ["ENSG2", "ENSG3", "ENSG1"], column) == order
    assert columns(["hg19_B", "hg19_C", "GRCh38___A", "mm10_A"]) == [-1, 0, 1]  # of two genomes, A is which?
    assert columns(["GRCh38_B", "GRCh38_C", "GRCh38_A"]) == order
    assert columns(["X", "Y"]) == [-1, -1, -1]
