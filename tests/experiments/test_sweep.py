import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from experiments.sweep import execute
from experiments.sweep_job import Job
from spabit_jax.evaluation.metrics import noise_ceiling
from spabit_jax.evaluation.tables import rows_of_run
from spabit_jax.scale import TOTAL, Scale
from tests import commands

# A run that takes a while, notes in runs.log that it began and ended, and fails where its folder is named so.
RUN = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
def note(what):
    with open(folder.parent / "runs.log", "a") as file:
        file.write(f"{what} {folder.name}\\n")
note("began")
time.sleep(0.5)
if "fails" in folder.name:
    sys.exit(3)
(folder / "metrics.json").write_text("{}")
note("ended")
"""
SWEEP = """
import sys, pathlib
sys.path.insert(0, "tests/experiments")
from test_sweep import jobs, local
from experiments.sweep import execute
from feature_extraction.ending import end_by_signal
end_by_signal()
out = pathlib.Path(sys.argv[1])
execute([job for job in jobs(out) if not job.is_done], local(out), 2)
"""


def jobs(out, names=("A-1", "A-2", "B-1", "B-2")):
    return [Job(name, out / name, (sys.executable, "-c", RUN, str(out / name))) for name in names]


def local(out):
    import submitit

    return submitit.AutoExecutor(out / "jobs", cluster="local")


def noted(out):
    path = out / "runs.log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [[line.split()[1] for line in lines if line.startswith(what)] for what in ("began", "ended")]


def test_a_sweep_that_is_killed_and_started_again_is_complete_and_runs_nothing_twice(tmp_path):
    command = [sys.executable, "-c", SWEEP, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not noted(tmp_path)[0]:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)  # its workers live on, and are still at it when the next sweep starts
    process.wait()
    assert len(noted(tmp_path)[1]) < 4
    for _ in range(2):
        assert subprocess.run(command, stderr=subprocess.DEVNULL, timeout=120).returncode == 0
        began, ended = noted(tmp_path)
        assert sorted(began) == sorted(ended) == ["A-1", "A-2", "B-1", "B-2"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_sweep_that_is_interrupted_takes_its_runs_with_it(tmp_path, number):
    process = subprocess.Popen([sys.executable, "-c", SWEEP, str(tmp_path)], stderr=subprocess.PIPE, text=True)
    while len(noted(tmp_path)[0]) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    said = process.communicate(timeout=5)[1]
    assert process.returncode == 128 + number and "Traceback" not in said
    assert said.splitlines()[-1] == "interrupted: the same command goes on from here"
    assert not list(tmp_path.rglob(".*lock*"))
    ended = noted(tmp_path)[1]
    time.sleep(0.6)
    assert noted(tmp_path)[1] == ended


def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path):
    failed = execute(jobs(tmp_path, ("fails", "works")), local(tmp_path), 1)
    assert [job.name for job in failed] == ["fails"]
    assert noted(tmp_path)[1] == ["works"]


def test_a_job_that_slurm_ends_early_is_submitted_again_as_it_is(tmp_path):
    (job,) = jobs(tmp_path, ("A",))
    again = job.checkpoint()
    assert again.function == job and not again.args


def test_results_of_a_run_folder_are_rows_of_the_benchmark(predictions, tmp_path):
    counts = np.random.default_rng(0).poisson(5, predictions.shape)
    scale = Scale("log1p_normalised", 150.0)
    predictions.obs[TOTAL] = totals = counts.sum(axis=1) + 30
    predictions.layers["truth"] = scale.expression(counts, totals)
    predictions.uns["spabit"] = {"scale": scale.name, "scale_target": scale.target}
    predictions.write_h5ad(tmp_path / "predictions.h5ad")
    metrics = {
        name: {"mean": 0.5, "sd": 0.1, "per_seed": [0.4, 0.6]}
        for name in ("pcc", "pcc_defined", "n_constant_genes", "mse", "mae")
    }
    protocol = {"split": "lattice", "panel": "reference", "n_genes": 24, "n_train": 80, "n_test": 220}
    protocol["scale"] = scale.name
    metrics |= {"section": "S", "method": "mine", "encoder": "stain", "protocol": protocol, "seeds": [0, 1]}
    metrics |= {"ensemble": {"pcc": 0.7, "coverage90": 0.9}, "seconds": {"train": 2.0, "predict": 1.0}}
    metrics |= {"depth_only": 0.3, "weights": {"spabit": 0.2, "kriging": 0.8}}
    metrics["members"] = {name: {"pcc": 0.1, "mse": 1, "mae": 1} for name in metrics["weights"]}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    genes = pd.DataFrame(
        {"section": "S", "method": "mine", "seed": "ensemble", "gene": predictions.var_names, "pcc": 0.5}
    )
    pd.concat([genes, genes.assign(method="ridge", seed="")]).to_csv(tmp_path / "genes.csv", index=False)
    rows, table = rows_of_run(tmp_path)
    assert [(row["seed"], row["pcc"]) for row in rows[:3]] == [(0, 0.4), (1, 0.6), ("ensemble", 0.7)]
    assert [(row["method"], row["weight"]) for row in rows[3:]] == [("mine:spabit", 0.2), ("mine:kriging", 0.8)]
    assert rows[2]["seconds"] == 3.0 and rows[2]["coverage90"] == 0.9 and rows[0]["n_test"] == 220
    assert set(table["method"]) == {"mine"}
    test = (predictions.obs["split"] == "test").to_numpy()
    np.testing.assert_allclose(table["ceiling"], noise_ceiling(counts[test], totals[test], scale), atol=1e-6)
    for name in ("pcc", "pcc_defined", "n_constant_genes", "mse", "mae"):  # as of the default, which has no networks
        metrics[name]["per_seed"] = [0.4]
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    assert [(row["seed"], row["pcc"]) for row in rows_of_run(tmp_path)[0][:2]] == [(0, 0.4), ("ensemble", 0.7)]


CONFIG = """
from experiments.configs import demo

