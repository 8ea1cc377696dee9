"""Makes run.tar.gz: a section, a run of it and its features as this version writes them, for later ones to read.

    python -m tests.kept.make
"""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np

from spabit_jax.datasets.simulate import simulate_section, write_section
from spabit_jax.ensemble import predictor

ARCHIVE = Path(__file__).with_name("run.tar.gz")
ROOT = Path(__file__).parents[2]
PLACE = "/spabit-kept"  # in config.json, for the folder
SMALL = ("width=16", "cross_heads=2", "mlp_width=16", "depth=1", "n_context=4", "n_components=4")
FLAGS = ["--config=trained", *(f"--config.model.{value}" for value in SMALL), "--config.gat.head_width=4"]
FLAGS += ["--config.train.epochs=24", "--config.data.n_genes=8", "--num_seeds=1", "--patch_px=40"]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        adata, image = simulate_section(seed=1, n_rows=10, n_cols=8, n_genes=20, name="tiny", pitch=12.0)
        section = write_section(adata, image, folder)
        paths = [f"--section={section}", f"--out={folder / 'run'}", f"--cache_dir={folder / 'cache'}"]
        stages = "--stages=features,train,predict"
        subprocess.run([sys.executable, "-m", "experiments.run", *paths, *FLAGS, stages], check=True)
        model = predictor.load(folder / "run")
        np.save(folder / "grid.npy", model.predict_at(predictor.find_locations(model.prepared.adata, "grid:2x")).X)
        config = folder / "run" / "config.json"
        config.write_text(config.read_text().replace(str(folder), PLACE).replace(str(ROOT), PLACE))
        with tarfile.open(ARCHIVE, "w:gz") as archive:
            for path in sorted(folder.iterdir()):
                archive.add(path, path.name, filter=lambda info: None if "compiled" in info.name else info)


if __name__ == "__main__":
    main()
