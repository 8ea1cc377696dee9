import io
import os
import subprocess
import sys

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr

from experiments.benchmark import predict_baseline
from spabit_jax.data.prepared import ALONE, Prepared
from spabit_jax.data.split import split_spots
from spabit_jax.datasets.simulate import simulate_section, write_section
from spabit_jax.evaluation.metrics import bootstrap_interval, noise_ceiling
from spabit_jax.evaluation.tables import accuracy_table, comparison_table, markdown
from spabit_jax.readers import read_section
from spabit_jax.scale import LOG2, Scale, find_scale, total_counts
from tests import commands

SMALL = [
    *("--config=experiments/configs/demo.py", "--config.model.width=16", "--config.model.cross_heads=2"),
    *("--config.model.mlp_width=16", "--config.gat.head_width=4", "--config.train.epochs=4", "--patch_px=48"),
    *("--config.train.chunk_epochs=2", "--config.data.n_genes=23", "--config.model.n_context=4", "--num_seeds=2"),
    "--config.model.members=spabit",  # tested elsewhere, and slow to compile
]
METHODS = "gene_mean,knn_mean,ridge,kriging"


@pytest.fixture(scope="module")
def sections(simulated, tmp_path_factory):
    """A section with an image and one without."""
    bare = tmp_path_factory.mktemp("bare") / "bare.h5ad"
    adata = anndata.read_h5ad(simulated)
    adata.uns.pop("spatial")
    adata.write_h5ad(bare)
    return f"{simulated},{bare}"


def run(sections, folder, *flags):
    paths = [f"--sections={sections}", f"--out={folder / 'out'}", f"--cache_dir={folder / 'cache'}"]
    return commands.run("experiments.benchmark", *paths, *SMALL, *flags)


