"""Faults at random: kills, signals, two commands at once, damaged files and malformed sections; prints a table.

    python -m tests.soak 50      # at most so many minutes; make soak

It ends when each of ``PLAN`` was tried as often as is asked, two trials at a time. *Lost*: a file that was whole before
the fault, and was made again. *Wrong*: other numbers than of a run without faults, or none, or something left behind.
*Traceback*: anything but a result, or one line; of a signal also if it took over two seconds.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path

import anndata
import numpy as np

from spabit_jax.datasets.simulate import simulate_section, write_section
from spabit_jax.files import is_whole
from tests.readers.fuzz import read_damaged
from tests.test_bad_input import arrays, one_line, spoil

KINDS = ("extraction", "training", "kriging", "predict", "benchmark", "sweep")
# SpaBiT, trained: smaller, and with a checkpoint after every four epochs
OFTEN = "import runpy; from spabit_jax.training import fit; fit.SECONDS_BETWEEN_CHECKPOINTS = 0"
OFTEN = ["-c", f"{OFTEN}; runpy.run_module('experiments.run', run_name='__main__', alter_sys=True)"]
SMALL = ("width=16", "cross_heads=2", "mlp_width=16", "depth=1", "n_context=4", "members=spabit")
TRAINED = ["--config=trained", *(f"--config.model.{value}" for value in SMALL), "--config.gat.head_width=4"]
TRAINED += ["--config.train.epochs=24", "--config.train.chunk_epochs=4"]
SWEPT = """
from spabit_jax.config import Config

def get_config():
    config = Config(name="swept")
    config.model.members, config.data.n_genes = "kriging", 15
    return config
