"""Files are known to be whole, have one writer, and are refused where a newer version wrote them."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from spabit_jax import files
from spabit_jax.errors import InputError
from spabit_jax.evaluation.gene_tables import read_genes, write_genes


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def write(path, text="the content"):
    with files.replacing(path, sealed=True) as temporary:
        temporary.write_text(text)


@pytest.mark.parametrize("damage", [flip, lambda path: path.write_bytes(path.read_bytes()[:-3])], ids=["flip", "cut"])
def test_a_damaged_file_is_found(tmp_path, damage):
    path = tmp_path / "a.bin"
    write(path)
    write(tmp_path / "b.bin", "another")
    assert files.is_whole(path)
    damage(path)
    assert not files.is_whole(path) and files.is_whole(tmp_path / "b.bin")
    with pytest.raises(InputError, match=r"a\.bin is damaged.*: delete it"):
        files.check_whole(path, "delete it")
    write(path, "made again")
    assert files.is_whole(path)


def test_a_folder_is_sealed_and_what_is_gone_is_forgotten(tmp_path):
    for step in ("1", "2"):
        (tmp_path / step).mkdir()
        (tmp_path / step / "data").write_text("numbers")
        files.seal(tmp_path / step)
        (tmp_path / "1" / "data").unlink(missing_ok=True)
        (tmp_path / "1").rmdir() if (tmp_path / "1").exists() else None
    assert set(json.loads((tmp_path / files.DIGESTS).read_text())["files"]) == {"2"}
    flip(tmp_path / "2" / "data")
    assert not files.is_whole(tmp_path / "2")


def test_older_folders_have_no_hashes_and_newer_ones_are_refused(tmp_path):
    (tmp_path / "old").write_text("x")
    assert files.is_whole(tmp_path / "old")
    files.write_json(tmp_path / files.DIGESTS, {"format": files.FORMAT + 1, "files": {}})
    with pytest.raises(InputError, match="newer format"):
        files.is_whole(tmp_path / "old")


def test_one_writer_at_a_time(tmp_path, caplog):
    lock, order = tmp_path / "run" / ".lock", []

    def second():
        with files.locked(lock):
            order.append("second")

    with files.locked(lock):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"]
    assert f"in use by process {os.getpid()}" in caplog.text
    assert not lock.exists()


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file/a", tmp_path / "file/b/a"):
        for opened in (files.locked, files.replacing):
            with pytest.raises(InputError, match="file is a file: give a folder"):
                opened(path).__enter__()


def test_a_lock_of_a_process_that_is_gone_is_taken_over(tmp_path):
    (tmp_path / ".lock").write_text("process 1 on elsewhere")
    with files.locked(tmp_path / ".lock"):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()


COMMAND = """
import sys, time
from feature_extraction import command
from spabit_jax.files import replacing
def main():
    with replacing(sys.argv0) as temporary:
        temporary.write_text("half")
        print("ready", flush=True)
        while True:
            try:
                time.sleep(60)  # and swallows what it is told, as libraries do
            except BaseException:
                continue
sys.argv0 = sys.argv.pop()
command.run(main)
"""


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_with_one_line(tmp_path, number, status):
    command = [sys.executable, "-c", COMMAND, str(tmp_path / "out.txt")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
    assert process.returncode == status
    assert said == "interrupted: the same command goes on from here\n"
    assert not list(tmp_path.iterdir())


def test_what_the_system_refuses_is_one_line(tmp_path):
    from feature_extraction.ending import refused_by_the_system

    with pytest.raises(OSError) as full, open("/dev/full", "w") as file:
        file.write("x")
        file.flush()
    assert "No space left" in refused_by_the_system(full.value)
    with pytest.raises(MemoryError) as large:
        np.empty(2**62, np.uint8)
    assert "not enough memory" in refused_by_the_system(large.value)
    assert refused_by_the_system(KeyError("a bug")) is None


def test_indices_that_point_outside_a_matrix_are_found_before_use(tmp_path, simulated):
    import shutil

    import h5py

    from spabit_jax.readers import read_section

    path = shutil.copy(simulated, tmp_path / "damaged.h5ad")
    with h5py.File(path, "r+") as file:
        file["X/indices"][3] = 10**8
    with pytest.raises(InputError, match="indices must be"):
        read_section(path)


@pytest.mark.parametrize("name", ["..", "a/b", "", "x" * 240, "a\nb"])
def test_a_section_is_named_by_one_component_of_a_path(simulated, name):
    from spabit_jax.readers import read_section

    with pytest.raises(InputError, match="cannot be the name of a section"):
        read_section(simulated, name=name)


def test_names_in_tables_are_not_computed_by_spreadsheets(tmp_path):
    import pandas as pd

    names = ["=1+1", "+A", "-B", "@C", "'=D", "D", "'E", "HLA-A"]
    table = pd.DataFrame({"section": "s", "gene": names, "pcc": -0.5})
    write_genes(tmp_path / "genes.csv", table)
    written = pd.read_csv(tmp_path / "genes.csv")
    assert not written["gene"].str.match(r"[=+\-@]").any() and (written["pcc"] == -0.5).all()
    assert read_genes(tmp_path / "genes.csv")["gene"].tolist() == names