@pytest.fixture(scope="module")
def finished(simulated, tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    result = run(simulated, folder, f"--methods={METHODS},demo")
    assert result.returncode == 0, result.stderr
    return folder, result


def test_the_tables_follow_from_the_predictions(finished, simulated):
    out = finished[0] / "out"
    rows = pd.read_csv(out / "results.csv", keep_default_na=False, na_values={"pcc": [""], "coverage90": [""]})
    designed = "section,method,encoder,seed,n_train,n_test,n_genes,pcc,pcc_defined,n_constant_genes,mse,mae,seconds"
    more = "split,coverage90,scale,panel,weight,depth_only"
    assert list(rows.columns) == [*designed.split(","), *more.split(",")]
    assert len(rows) == 4 + 3  # of the model two seeds and the ensemble
    assert set(rows.loc[rows["method"] == "demo", "seed"]) == {"0", "1", "ensemble"}
    assert (rows.loc[rows["method"] == "gene_mean", "pcc"] == 0).all()

    genes = pd.read_csv(out / "genes.csv", keep_default_na=False, na_values={"pcc": [""], "ceiling": [""]})
    adata = read_section(simulated)
    for method, seed in (("ridge", ""), ("demo", "ensemble")):
        mine, row = (t[(t["section"] == "tiny") & (t["method"] == method) & (t["seed"] == seed)] for t in (genes, rows))
        mine, row = mine.set_index("gene"), row.iloc[0]
        piece = np.load(out / "predictions" / f"tiny.lattice.log1p_normalised.stain.{method}.npz")
        assert piece["mean"].shape == piece["sd"].shape == (row["n_test"], 23) and (piece["sd"] > 0).all()
        test = ~split_spots(adata, "lattice")
        counts = adata[:, mine.index].X.toarray()
        totals, scale = total_counts(adata), find_scale("log1p_normalised", adata, ~test)
        truth = scale.expression(counts[test], totals[test])
        pcc = [pearsonr(t, p)[0] if np.ptp(t) else np.nan for t, p in zip(truth.T, piece["mean"].T, strict=True)]
        np.testing.assert_allclose(mine["pcc"], pcc, atol=1e-5)
        assert row["pcc"] == pytest.approx(np.nanmean(pcc), abs=1e-5)
        covered = np.mean(np.abs(truth - piece["mean"]) <= 1.645 * piece["sd"])
        assert row["coverage90"] == pytest.approx(covered, abs=1e-3)
        np.testing.assert_allclose(mine["ceiling"], noise_ceiling(counts[test], totals[test], scale), atol=1e-6)


def test_the_files_are_there(finished):
    out = finished[0] / "out"
    assert (out / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    text = (out / "results.md").read_text()
    assert text in finished[1].stdout
    assert "| tiny | " in text and "| mean PCC |" in text and "demo minus the baseline" in text
    assert "it/s" not in finished[1].stderr and "piece" not in finished[1].stderr  # no bar where no terminal is


def test_methods_that_need_an_image_are_left_out_where_there_is_none(sections, tmp_path):
    result = run(sections, tmp_path, f"--methods={METHODS}")
    assert result.returncode == 0, result.stderr
    rows = pd.read_csv(tmp_path / "out" / "results.csv")
    assert list(rows.loc[rows["section"] == "tiny", "method"]) == METHODS.split(",")
    assert list(rows.loc[rows["section"] == "bare", "method"]) == ["gene_mean", "knn_mean", "kriging"]
    assert set(rows.loc[rows["section"] == "bare", "encoder"]) == {"none"}
    assert "value of kriging" in result.stdout and result.stderr.count("has no image") == 1


def test_nothing_is_computed_twice_and_what_is_missing_is(finished, simulated):
    folder = finished[0]
    pieces = sorted((folder / "out" / "predictions").glob("*.npz"))
    assert len(pieces) == 5
    missing = folder / "out" / "predictions" / "tiny.lattice.log1p_normalised.stain.kriging.npz"
    missing.unlink()
    before = {path: path.stat().st_mtime_ns for path in pieces if path != missing}
    results = (folder / "out" / "results.csv").read_text()
    result = run(simulated, folder, f"--methods={METHODS},demo")
    assert result.returncode == 0, result.stderr
    assert before == {path: path.stat().st_mtime_ns for path in before} and missing.exists()
    assert result.stdout == finished[1].stdout
    without_seconds = [
        pd.read_csv(f).drop(columns="seconds") for f in (folder / "out/results.csv", io.StringIO(results))
    ]
    pd.testing.assert_frame_equal(*without_seconds)


def test_other_inputs_in_the_same_folder_are_refused(finished, simulated):
    for flags, message in (
        (["--patch_px=64"], "data.windows"),
        (["--config.data.n_genes=20"], "data.n_genes"),
        (["--config.model.depth=2", "--methods=demo"], "config.model.depth was 1 and is now 2"),
    ):
        result = run(simulated, finished[0], f"--methods={METHODS}", *flags)
        assert result.returncode == 2 and message in result.stderr.splitlines()[-1]


@pytest.mark.slow
def test_splits_and_the_references(simulated, tmp_path):
    tiny = "mlp_width=16 model.depth=1 model.heads=2 model.head_width=4 model.feedforward_width=8 gat.heads=2"
    tiny = f"model.{tiny} model.width=16 gat.head_width=4 gat.out_width=8 gat.mlp_width=8 data.n_genes=23"
    flags = ["--config=experiments/configs/reference.py", "--config.gat.epochs=2", "--config.train.epochs=2"]
    flags += [f"--config.{field}" for field in tiny.split()]
    paths = [f"--sections={simulated}", f"--out={tmp_path / 'out'}", f"--cache_dir={tmp_path / 'cache'}"]
    flags += ["--methods=knn_mean,reference,reference_stopped,oracle", "--splits=block", "--patch_px=48"]
    command = [sys.executable, "-m", "experiments.benchmark", *paths, *flags, "--num_seeds=1"]
    result = subprocess.run(command, capture_output=True, text=True)  # as a user starts it
    assert result.returncode == 0, result.stderr
    rows = pd.read_csv(tmp_path / "out" / "results.csv", keep_default_na=False)
    assert set(rows["split"]) == {"block"}
    assert set(rows["method"]) == {"knn_mean", "reference", "reference_stopped", "oracle"}
    assert (rows.loc[rows["method"] == "oracle", "coverage90"] == "").all()
    result = run(simulated, tmp_path / "more", "--methods=knn_mean", "--splits=random,block")
    assert "split random, encoder stain" in result.stdout and "split block, encoder stain" in result.stdout


def test_the_split_is_that_of_the_configuration(simulated, tmp_path):
    adata = read_section(simulated)
    half = pd.Series(np.where(np.arange(adata.n_obs) % 2, "test", "train"), adata.obs_names, name="split")
    half.to_csv(tmp_path / "half.csv", index_label="spot")
    for split in ("random", str(tmp_path / "half.csv")):
        result = run(simulated, tmp_path, "--methods=gene_mean", f"--config.data.split={split}")
        assert result.returncode == 0, result.stderr
        rows = pd.read_csv(tmp_path / "out" / "results.csv")
        assert set(rows["split"]) == {split}
    assert rows["n_train"].iloc[0] == -(-adata.n_obs // 2)


def test_image_features_of_ones_own(simulated, tmp_path):
    adata = read_section(simulated)
    adata.obsm["mine"] = total_counts(adata)[:, None] ** [[1.0, 2.0]]  # what no image shows
    adata.write_h5ad(tmp_path / "mine.h5ad")
    np.save(tmp_path / "mine.npy", adata.obsm["mine"])
    pcc = {}
    for features in ("obsm:mine", str(tmp_path / "mine.npy")):
        flags = ["--methods=ridge", f"--features={features}", "--config.data.scale=log2_count"]
        result = run(tmp_path / "mine.h5ad", tmp_path, *flags)
        assert result.returncode == 0, result.stderr
        pcc[features] = pd.read_csv(tmp_path / "out" / "results.csv")["pcc"].iloc[0]
    assert len(set(pcc.values())) == 1 and pcc["obsm:mine"] > 0.1
    result = run(tmp_path / "mine.h5ad", tmp_path, "--features=obsm:mine", "--encoder=stain")
    assert result.returncode == 2 and "give --encoder or --features, not both" in result.stderr


def test_a_baseline_does_not_depend_on_how_a_model_has_laid_out_related_sections(simulated, tiny_config, tmp_path):
    adata, sister = read_section(simulated, image="none"), read_section(simulated, image="none", name="sister")
    given = tiny_config, "stain", str(tmp_path)
    sister = sister[1:].copy()
    sister.X.data += 1  # it is no copy
    made = [Prepared(adata, *given, [Prepared(sister, *given)]) for _ in range(2)]
    made[1].lay_out(ALONE)
    found = [predict_baseline(prepared, "knn_mean_related")[0] for prepared in made]
    np.testing.assert_array_equal(*found)
    assert made[1].layout == ALONE


@pytest.mark.slow
def test_related_sections_are_learned_from_in_their_group_alone(sections, tmp_path):
    """The mean of a gene is the section's own; what the image says is learned from all sections of the group."""
    more = write_section(*simulate_section(seed=2, n_rows=12, n_cols=11, n_genes=60, name="more"), tmp_path)
    methods = ["gene_mean", "ridge"]
    named = ",".join([*methods, *(f"{method}_related" for method in methods)])
    result = run(f"{sections},{more}", tmp_path, f"--methods={named}", "--related=tiny+more")
    assert result.returncode == 0, result.stderr
    mse = pd.read_csv(tmp_path / "out" / "results.csv").set_index(["section", "method"])["mse"]
    for section in ("tiny", "bare", "more"):
        assert mse[section, "gene_mean_related"] == pytest.approx(mse[section, "gene_mean"], abs=1e-5)
    for section in ("tiny", "more"):
        assert abs(mse[section, "ridge_related"] - mse[section, "ridge"]) > 1e-3
    assert ("bare", "ridge_related") not in mse
    assert not list((tmp_path / "out" / "predictions").glob("bare*related*"))
    flags = ["--methods=ridge_related", "--related=tiny+more", "--config.data.related_split=none"]
    result = run(f"{sections},{more}", tmp_path / "whole", *flags)
    assert result.returncode == 0, result.stderr
    whole = pd.read_csv(tmp_path / "whole" / "out" / "results.csv").set_index(["section", "method"])["mse"]
    assert abs(whole["tiny", "ridge_related"] - mse["tiny", "ridge_related"]) > 1e-3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--methods=krigging"], "known are all, gene_mean"),
        (["--methods="], "--methods"),
        (["--splits=none"], "lattice, random, block"),
        (["--encoder=stain,unii"], "uni2h"),
        (["--config.name=kriging"], "config.name"),
        (["--num_seeds=0"], "num_seeds"),
        (["--methods=knn_mean_related", "--related=tiny+nope"], "unknown 'nope' in --related: known are tiny"),
        (["--methods=knn_mean_related", "--related=tiny+tiny"], "tiny twice"),
        (["--methods=knn_mean", "--related=tiny+more"], "--methods=all,demo_related"),
        (["--methods=knn_mean_related"], "--methods=all,demo_related"),
        (["--methods=kriging_related", "--related=tiny+more"], "unknown 'kriging_related' in --methods"),
        (["--section=other.h5ad"], "give --section or --sections, not both"),
        (["--config.data.related_split=half"], "related_split"),
        (["--config.data.split=none"], "leaves no test spot to compare on"),
        (["--splits=obs:in_tissue"], "leaves no test spot to compare on"),
        (["--out="], "--out"),
        (["--sections="], "--sections"),
        (["--patch_px=1,2,3,4"], "--patch_px"),
    ],
)
def test_bad_flags_give_one_line_and_status_2(simulated, tmp_path, flags, message):
    result = run(simulated, tmp_path, *flags)
    assert result.returncode == 2
    assert message in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert not os.listdir(tmp_path)


def tables():
    """Two sections, one without an image, three methods and a model; five genes."""
    rng = np.random.default_rng(0)
    rows, genes = [], []
    pcc = {"A": {"knn_mean": 0.2, "kriging": 0.3, "ridge": 0.4, "mine": 0.5}, "B": {"knn_mean": 0.1, "kriging": 0.2}}
    pcc["B"]["mine"] = 0.15
    for section, methods in pcc.items():
        encoder = "stain" if section == "A" else "none"
        for method, value in methods.items():
            key = {"section": section, "split": "lattice", "scale": "log2_count", "encoder": encoder, "method": method}
            key["seed"] = "ensemble" if method == "mine" else ""
            sizes = {"n_train": 4, "n_test": 9, "n_genes": 5, "panel": "hvg", "depth_only": 0.7, "weight": np.nan}
            rows.append(key | sizes | {"pcc": value, "mse": 1 - value, "coverage90": 0.9})
            noise = rng.normal(0, 0.05, 5)
            table = {"gene": list("abcde"), "pcc": value + noise - noise.mean(), "ceiling": 0.8}
            genes.append(pd.DataFrame(key | table))
    return pd.DataFrame(rows), pd.concat(genes)


def test_means_take_kriging_where_there_is_no_image_and_bold_is_best():
    lines = accuracy_table(*tables()).splitlines()
    assert lines[0].endswith("| noise ceiling | depth only | knn_mean | kriging | ridge | mine |")
    assert lines[2] == "| A | 4 / 9 | 0.800 | 0.700 | 0.200 | 0.300 | 0.400 | **0.500** |"
    assert lines[3] == "| B | 4 / 9 | 0.800 | 0.700 | 0.100 | **0.200** | – | 0.150 |"
    assert lines[4] == "| mean PCC |  | 0.800 | 0.700 | 0.150 | 0.250 | 0.300 | **0.325** |"
    assert lines[5] == "| mean MSE |  |  |  | 0.850 | 0.750 | 0.700 | **0.675** |"


def test_the_model_is_compared_with_the_best_baseline_of_each_section():
    rows, genes = tables()
    lines = comparison_table(rows, genes, "mine").splitlines()
    a, b, mean = (line.split(" | ") for line in lines[2:5])
    assert a[1:3] == ["ridge", "+0.1000"] and b[1:3] == ["kriging", "-0.0500"]
    low, high = (float(x) for x in a[3].split(" to "))
    assert low < 0.1 < high and a[4] == "0.062"  # the smallest p of five pairs: 2 / 2**5
    assert mean[2] == "+0.0250"
    assert "mine minus" not in markdown(rows[rows["method"] != "mine"], genes, "mine")


def test_methods_of_other_genes_are_not_ranked():
    rows, genes = tables()
    rows.loc[rows["method"] == "mine", "n_genes"] += 1
    text = accuracy_table(rows, genes)
    assert "**" not in text and "cannot be compared" in text and "| A | 4 / 9 | – | – | 0.200 |" in text
    rows, genes = tables()
    rows.loc[rows["method"] == "mine", "n_train"] += 1  # of other spots
    text = accuracy_table(rows, genes)
    assert "**" not in text and "| A | – / – | – | – | 0.200 |" in text


@pytest.mark.parametrize("value", [0.3, np.nan])
def test_one_gene_or_none_that_varies(value):
    rows, genes = tables()
    genes = genes[genes["gene"] == genes["gene"].iloc[0]].assign(pcc=value)
    text = markdown(rows, genes, "mine")
    assert "nan" not in text and ("mine minus" in text) == np.isfinite(value)


def test_splits_and_scales_need_not_be_crossed():
    parts = zip(tables(), (table.assign(split="random", scale="log1p_normalised") for table in tables()), strict=True)
    text = markdown(*(pd.concat(part) for part in parts), "mine")
    assert [line for line in text.splitlines() if line.startswith("##")] == [
        "## log2(count + 1), panel hvg (5 genes), split lattice, encoder stain",
        "## log1p(normalised count), panel hvg (5 genes), split random, encoder stain",
    ]


def test_noise_ceiling_of_simulated_poisson_counts():
    """The correlation of counts with the log of their expectation, where that is known."""
    rng = np.random.default_rng(0)
    rate = np.exp(rng.normal(0, 0.6, (4000, 5)) + np.log([3, 10, 30, 100, 300]))
    counts = rng.poisson(rate)
    known = [pearsonr(np.log2(c + 1.0), np.log2(r + 1)).statistic for c, r in zip(counts.T, rate.T, strict=True)]
    totals = counts.sum(axis=1)
    np.testing.assert_allclose(noise_ceiling(counts, totals, LOG2), known, atol=0.02)
    noise = rng.poisson(5.0, (4000, 3))
    assert (noise_ceiling(noise, noise.sum(axis=1), LOG2) < 0.25).all()
    assert np.isnan(noise_ceiling(np.zeros((20, 1)), np.zeros(20), LOG2)).all()
    assert noise_ceiling(np.eye(20)[:, :1], np.ones(20), LOG2) == 0  # in one of two halves there is nothing
    again = [noise_ceiling(counts, totals, LOG2, seed=3) for _ in range(2)]
    np.testing.assert_array_equal(*again)
    rounded = noise_ceiling(counts, totals - 1, LOG2)  # large counts come back from their logs not to the unit
    np.testing.assert_array_equal(rounded, noise_ceiling(counts, totals, LOG2))


def test_noise_ceiling_of_normalised_counts():
    """Composition with noise of counts, at depths that say nothing: the correlation with the true composition."""
    rng = np.random.default_rng(0)
    share = np.exp(rng.normal(0, 0.6, (4000, 5)) + np.log([10, 30, 100, 300, 1000]))
    depth = np.exp(rng.normal(0, 0.3, 4000))
    counts, others = rng.poisson(share * depth[:, None]), rng.poisson(9000 * depth)
    totals = counts.sum(axis=1) + others
    scale = Scale("log1p_normalised", float(np.median(totals)))
    pairs = zip(scale.expression(counts, totals).T, np.log1p(share).T, strict=True)
    known = [pearsonr(*pair).statistic for pair in pairs]
    np.testing.assert_allclose(noise_ceiling(counts, totals, scale), known, atol=0.03)
    # depth is in log2(count + 1), and not here
    flat = rng.poisson(np.array([5.0, 50.0]) * depth[:, None])
    assert (noise_ceiling(flat, totals, scale) < noise_ceiling(flat, totals, LOG2) - 0.2)[1]


def test_bootstrap_interval_is_that_of_the_normal_for_many_values():
    values = np.random.default_rng(1).normal(3, 2, 5000)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)