"""


def command(kind: str, folder: Path, out: Path) -> list[str]:
    """The command of a kind; all that it writes goes into ``out``, where ``predict`` finds its run."""
    section, few = f"--section={folder / 'tiny.h5ad'}", ["--config.data.n_genes=15", "--num_seeds=1"]
    given = [section, f"--cache_dir={out / 'cache'}", "--patch_px=48"]
    into, stages, kriging = f"--out={out}", "--stages=features,train,predict", "--config.model.members=kriging"
    flags = {
        "extraction": ["-m", "feature_extraction.extract", *given],
        "training": [*OFTEN, *given, into, stages, *few, *TRAINED],
        "kriging": ["-m", "experiments.run", *given, into, stages, *few, kriging],
        "predict": ["-m", "experiments.predict", f"--run={out}", "--locations=grid:2x", f"--out={out}/grid/grid.h5ad"],
        "benchmark": ["-m", "experiments.benchmark", *given, into, *few, kriging, "--methods=gene_mean,ridge,default"],
        "sweep": ["-m", "experiments.sweep", *given, into, f"--configs={folder / 'swept.py'}", "--num_seeds=1"],
    }
    return [sys.executable, *flags[kind]]


def fresh(kind: str, folder: Path, out: Path) -> None:
    """What is there before a command of that kind: nothing, or the run to predict with, its features beside it."""
    shutil.rmtree(out, ignore_errors=True)
    if kind == "predict":
        shutil.copytree(folder / "run", out)


def numbers(out: Path) -> dict[str, np.ndarray]:
    """All results in a folder."""
    files = {str(path.relative_to(out)): path for path in sorted(out.rglob("*")) if _is_result(path)}
    return {name: np.asarray(READ[path.suffix](path)) for name, path in files.items()}


READ = {
    ".npy": np.load,
    ".npz": lambda path: np.load(path)["mean"],
    ".h5ad": lambda path: np.stack([(found := anndata.read_h5ad(path)).X, found.layers["sd"]]),
}


def _is_result(path: Path) -> bool:
    where = path.parent.name
    done = path.is_file() and path.suffix in READ and "partial" not in path.name and path.name[0] != "."
    return done and (path.suffix == ".h5ad" or where in ("cache", "predictions"))


def same(out: Path, right: dict) -> bool:
    """Says where it is not."""
    found = numbers(out)
    other = found.keys() ^ right.keys()
    other |= {name for name in found.keys() & right.keys() if not np.array_equal(found[name], right[name])}
    for name in other:
        by = np.abs(found[name] - right[name]).max() if name in found and name in right else "being there or not"
        print(f"another {name}, by {by}", file=sys.stderr)
    return not other


def saved(out: Path) -> dict[Path, int]:
    """When each result that is whole was written."""
    return {path: path.stat().st_mtime_ns for path in out.rglob("*") if _is_result(path) and is_whole(path)}


def is_fault(result, statuses=(0,)) -> bool:
    """Says so, too."""
    fault = "Traceback" in result.stderr or result.returncode not in statuses
    fault |= result.returncode == 2 and result.stderr.count("error: ") != 1
    if fault:
        print(f"{' '.join(result.args)}\nstatus {result.returncode}\n{result.stderr[-3000:]}", file=sys.stderr)
    return fault


def again(given: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(given, capture_output=True, text=True, timeout=600)


def interrupted(kind: str, number: int, folder: Path, out: Path, took: float) -> tuple[subprocess.Popen, str, float]:
    """A command, sent a signal at a random moment; what it said, and the seconds that it took to end."""
    while True:
        fresh(kind, folder, out)
        process = subprocess.Popen(command(kind, folder, out), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                   text=True)  # fmt: skip
        while number != signal.SIGKILL and not _handles_signals(process.pid):
            time.sleep(0.01)  # until then, a few tenths of a second, it is Python that ends
        try:
            process.communicate(timeout=random.uniform(0.05, 0.95) * took)
        except subprocess.TimeoutExpired:
            began = time.monotonic()
            process.send_signal(number)
            said = process.communicate()[1]
            if process.returncode not in (0, -number) or number == signal.SIGKILL:  # else it had done all
                return process, said, time.monotonic() - began


def _handles_signals(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("SigCgt:")[2].split()[0], 16) >> signal.SIGTERM - 1 & 1 == 1


def kill(kind: str, folder: Path, out: Path, took: dict, right: dict) -> dict:
    interrupted(kind, signal.SIGKILL, folder, out, took[kind])
    before = saved(out)
    result = again(command(kind, folder, out))
    lost = before.items() - saved(out).items() or "training begins again" in result.stderr
    return {"lost": bool(lost), "wrong": not same(out, right[kind]), "traceback": is_fault(result)}


def end(kind: str, folder: Path, out: Path, took: dict, right: dict) -> dict:
    number = random.choice([signal.SIGINT, signal.SIGTERM])
    process, said, seconds = interrupted(kind, number, folder, out, took[kind])
    left = [path for path in out.rglob(".*") if "lock" in path.name or "tmp" in path.name]
    ended = process.returncode == 128 + number and said.count("interrupted") == 1 and "Traceback" not in said
    if left or not ended or seconds > 2:
        print(f"{kind}, {number.name}: {process.returncode}, {seconds:.1f} s, {left}\n{said}", file=sys.stderr)
    before = saved(out)
    result = again(command(kind, folder, out))
    lost, wrong = before.items() - saved(out).items(), left or not same(out, right[kind])
    return {"lost": bool(lost), "wrong": bool(wrong), "traceback": not ended or seconds > 2 or is_fault(result)}


def pair(kind: str, folder: Path, out: Path, took: dict, right: dict) -> dict:
    fresh(kind, folder, out)
    given = command(kind, folder, out)
    both = [subprocess.Popen(given, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    ended = [subprocess.CompletedProcess(given, p.returncode, stderr=s) for p, s in zip(both, said, strict=True)]
    return {"wrong": not same(out, right[kind]), "traceback": any([is_fault(result) for result in ended])}


def damage(kind: str, folder: Path, out: Path, took: dict, right: dict) -> dict:
    """A bit of a file of run folder or cache is flipped, or it is cut; a command says so, or makes it again."""
    fresh("predict", folder, out)
    path = random.choice([path for path in sorted(out.rglob("*")) if path.is_file() and path.stat().st_size])
    content = bytearray(path.read_bytes())
    at = random.randrange(len(content))
    content[at] ^= 1 << random.randrange(8)
    path.write_bytes(content if random.random() < 0.5 else content[:at])
    result = again(command(kind, folder, out))
    fault = is_fault(result, (0, 2))
    wrong = result.returncode == 0 and not same(out, right[kind])
    if fault or wrong:
        print(f"damaged: {path}, {at}", file=sys.stderr)
    return {"wrong": wrong, "traceback": fault}


def malformed(kind: str, folder: Path, out: Path, took: dict, right: dict) -> dict:
    adata = anndata.read_h5ad(folder / "tiny.h5ad")
    del adata.uns["spabit"]
    seed = random.randrange(2**31)
    try:
        one_line(arrays, spoil(adata, np.random.default_rng(seed)))
    except Exception as error:  # what is counted
        print(f"malformed: seed {seed}: {type(error).__name__}: {error}", file=sys.stderr)
        return {"traceback": True}
    return {}


def damaged_section(kind: str, folder: Path, out: Path, took: dict, right: dict) -> dict:
    seed = random.randrange(2**31)
    found = read_damaged(range(seed, seed + PER_BATCH), out)
    for fault in found:
        print(fault, file=sys.stderr)
    return {"tried": PER_BATCH, "traceback": len(found)}


PER_BATCH = 50
# what, how it is tried, of which kinds in turn, how often
PLAN = [(f"SIGKILL in {kind}", kill, [kind], 30) for kind in KINDS]
PLAN += [
    ("SIGINT or SIGTERM", end, KINDS, 20),
    ("two commands at once into one folder, or one cache entry", pair, KINDS, 10),
    ("a bit flipped in, or the end cut off, a file of run folder or cache", damage, ("training", "predict"), 60),
    ("malformed section", malformed, [""], 200),
    ("bytes changed in a file of a section", damaged_section, [""], 30),
]


def trial(kind: str, how, seed: int, folder: Path, *about) -> dict:
    random.seed(seed)
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as out:  # a sweep's workers outlive it
        return {"tried": 1} | how(kind, folder, Path(out) / "out", *about)


def prepare(folder: Path) -> tuple[dict, dict]:
    """The section, and a run; of each kind the seconds that it takes, and its numbers."""
    adata, image = simulate_section(seed=1, n_rows=12, n_cols=10, n_genes=40, name="tiny")
    write_section(adata, image, folder)
    (folder / "swept.py").write_text(SWEPT)
    took, right = {}, {}
    for kind in KINDS:
        for _ in range(2):  # the first compiles
            fresh(kind, folder, folder / "out")
            began = time.monotonic()
            assert not is_fault(again(command(kind, folder, folder / "out")))
            took[kind] = time.monotonic() - began
        right[kind] = numbers(folder / "out")
        if kind == "training":
            shutil.move(folder / "out", folder / "run")  # its cache with it
    shutil.rmtree(folder / "out")  # else its cache were that of the run: where it is gone, it is the one in the run
    return took, right


def main(minutes: float) -> None:
    deadline = time.monotonic() + 60 * minutes
    table, shown = defaultdict(Counter), 0.0
    with tempfile.TemporaryDirectory() as name:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{name}/compiled"  # of all commands
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # compiles faster
        about = (Path(name), *prepare(Path(name)))
        trials = [(what, kind, how) for what, how, kinds, n in PLAN for kind in islice(cycle(kinds), n)]
        random.shuffle(trials)
        with ProcessPoolExecutor(2, get_context("spawn")) as pool:
            started = {pool.submit(trial, kind, how, i, *about): what for i, (what, kind, how) in enumerate(trials)}
            for future in as_completed(started):
                table[started[future]].update({name: int(n) for name, n in future.result().items()})
                if time.monotonic() > deadline:
                    pool.shutdown(wait=False, cancel_futures=True)
                    break
                if time.monotonic() > shown + 60:
                    show(table)
                    shown = time.monotonic()
    show(table)


def show(table: dict) -> None:
    columns = ("tried", "lost", "wrong", "traceback")
    print("| Fault or input | Times tried | Lost | Wrong | Traceback |\n|---|---|---|---|---|")
    for what, *_ in PLAN:
        print(f"| {what} | " + " | ".join(str(table[what][name]) for name in columns) + " |")
    sys.stdout.flush()


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 50)