def get_config():
    config = demo.get_config()
    config.name = "NAME"
    config.model.width, config.model.cross_heads, config.model.mlp_width, config.gat.head_width = 16, 2, 16, 4
    config.train.epochs, config.train.chunk_epochs, config.data.n_genes, config.model.n_context = 4, 2, 23, 4
    config.model.members = "spabit"
    return config
"""

WITHOUT_TEST_SPOTS = """
make = get_config

def get_config():
    config = make()
    config.data.split = "none"
    return config
"""


def sweep(folder, section, configs, *flags):
    paths = [f"--sections={section}", f"--out={folder / 'out'}", f"--cache_dir={folder / 'cache'}", *flags]
    return commands.run("experiments.sweep", "--patch_px=48", f"--configs={configs}", *paths)


@pytest.mark.slow
def test_the_command_in_this_process(simulated, tmp_path):
    config = tmp_path / "config.py"
    config.write_text(CONFIG.replace("NAME", "small"))
    result = sweep(tmp_path, simulated, config, "--executor=debug", "--num_seeds=1")
    assert result.returncode == 0, result.stderr
    out = tmp_path / "out"
    rows = pd.read_csv(out / "results.csv")
    assert list(rows["seed"]) == ["0", "ensemble"] and set(rows["method"]) == {"small"}
    pcc = json.loads((out / "tiny" / "small" / "metrics.json").read_text())["ensemble"]["pcc"]
    assert rows["pcc"].iloc[-1] == pytest.approx(pcc) and (out / "tiny" / "small" / "report.html").exists()
    result = sweep(tmp_path, simulated, config, "--num_seeds=2")
    assert result.returncode == 2 and "num_seeds was 1 and is now 2" in result.stderr


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        ("", [], "get_config"),
        ("def get_config(): return 3", [], "get_config"),
        (CONFIG + WITHOUT_TEST_SPOTS, [], "no test spot"),
        (CONFIG, ["--executor=cloud"], "debug|local|slurm"),
        (CONFIG, ["--out="], "--out"),
    ],
)
def test_bad_input_gives_one_line_and_status_2(simulated, tmp_path, content, flags, message):
    config = tmp_path / "config.py"
    config.write_text(content)
    result = sweep(tmp_path, simulated, config, *flags)
    assert result.returncode == 2
    assert message in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert sorted(os.listdir(tmp_path)) == ["config.py"]
