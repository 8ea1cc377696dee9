"""Time and memory of the oracle (the reference in PyTorch) and of the port, on the same inputs, side by side.

    python -m experiments.speed --out=DIR

prints one table and writes ``speed.csv``, on a GPU machine for the GPU. A quarter of an hour on two idle CPU cores;
``--stages=gat_epoch,spabit_epoch`` runs a part. Inputs are simulated, for the stages of training at the reference's
size (3639 spots, 910 of them for training, 300 genes, 1024 features); ``default_fit`` is timed on ``--section`` where
one is given.

Both sides run in processes of their own, one after the other, ``REPEATS`` times, with ``SETTINGS`` where the
environment has no others; ``seconds`` is the median, without the first run, which compiles. The oracle has the
reference's own loop: for SpaBiT a DataLoader over single spots with four workers of its own.
``default_fit`` compares the whole default model (compilation, prediction at all spots; nothing is trained) with 3000 +
1000 epochs of the oracle, extrapolated from ones that are timed on the same section. ``protocol``, on a GPU only, runs
these epochs in the port, for one seed and for ten, and projects the published table of twelve sections. ``large`` gives
rows of ``default_fit`` and ``predict`` for sections of ``BINS`` bins as of Visium HD, with 300 genes, and 1024 float16
features on disk: what comes before the prediction, and every bin.

``flops_per_s`` and ``share_of_peak`` are of the port's forward and backward passes alone, without the optimiser, which
is bound by memory: in one call, as in training, those of the run's epochs of the GAT, or of an epoch's full batches of
SpaBiT. Counted are matrix products: 2abc for (a, b) @ (b, c), twice that again in the backward pass, but once where the
input needs no gradient. For the GAT over N spots these are G→H·F, H·F→O, O→M, M→G; for a batch of SpaBiT the layers
that decide on the result, so no queries and keys over a single key. The peak is that of float32 products (3639, 1024) @
(1024, 2048), taken in the same process, in turn with the rest; the share is of the best runs of both. On a GPU float32
products are in TF32 on both sides (in ``extract`` on neither).
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median

from absl import flags, logging

from experiments.studies import speed_extract, speed_large, speed_sides
from feature_extraction import command as cli
from spabit_jax.config import DataConfig

STAGES = ("gat_epoch", "spabit_epoch", "predict", "default_fit", "protocol", "large", "extract", "compile", "import")
COLUMNS = (
    "stage", "size", "implementation", "device", "dtype", "seconds", "per_unit", "peak_gib", "flops_per_s",
    "share_of_peak", "ratio",
)  # fmt: skip
REPEATS = 5
EPOCHS = {"cpu": {"gat_epoch": 3, "spabit_epoch": 2}, "gpu": {"gat_epoch": 100, "spabit_epoch": 20}}  # of a run
STAIN_SPOTS = 5000
BINS = (50_000, 500_000)
SETTINGS = {  # of the processes of both sides
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # they share the GPU
    "OMP_WAIT_POLICY": "PASSIVE",  # and the cores
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # large arrays in huge pages
}
PATCHES = {"cpu": 16, "gpu": 512}
PUBLISHED_EPOCHS = {"gat_epoch": 3000, "spabit_epoch": 1000}
PUBLISHED_SECTIONS, PUBLISHED_SEEDS = 12, 10  # of DLPFC
STARTS = {
    "import spabit_jax": ["-c", "import spabit_jax"],
    "experiments.run --help": ["-m", "experiments.run", "--helpshort"],
}


def main() -> None:
    stages = cli.FLAGS.stages
    cli.check_known("stages", stages, STAGES)
    out = Path(cli.given("out"))
    import pandas as pd

    from spabit_jax.files import replacing

    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # what is timed is compiled
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(scratch)
        for stage in STAGES:
            if stage in stages:
                rows += getattr(bench, "import_" if stage == "import" else stage)()
                table = pd.DataFrame(rows, columns=COLUMNS)
                with replacing(out / "speed.csv") as temporary:
                    table.to_csv(temporary, index=False, float_format="%.6g")
    print(markdown(rows))
    print(f"written to {out / 'speed.csv'}; load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


class Side:
    """A process in which one implementation runs."""

    def __enter__(self):
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        return self

    def __exit__(self, *error):
        self._pool.shutdown()

    def __call__(self, function, *args):
        return self._pool.submit(function, *args).result()


class Bench:
    """The stages: each gives its rows of the table."""

    def __init__(self, scratch: str):
        self.scratch = scratch
        with Side() as side:
            self.device, has_gpu = side(speed_sides.devices)
        self.oracle_device = self.device if has_gpu else "cpu"
        if self.oracle_device != self.device:
            logging.warning("JAX has a GPU and PyTorch has not: no ratios")
        self.arrays = speed_sides.simulated()

    def gat_epoch(self) -> list[dict]:
        heads, out, hidden = 6 * 650, 1024, 2048
        n, n_genes = self.arrays["expression"].shape
        layers = [(n_genes, heads), (heads, out), (out, hidden), (hidden, n_genes)]
        passes = EPOCHS[self.oracle_device]["gat_epoch"]
        return self._training("gat_epoch", passes * products(n, layers, first=[n_genes * heads]))

    def spabit_epoch(self) -> list[dict]:
        n_genes, width, hidden, inner, batch = self.arrays["expression"].shape[1], 1024, 2048, 256, 128
        layers = [(n_genes, hidden), (hidden, width)]  # gene tokens
        layers += [(width, width)] * 4  # value and output of the two cross-attentions
        layers += [(2 * width, width)]
        attention = [(width, 3 * inner), (inner, batch), (batch, inner), (inner, width)]
        layers += (attention + [(width, width)] * 2) * 4
        layers += [(width, hidden), (hidden, n_genes)]
        flops = products(batch, layers, first=[n_genes * hidden, width * width])
        return self._training("spabit_epoch", len(self.arrays["train"]) // batch * flops)

    def _training(self, stage: str, flops: float) -> list[dict]:
        n, n_genes = self.arrays["expression"].shape
        spots = f"{n} spots" if stage == "gat_epoch" else f"{len(self.arrays['train'])} train spots"
        rows, parts = self._both(stage, f"{spots}, {n_genes} genes", self.arrays, EPOCHS[self.oracle_device][stage])
        rate = flops / min(parts["passes"])
        peak = 2 * math.prod(speed_sides.PEAK_SIZE) * speed_sides.PEAK_PRODUCTS / min(parts["peak"])
        rows[-1] |= {"flops_per_s": rate, "share_of_peak": rate / peak}
        return rows

    def predict(self) -> list[dict]:
        n = len(self.arrays["xy"]) - len(self.arrays["train"])
        return self._both("predict", f"{n} spots", self.arrays, n)[0]

    def default_fit(self) -> list[dict]:
        section = self._section()
        with Side() as port:
            arrays = port(speed_sides.of_section, section)
            seconds = port(speed_sides.port_default_fit, section)
            memory = port(speed_sides.peak_gib, "port", self.device)
        published = sum(self._published(arrays).values())
        size = f"{len(arrays['xy'])} spots, {len(arrays['train'])} for training"
        return self._rows("default_fit", size, {"oracle": published, "port": seconds}, {"port": memory}, 1)

    def protocol(self) -> list[dict]:
        if self.device != "gpu":
            logging.info("the stage protocol takes hours without a GPU: left out")
            return []
        theirs, rows = self._published(self.arrays), []
        for num_seeds in (1, PUBLISHED_SEEDS):
            with Side() as port:
                ours = port(speed_sides.port_protocol, self.arrays, PUBLISHED_EPOCHS, num_seeds)
                memory = {"port": port(speed_sides.peak_gib, "port", self.device)}
            seconds = {"oracle": theirs["gat_epoch"] + num_seeds * theirs["spabit_epoch"], "port": ours}
            rows += self._rows("protocol", f"{len(self.arrays['xy'])} spots, seeds: {num_seeds}", seconds, memory, 1)
        n = PUBLISHED_SECTIONS
        projected = {side: n * spent for side, spent in seconds.items()}  # of all published seeds
        return rows + self._rows("protocol", f"{n} such sections, projected", projected, memory, n)

    def _published(self, arrays: dict) -> dict[str, float]:
        """Seconds of the oracle's published epochs of both networks, extrapolated from a few epochs."""
        seconds = {}
        for stage, epochs in PUBLISHED_EPOCHS.items():
            with Side() as oracle:
                timed = EPOCHS[self.oracle_device][stage]
                oracle(speed_sides.prepare, stage, "oracle", self.oracle_device, arrays, timed)
                seconds[stage] = epochs * median(oracle(speed_sides.again) for _ in range(3)) / timed
        return seconds

    def _section(self) -> dict:
        """The section of the flags, or a simulated one, as ``speed_sides.of_section`` wants it."""
        if cli.FLAGS.section:
            return {
                "path": cli.FLAGS.section,
                "how": cli.how_to_read(),
                "encoder": cli.asked_encoder(),
                "windows": cli.asked_windows(cli.FLAGS.patch_px, DataConfig().windows),
                "cache_dir": cli.FLAGS.cache_dir,
            }
        from spabit_jax.datasets.simulate import simulate_section, write_section

        path = write_section(*simulate_section(0, n_rows=78, n_cols=64), Path(self.scratch))
        return {"path": str(path), "how": {}, "encoder": "stain", "windows": "48px", "cache_dir": self.scratch}

    def large(self) -> list[dict]:
        rows = []
        for n in BINS:
            with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
                with Side() as simulator:
                    simulator(speed_large.simulate, n, folder)
                with Side() as port:
                    seconds = port(speed_large.train_and_predict, folder)
                    memory = {"port": port(speed_sides.peak_gib, "port", "cpu")}  # of the process
            for stage, spent in seconds.items():
                rows += self._rows(stage, f"{n} bins", {"port": spent}, memory, n)
        return rows

    def extract(self) -> list[dict]:
        n = PATCHES[self.device]
        rows = []
        for dtype in ("float32", "bfloat16"):
            found, _ = self._both("extract", f"ViT-L, {n} patches", None, n, dtype == "bfloat16")
            rows += found if not rows else found[1:]
            rows[-1]["dtype"] = dtype
        with Side() as port:
            seconds = port(speed_extract.stain, STAIN_SPOTS, self.scratch)
        size = f"stain, {STAIN_SPOTS} spots, 9300 x 9900 px"
        return rows + self._rows("extract", size, {"port": seconds}, {}, STAIN_SPOTS, "cpu")

    def compile(self) -> list[dict]:
        """First run less a later one, of an epoch."""
        rows = []
        for stage in PUBLISHED_EPOCHS:
            with Side() as port:
                first = port(speed_sides.prepare, stage, "port", self.device, self.arrays, 1)
                seconds = first["whole"] - port(speed_sides.again)
            rows += self._rows("compile", stage, {"port": seconds}, {}, 1)
        return rows

    def import_(self) -> list[dict]:
        rows = []
        for name, arguments in STARTS.items():
            seconds = []
            for _ in range(REPEATS):
                start = time.perf_counter()
                subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL)  # help exits with 1
                seconds.append(time.perf_counter() - start)
            rows += self._rows("import", name, {"port": median(seconds)}, {}, 1, "cpu")
        return rows

    # what the stages share

    def _both(self, stage: str, size: str, arrays, n: int, *port_args) -> tuple[list[dict], dict[str, list[float]]]:
        """Runs both sides in turn: rows of the table, and the seconds of each part of the port's.

        Args:
          arrays, n: given to both sides; n epochs, patches or spots are one run.
          port_args: given to the port alone.
        """
        with Side() as oracle, Side() as port:
            oracle(speed_sides.prepare, stage, "oracle", self.oracle_device, arrays, n)
            names = port(speed_sides.prepare, stage, "port", self.device, arrays, n, *port_args)
            parts = {name: [] for name in names}
            theirs = []
            for _ in range(REPEATS):
                theirs.append(oracle(speed_sides.again))
                for name, seconds in parts.items():
                    seconds.append(port(speed_sides.again, name))
            memory = {"oracle": oracle(speed_sides.peak_gib, "oracle", self.oracle_device)}
            memory["port"] = port(speed_sides.peak_gib, "port", self.device)
        seconds = {"oracle": median(theirs), "port": median(parts["whole"])}
        return self._rows(stage, size, seconds, memory, n), parts

    def _rows(self, stage: str, size: str, seconds: dict, memory: dict, n: int, device: str | None = None):
        """The rows of a stage; ``seconds`` and ``memory`` are by implementation, ``n`` units are one run."""
        rows = []
        for side, spent in seconds.items():
            row = {"stage": stage, "size": size, "implementation": side, "dtype": "float32"}
            row["device"] = device or (self.device if side == "port" else self.oracle_device)
            row |= {"seconds": spent, "per_unit": spent / n, "peak_gib": memory.get(side)}
            if "oracle" in seconds and row["device"] == self.oracle_device:
                row["ratio"] = seconds["oracle"] / spent
            rows.append(row)
        return rows


def products(n: int, layers: list[tuple[int, int]], first: list[int]) -> float:
    """Operations of forward and backward pass of n rows through matrices, of which ``first`` have no gradient to give.

    Args:
      layers: (inputs, outputs) of each matrix.
      first: inputs · outputs of those whose input needs no gradient.
    """
    return 2.0 * n * (3 * sum(a * b for a, b in layers) - sum(first))


def markdown(rows: list[dict]) -> str:
    """The table, as it stands in docs/SPEED.md."""
    from spabit_jax.evaluation.report import markdown_table

    formats = {"seconds": ".3g", "per_unit": ".3g", "peak_gib": ".2f", "flops_per_s": ".3g", "share_of_peak": ".0%"}
    formats["ratio"] = ".2f"
    cells = [["" if row.get(c) is None else format(row[c], formats.get(c, "")) for c in COLUMNS] for row in rows]
    return markdown_table(list(COLUMNS), cells)


if __name__ == "__main__":
    cli.define_section_flags()
    flags.DEFINE_string("out", None, "Folder of the table.")
    flags.DEFINE_list("stages", list(STAGES), "Stages to run.")
    cli.run(main)
