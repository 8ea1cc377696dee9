"""A run of several processes, on loopback."""

import json
import socket
import subprocess

import numpy as np
import pandas as pd
import pytest
from small_run import command, run

from spabit_jax.errors import InputError
from spabit_jax.run import distributed as processes


@pytest.mark.slow
def test_two_processes_make_the_run_folder_that_one_makes(simulated, tmp_path):
    less = ["--config.model.members=spabit", "--config.train.epochs=8"]
    result = run(simulated, tmp_path / "alone", *less)
    assert result.returncode == 0, result.stderr
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    commands = [command(simulated, tmp_path, *less, f"--distributed={address},2,{i}") for i in range(2)]
    both = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for c in commands]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "tiny: " in said[0][0] and "tiny" not in said[1][0] + said[1][1]

    one, two = tmp_path / "alone" / "run", tmp_path / "run"
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())
    assert [path.name for path in sorted(two.glob("checkpoints/*"))] == ["seed_0", "seed_1"]
    seeds = [np.load(run / "predictions_per_seed.npy") for run in (one, two)]
    np.testing.assert_allclose(*seeds, rtol=1e-4, atol=1e-4)
    pcc = [json.loads((run / "metrics.json").read_text())["pcc"]["per_seed"] for run in (one, two)]
    np.testing.assert_allclose(*pcc, atol=1e-5)
    losses = [pd.read_csv(run / "history.csv") for run in (one, two)]
    pd.testing.assert_frame_equal(*losses, rtol=1e-4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("localhost:9876", "HOST:PORT,N,I"),
        ("localhost,2,0", "HOST:PORT,N,I"),
        ("localhost:9876,2,2", "there is no process 2 of 2"),
        ("localhost:9876,two,0", "'two'"),
        ("no host of this name:9876,2,0", "no host of this name"),
    ],
)
def test_a_bad_address_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        processes._parse(given)


def test_where_there_is_no_cluster_auto_is_refused(simulated, tmp_path):
    result = run(simulated, tmp_path, "--distributed=auto")
    assert result.returncode == 2
    assert "HOST:PORT,N,I" in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
