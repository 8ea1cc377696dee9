"""Faults at random, for as long as is asked: kills, damaged files and malformed sections; prints a table.

    python -m tests.soak 50      # minutes; make soak

*Lost*: a file that was whole when the process was killed, and is another afterwards. *Wrong*: other predictions than of
a run without faults. *Traceback*: anything but a result, or one line.
"""

import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import anndata
import numpy as np

from spabit_jax.datasets.simulate import simulate_section, write_section
from spabit_jax.files import is_whole, sha256
from tests.test_bad_input import arrays, one_line, spoil

PASSING = ("seconds.json", "history.csv", "sha256.json", "metrics.json", "report.html")  # hold times, or are made last
table = defaultdict(Counter)


def commands(folder: Path) -> dict[str, tuple[list[str], Path]]:
    """Of each kind its command and the folder that it fills."""
    given, run = [f"--section={folder / 'tiny.h5ad'}", f"--cache_dir={folder / 'cache'}"], folder / "run"
    stages = ["--num_seeds=1", "--stages=features,train,predict", f"--out={run}"]
    predict = [f"--run={run}", "--locations=grid:2x", f"--out={folder / 'grid' / 'grid.h5ad'}"]
    kinds = {"extraction": ("feature_extraction.extract", given, folder / "cache")}
    kinds |= {"run": ("experiments.run", [*given, *stages], run)}
    kinds |= {"predict": ("experiments.predict", predict, folder / "grid")}
    return {kind: ([sys.executable, "-m", module, *flags], out) for kind, (module, flags, out) in kinds.items()}


def say(kind: str, **found) -> None:
    """Counts a trial and what came of it."""
    table[kind].update(tried=1, **{name: int(value) for name, value in found.items()})


def again(kind: str, command: list[str]) -> subprocess.CompletedProcess:
    result = subprocess.run(command, capture_output=True, text=True)
    if "Traceback" in result.stderr or result.returncode not in (0, 2):
        print(f"{kind}: status {result.returncode}\n{result.stderr[-2000:]}", file=sys.stderr)
    return result


def failed(result) -> bool:
    return "Traceback" in result.stderr or result.returncode not in (0, 2)


def whole_files(folder: Path) -> dict[Path, str]:
    """Hashes of the files that are done."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in PASSING)
    done = (path for path in files if not path.name.startswith(".") and "partial" not in path.name)
    return {path: sha256(path) for path in done if path.suffix in (".npy", ".h5ad", ".npz") and is_whole(path)}


def predicted(path: Path) -> np.ndarray:
    return np.asarray(anndata.read_h5ad(path).X)


def kill(kind: str, folder: Path, took: float, right: dict) -> None:
    command, out = commands(folder)[kind]
    shutil.rmtree(out, ignore_errors=True)
    if kind == "run":
        shutil.rmtree(folder / "cache", ignore_errors=True)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            process.wait(random.uniform(0.1, 1) * took)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
    before = whole_files(out)
    result = again(f"kill {kind}", command)
    after = whole_files(out)
    lost = any(after.get(path) != digest for path, digest in before.items())
    refused = failed(result) or result.returncode != 0
    say(f"SIGKILL in {kind}", lost=lost, wrong=differs(folder, right), traceback=refused)


def differs(folder: Path, right: dict) -> bool:
    """Whether a file that is there holds other numbers than that of a run without faults."""
    return any((folder / name).exists() and not same(folder / name, x) for name, x in right.items())


def same(path: Path, right: np.ndarray) -> bool:
    found = np.load(path) if path.suffix == ".npy" else predicted(path)
    return np.array_equal(found, right)


def damage(folder: Path, right: dict) -> None:
    """Flips a bit of a file of run folder or cache, or cuts it; the same commands again say so, or make it again."""
    files = [path for top in ("run", "cache") for path in sorted((folder / top).rglob("*")) if path.is_file()]
    files = [path for path in files if "compiled" not in path.parts and path.stat().st_size]
    path = random.choice(files)
    content = bytearray(path.read_bytes())
    at = random.randrange(len(content))
    content[at] ^= 1 << random.randrange(8)
    path.write_bytes(content if random.random() < 0.5 else content[:at])
    for kind in ("run", "predict"):
        (folder / "grid" / "grid.h5ad").unlink(missing_ok=True)
        result = again(f"damaged {path}", commands(folder)[kind][0])
        refused = result.returncode == 2 and result.stderr.count("error: ") == 1
        say(f"damaged file, then {kind}", wrong=not refused and differs(folder, right), traceback=failed(result))


def malformed(adata, n: int) -> None:
    for _ in range(n):
        try:
            one_line(arrays, spoil(adata.copy(), np.random.default_rng(random.randrange(2**31))))
            say("malformed section")
        except Exception as error:  # what is counted
            print(f"malformed: {type(error).__name__}: {error}", file=sys.stderr)
            say("malformed section", traceback=True)


def main(minutes: float) -> None:
    end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as name:
        folder, took = Path(name), {}
        adata, image = simulate_section(seed=1, n_rows=12, n_cols=10, n_genes=40, name="tiny")
        path = write_section(adata, image, folder)
        spoiled = anndata.read_h5ad(path)
        del spoiled.uns["spabit"]
        for warm in range(2):  # the first compiles
            for top in ("run", "grid") if warm else ():
                shutil.rmtree(folder / top)
            for kind, (command, _) in commands(folder).items():
                began = time.monotonic()
                assert again(kind, command).returncode == 0
                took[kind] = time.monotonic() - began
        names = ("run/predictions.h5ad", "grid/grid.h5ad")
        right = {name: predicted(folder / name) for name in names}
        shutil.copytree(folder / "run", folder / "kept")
        while time.monotonic() < end:
            for kind in took:
                kill(kind, folder, took[kind], right)
            damage(folder, right)
            shutil.rmtree(folder / "run")
            shutil.copytree(folder / "kept", folder / "run")
            malformed(spoiled, 10)
            show()


def show() -> None:
    print("| Fault or input | Times tried | Lost | Wrong | Traceback |\n|---|---|---|---|---|")
    for kind, found in table.items():
        print(f"| {kind} | " + " | ".join(str(found[name]) for name in ("tried", "lost", "wrong", "traceback")) + " |")
    sys.stdout.flush()


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 50)
