"""The project's commands, forked from a process that has imported what takes seconds: a command starts at once."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

SECONDS = 300  # after which a command has failed
FORKED = multiprocessing.get_context("forkserver")
# not our own modules: what they do when they are imported belongs to the command
FORKED.set_forkserver_preload(
    ["anndata", "flax.nnx", "jraph", "matplotlib.figure", "optax", "orbax.checkpoint", "scanpy",
     "sklearn.linear_model", "sklearn.neighbors"]
)  # fmt: skip


def run(module: str, *flags, folder: str | Path = ".") -> subprocess.CompletedProcess:
    """``python -m module flags`` in a folder; what JAX reads of the environment is as it was at the first call.

    Imports, and how a process ends, are not tested so: for that start one.
    """
    with TemporaryDirectory() as kept:
        said = [Path(kept) / name for name in ("stdout", "stderr")]
        given = module, [*map(str, flags)], said, Path(folder).resolve(), dict(os.environ)
        process = FORKED.Process(target=_become, args=given)
        process.start()
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(module, SECONDS)
        status = process.exitcode
        process.close()
        return subprocess.CompletedProcess([module, *flags], status, *(file.read_text() for file in said))


def _become(module: str, flags: list[str], said: list[Path], folder: Path, environment: dict[str, str]) -> None:
    for number, file in enumerate(said, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(folder)
    os.environ |= environment
    sys.path.insert(0, str(folder))
    sys.argv = [module, *flags]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
