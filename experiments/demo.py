"""The whole pipeline on a simulated section: ``make demo``.

    python -m experiments.demo --out=runs/demo

Simulates a section with known truth (``spabit_jax/datasets/simulate.py``), writes it as a user would have it on disk,
and runs the real command on it. About a minute on two CPU cores.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from absl import flags

from feature_extraction import command as cli


def main() -> None:
    out = Path(cli.given("out"))
    section = out / "section" / "simulated.h5ad"
    if not section.exists():
        from spabit_jax.datasets.simulate import simulate_section, write_section

        print(f"simulating a section: {section}")
        write_section(*simulate_section(seed=0), section.parent)
    command = [
        *("-m", "experiments.run", f"--section={section}", "--config=experiments/configs/demo.py"),
        *(f"--cache_dir={out / 'cache'}", f"--out={out / 'run'}", "--num_seeds=2"),
    ]
    print("python", *command)
    sys.exit(subprocess.run([sys.executable, *command]).returncode)


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Folder for the section and the run.")
    cli.run(main)
