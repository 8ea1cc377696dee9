import numpy as np
import pandas as pd
import pytest
from scipy import stats

from experiments.compare_reference import CONFIDENCE, compare, read_reference_csv, reference_format, welch
from spabit_jax.errors import InputError
from tests import commands

SMALL = [
    *("--config.model.width=16", "--config.model.mlp_width=16", "--config.model.depth=1", "--config.model.heads=2"),
    *("--config.model.head_width=4", "--config.model.feedforward_width=8", "--config.gat.heads=2"),
    *("--config.gat.head_width=4", "--config.gat.out_width=8", "--config.gat.mlp_width=8", "--config.data.n_genes=23"),
    *("--config.gat.epochs=3", "--config.train.epochs=3", "--patch_px=48"),
]


def test_welch_equals_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 1, 5), rng.normal(0, 3, 7)
    error, half_width = welch(a, b)
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval(CONFIDENCE)
    assert half_width == pytest.approx((interval.high - interval.low) / 2)
    assert error == pytest.approx(np.sqrt(a.var(ddof=1) / 5 + b.var(ddof=1) / 7))
    assert welch(np.ones(3), np.ones(3)) == (0, 0)


def scores(mean, n=5):
    noise = np.linspace(-0.01, 0.01, n)
    table = pd.DataFrame(dict.fromkeys(("pcc", "pcc_defined", "mse", "mae", "n_constant_genes"), mean + noise))
    return table.assign(seconds=60 * mean)


def test_the_verdict_says_whether_the_interval_holds_zero():
    same = compare("S", {"oracle": scores(0.4), "port": scores(0.401)}, {("S", "mse"): (0.5, 0.1)})
    *same, seconds = same
    assert {row["verdict"] for row in same} == {"equal"} and seconds["metric"] == "seconds"
    published = {row["metric"]: row["reference (its file)"] for row in same}
    assert published.pop("mse") == "0.5000 ± 0.1000" and set(published.values()) == {""}
    *other, seconds = compare("S", {"oracle": scores(0.4), "port": scores(0.2)}, {})
    assert {row["verdict"] for row in other} == {"differs"} and seconds["verdict"] == "port 2.0 times as fast"
    *one, _ = compare("S", {"oracle": scores(0.4, 1), "port": scores(0.5, 1)}, {})
    assert {row["verdict"] for row in one} == {"one seed: no interval"}


def test_both_kinds_of_reference_tables_are_read(tmp_path):
    own = tmp_path / "GAT_DLPFC_results.csv"
    table = reference_format({"151673": scores(0.4), "151676": scores(0.3)})
    assert list(table.index) == ["PCC", "MSE", "MAE"] and table.loc["PCC", "151673"] == "0.4000 ± 0.0071"
    table.to_csv(own)
    assert read_reference_csv(own)["151676", "mae"] == (0.3, 0.0071)
    typed = tmp_path / "paper.csv"
    typed.write_text("dataset,metric,mean,sd,source\n151673,PCC,0.41,0.02,Table 2\n")
    assert read_reference_csv(typed) == {("151673", "pcc_defined"): (0.41, 0.02)}


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "dataset,metric,mean,sd\nS,R2,1,2\n", ",S\nPCC,high\n"])
def test_other_tables_are_refused(tmp_path, text):
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(InputError, match="no table of reference results"):
        read_reference_csv(tmp_path / "bad.csv")


def run(module, simulated, folder, *flags):
    paths = [f"--sections={simulated}", f"--out={folder / 'out'}", f"--cache_dir={folder / 'cache'}"]
    return commands.run(f"experiments.{module}", *paths, *SMALL, *flags)


def test_the_command_writes_its_tables_and_refuses_what_the_oracle_does_not_do(simulated, tmp_path):
    result = run("compare_reference", simulated, tmp_path, "--num_seeds=2")
    assert result.returncode == 0, result.stderr
    table = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert set(table["section"]) == {"tiny"} and len(table) == 6 and table["standard_error"].notna().all()
    assert list(pd.read_csv(tmp_path / "out" / "port_results.csv", index_col=0).columns) == ["tiny"]
    other = run("compare_reference", simulated, tmp_path, "--config.train.batch_size=64")
    assert other.returncode == 2 and "config.train.batch_size" in other.stderr
    refused = run("compare_reference", simulated, tmp_path, "--config.faults.relu_output=false")
    assert refused.returncode == 2 and "faults.relu_output" in refused.stderr


@pytest.mark.slow
def test_the_ablation_goes_on_where_it_was(simulated, tmp_path):
    result = run("ablate", simulated, tmp_path, "--variants=reference,without GAT", "--num_seeds=1")
    assert result.returncode == 0, result.stderr
    first = pd.read_csv(tmp_path / "out" / "ablation.csv")
    more = ("--variants=reference,all faults off,without Transformer", "--num_seeds=2", "--config.train.patience=2")
    assert run("ablate", simulated, tmp_path, *more).returncode == 2  # another configuration
    result = run("ablate", simulated, tmp_path, *more[:2])
    assert result.returncode == 0, result.stderr
    rows = pd.read_csv(tmp_path / "out" / "ablation.csv")
    assert len(rows) == 2 + 1 + 2 + 2 and not rows.duplicated(["variant", "seed"]).any()
    pd.testing.assert_frame_equal(rows.head(2), first)
    assert "| reference | 2 |" in result.stdout and "| all faults off | 2 |" in result.stdout
