import numpy as np
import pandas as pd
import pytest
from scipy.stats import fisher_exact, hypergeom, mannwhitneyu

from spabit_jax.downstream.enrichment import enrich, find_markers, gsea, over_representation, read_gene_sets
from spabit_jax.errors import InputError

GENES = [f"G{i}" for i in range(60)]


def planted(seed=0):
    """(80, 60) expression, two groups; the first 10 genes are higher in group a."""
    rng = np.random.default_rng(seed)
    values = rng.normal(3, 1, (80, 60))
    groups = np.array(["a"] * 30 + ["b"] * 40 + [""] * 10, object)
    values[:30, :10] += 3
    return values, groups


def test_markers_are_those_that_were_planted():
    values, groups = planted()
    table = find_markers(values, GENES, groups)
    a = table[table["group"] == "a"]
    assert set(a["gene"].head(10)) == set(GENES[:10]) and (a["fdr"].head(10) < 1e-6).all()
    first = a.set_index("gene").loc["G3"]
    gene = values[:, 3] - values.mean(axis=1)
    oracle = mannwhitneyu(gene[:30], gene[30:70], use_continuity=False, method="asymptotic").pvalue
    assert first["p"] == pytest.approx(oracle, rel=1e-4)
    assert first["log2_fold_change"] == pytest.approx(gene[:30].mean() - gene[30:70].mean(), abs=1e-6)
    deeper = values + np.random.default_rng(0).normal(0, 5, (80, 1))
    pd.testing.assert_frame_equal(find_markers(deeper, GENES, groups), table)
    assert find_markers(values, GENES, np.where(groups == "a", groups, "")).empty


def test_normalised_values_stay_as_they_are_and_their_changes_are_logs_to_the_base_2():
    values, groups = planted()
    table = find_markers(values, GENES, groups, "log1p_normalised")
    first = table[table["group"] == "a"].set_index("gene").loc["G3"]
    natural = values[:30, 3].mean() - values[30:70, 3].mean()
    assert first["log2_fold_change"] == pytest.approx(natural / np.log(2))
    oracle = mannwhitneyu(values[:30, 3], values[30:70, 3], use_continuity=False, method="asymptotic").pvalue
    assert first["p"] == pytest.approx(oracle, rel=1e-4)


def test_p_values_are_those_of_scipy():
    rng = np.random.default_rng(0)
    sets = {f"S{i}": list(rng.choice(GENES, size, replace=False)) for i, size in enumerate((3, 7, 20, 41))}
    markers = GENES[:13]
    table = over_representation(markers, sets, GENES).set_index("gene_set")
    for name, members in sets.items():
        both = len(set(markers) & set(members))
        counts = [[both, len(members) - both], [13 - both, 60 - 13 - len(members) + both]]
        assert table.loc[name, "p"] == pytest.approx(fisher_exact(counts, "greater").pvalue, rel=1e-9)
        assert table.loc[name, "p"] == pytest.approx(hypergeom.sf(both - 1, 60, len(members), 13), rel=1e-9)
        assert table.loc[name, "n_shared"] == both and table.loc[name, "n_set"] == len(members)
    p = np.sort(table["p"])
    adjusted = np.minimum.accumulate((p * 4 / np.arange(1, 5))[::-1])[::-1]  # Benjamini and Hochberg, by hand
    np.testing.assert_allclose(np.sort(table["fdr"]), np.minimum(adjusted, 1))


def test_without_markers_nothing_is_enriched():
    table = over_representation([], {"S": GENES[:5], "T": GENES[5:9]}, GENES)
    assert (table["p"] == 1).all() and (table["fdr"] == 1).all() and (table["n_shared"] == 0).all()


def test_the_planted_set_of_a_simulated_gmt_is_found_and_no_other(tmp_path):
    rng = np.random.default_rng(1)
    lines = ["PLANTED\tknown\t" + "\t".join([*GENES[:8], "ABSENT"])]
    lines += [f"RANDOM{i}\tnone\t" + "\t".join(rng.choice(GENES[10:], 8, replace=False)) for i in range(6)]
    lines.append("ELSEWHERE\tnone\tX1\tX2\tX3")
    path = tmp_path / "sets.gmt"
    path.write_text("\n".join(lines) + "\n")
    sets = read_gene_sets(path, GENES)
    assert len(sets) == 7 and sets["PLANTED"] == GENES[:8]
    values, groups = planted()
    table = enrich(find_markers(values, GENES, groups), sets)
    found = table[(table["fdr"] < 0.05) & (table["effect"] > 0)]
    for test in ("ora", "gsea"):
        rows = found[(found["test"] == test) & (found["group"] == "a")]
        assert list(rows["gene_set"]) == ["PLANTED"], test
        assert set(rows.iloc[0]["genes"].split()) <= set(GENES[:8])


def test_gsea_does_not_depend_on_the_order_of_the_genes():
    rng = np.random.default_rng(0)
    scores = pd.Series(rng.normal(0, 1, 60), GENES)
    sets = {"UP": list(scores.nlargest(8).index), "ANY": GENES[::7]}
    one, other = (gsea(scores.loc[order], sets, 200) for order in (GENES, GENES[::-1]))
    pd.testing.assert_frame_equal(one, other)
    assert one.iloc[0]["gene_set"] == "UP" and one.iloc[0]["effect"] > 1.5
    assert one["p"].min() == one["fdr"].min() == 1 / 201  # of 200 permutations none can say less


def test_a_set_that_is_the_whole_panel_is_not_ranked():
    values, groups = planted()
    markers = find_markers(values, GENES, groups)
    assert set(enrich(markers, {"ALL": GENES})["test"]) == {"ora"}
    both = enrich(markers, {"ALL": GENES, "PLANTED": GENES[:8]})
    assert set(both.loc[both["test"] == "gsea", "gene_set"]) == {"PLANTED"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("SET\tno genes\n", "'SET' has no genes"),
        ("SET\tother names\tENSG1\tENSG2\tENSG3\n", "same gene names"),
    ],
)
def test_a_bad_gmt_gives_one_line(tmp_path, content, message):
    path = tmp_path / "sets.gmt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message) as error:
        read_gene_sets(path, GENES)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
