"""Many runs: sections × configurations, each with its seeds, in this process, on local workers or on Slurm.

    python -m experiments.sweep --sections=data/C2.tsv.gz,data/151673 --out=runs/sweep --num_seeds=3 \\
        --configs=experiments/configs/default.py,experiments/configs/demo.py --executor=local --workers=2

A job is one run (a section and a configuration; its seeds share features, compiled programs and the final average) and
leaves a folder as ``experiments.run`` does: OUT/SECTION/CONFIGURATION. The same command goes on where it was
interrupted, a run within its training, and does nothing twice. ``results.csv`` and ``results.md`` are the benchmark's.
On Slurm this process waits for the jobs and hands out new ones; image features are extracted by it before the first
(with a heavy encoder, run ``feature_extraction.extract`` beforehand).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from absl import flags

from experiments.sweep_job import Job
from feature_extraction import command as cli
from feature_extraction.ending import AT_SIGNAL
from spabit_jax.errors import InputError
from spabit_jax.files import locked

EXECUTORS = ("debug", "local", "slurm")
LONGEST_MINUTES = 7 * 24 * 60  # submitit's own limit is five minutes
SECONDS_TO_END = 1.8  # of runs that are cancelled; submitit kills a worker after one


def main() -> None:
    out = Path(cli.given("out")).resolve()
    jobs = plan(out)
    todo = [job for job in jobs if not job.is_done]
    print(f"{len(jobs)} runs, {len(jobs) - len(todo)} done already")
    failed = execute(todo, make_executor(out / "jobs"), cli.FLAGS.workers) if todo else []
    if done := [job for job in jobs if job.is_done]:
        with locked(out / ".lock"):
            collect(out, done)
    if failed:
        names = ", ".join(job.name for job in failed)
        raise InputError(f"{len(failed)} of {len(jobs)} runs failed ({names}): see {failed[0].folder / 'log.txt'}")


def plan(out: Path) -> list[Job]:
    """The runs that the flags ask for, their features in the cache.

    Raises:
      InputError: a section or configuration is bad, two have one name, or a folder holds another run.
    """
    from spabit_jax.data.prepared import Prepared
    from spabit_jax.files import check_matches

    configs = read_configs()
    jobs = {}
    paths = cli.FLAGS.sections or [cli.FLAGS.section]
    for path, (adata, patch_px) in zip(paths, cli.read_flagged_sections(), strict=True):
        for file, config in configs.items():
            config = cli.with_windows(config, patch_px)
            prepared = Prepared(adata, config, cli.asked_encoder(), cli.FLAGS.cache_dir)
            name = f"{prepared.name}/{config.name}"
            if name in jobs:
                raise InputError(f"two runs are {name}: rename a section, or config.name in one of --configs")
            prepared.check_test_spots()
            prepared.extract()
            if (out / name / "config.json").exists():
                identity = prepared.identity(range(cli.FLAGS.num_seeds))
                check_matches(out / name / "config.json", identity, keys=tuple(identity))
            jobs[name] = Job(name, out / name, command(path, patch_px, file, out / name))
    return list(jobs.values())


def read_configs() -> dict[str, object]:
    """File of ``--configs`` → what its get_config() returns, validated; InputError for a file that is none."""
    from spabit_jax.config import Config

    configs = {}
    for file in cli.FLAGS.configs:
        made = cli.run_preset(file)
        try:
            config = made["get_config"]()
        except Exception as error:  # the file is the user's program: whatever goes wrong in it is bad input
            raise InputError(f"{file} of --configs: {' '.join(str(error).split())}: {cli.NO_CONFIG}") from error
        if not isinstance(config, Config):
            raise InputError(f"{file} of --configs: {cli.NO_CONFIG}")
        configs[file] = config.validate()
    if not configs:
        raise InputError("--configs is missing: give Python files with a get_config(), separated by commas")
    return configs


def command(section: str, patch_px: str | None, config: str, out: Path) -> tuple[str, ...]:
    """The command of one run, every path absolute."""
    from spabit_jax.data.features import FILE, is_own

    given = {"section": section, "cache_dir": cli.FLAGS.cache_dir}
    given |= {} if config in cli.PRESETS else {"config": config}
    options = {name: Path(path).resolve() for name, path in given.items()}
    options |= {"config": config} if config in cli.PRESETS else {}
    options |= {name: value for name, value in cli.how_to_read().items() if value is not False}
    encoder = cli.asked_encoder()
    options |= {"features" if is_own(encoder) else "encoder": encoder.removeprefix(FILE), "out": out}
    options |= {"patch_px": patch_px, "patch_um": cli.FLAGS.patch_um, "num_seeds": cli.FLAGS.num_seeds}
    flagged = (f"--{name}={value}" for name, value in options.items() if value is not None)
    return (sys.executable, "-m", "experiments.run", *flagged)


def make_executor(folder: Path):
    """The submitit executor that ``--executor`` names; its own files go into the folder."""
    import submitit

    name = cli.FLAGS.executor
    try:
        executor = submitit.AutoExecutor(folder, cluster=name)
        executor.update_parameters(name="spabit", timeout_min=LONGEST_MINUTES)
        if name == "slurm":
            pairs = (option.partition("=") for option in cli.FLAGS.slurm)
            options = {f"slurm_{key}": int(value) if value.isdigit() else value for key, _, value in pairs}
            executor.update_parameters(**options)
    except (RuntimeError, NameError, TypeError, ValueError) as error:  # submitit's, for no Slurm and for bad options
        raise InputError(f"--executor={name}: {' '.join(str(error).split())}") from error
    return executor


def execute(jobs: list[Job], executor, workers: int) -> list[Job]:
    """Executes the jobs, at most ``workers`` at a time; cancels those under way when interrupted.

    Returns:
      Those that failed.
    """
    from tqdm import tqdm

    waiting, running, failed = list(jobs), {}, []

    def cancel() -> None:
        tasks = list(running.values())
        for task in tasks:
            task.cancel()
        until = time.monotonic() + SECONDS_TO_END
        while time.monotonic() < until and not all(task.done() for task in tasks):
            time.sleep(0.05)

    AT_SIGNAL.append(cancel)
    with tqdm(total=len(jobs), unit="run", disable=None) as bar:
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    job = waiting.pop(0)
                    with errors_into(executor.folder / "errors.txt"):
                        running[job] = executor.submit(job)
                for job, task in list(running.items()):
                    if task.done():
                        del running[job]
                        if task.exception() is not None or task.result() != 0:
                            failed.append(job)
                        bar.update()
                time.sleep(0.2)
        finally:
            cancel()
    return failed


@contextmanager
def errors_into(path: Path) -> Iterator[None]:
    """Where processes that are started write their errors: submitit answers being cancelled with a traceback."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = os.dup(2)
    with open(path, "a") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def collect(out: Path, jobs: list[Job]) -> None:
    """The benchmark's tables from the folders of finished runs."""
    import pandas as pd

    from experiments.benchmark import COLUMNS, write
    from spabit_jax.evaluation.tables import rows_of_run

    rows, genes = [], []
    for job in jobs:
        more, table = rows_of_run(job.folder)
        rows += more
        genes.append(table)
    write(out, pd.DataFrame(rows, columns=COLUMNS), pd.concat(genes), model="")


if __name__ == "__main__":
    cli.define_section_flags(several=True)
    flags.DEFINE_string("out", None, "Folder for the runs and the table.")
    names = ", ".join(cli.PRESETS)
    flags.DEFINE_list("configs", ["default"], f"Presets ({names}), or files with a get_config().")
    flags.DEFINE_integer("num_seeds", 5, "Models in each ensemble.", lower_bound=1)
    flags.DEFINE_enum("executor", "local", EXECUTORS, "Where runs are executed: debug is this process.")
    flags.DEFINE_integer("workers", 1, "Runs at a time.", lower_bound=1)
    flags.DEFINE_list("slurm", [], "Options of sbatch, such as partition=gpu,gpus_per_node=1,time=600 (minutes).")
    cli.run(main)
