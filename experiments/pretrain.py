"""Makes the weights of the SpaBiT that predicts without being trained on a section.

    python -m experiments.pretrain --out=weights.npz

Tasks are made on the fly, on simulated places or, with ``--sections``, on the places and images of sections, whose
expression is not looked at. Errors on tasks kept aside are written beside ``--out`` as .csv and .png every 50 tasks,
with those of the bank of processes alone and the limit: what the process that made a response predicts. Interrupted,
the same command goes on. A GPU is used where there is one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from absl import flags

from feature_extraction import command as cli
from spabit_jax.errors import InputError
from spabit_jax.files import replacing, write_or_match

LEAST_SPOTS = 60  # of a section, in a task


def main() -> None:
    if not cli.FLAGS.out or Path(cli.FLAGS.out).suffix != ".npz":
        raise InputError(f"--out={cli.FLAGS.out or ''}: give the .npz of weights to write, as --out=weights.npz")
    from spabit_jax.evaluation.curves import plot_pretraining
    from spabit_jax.kriging.bank import draw_bank, second_pass
    from spabit_jax.models.in_context import save_weights
    from spabit_jax.training.pretraining import pretrain

    out, seed, n_tasks = Path(cli.FLAGS.out), cli.FLAGS.seed, cli.FLAGS.tasks
    geometries, inputs = read_geometries() if cli.FLAGS.sections or cli.FLAGS.section else ([], [])
    folder = out.with_suffix(".checkpoints")
    folder.mkdir(parents=True, exist_ok=True)
    asked = {"seed": seed, "tasks": n_tasks, "sections": cli.FLAGS.sections, "inputs": inputs}
    write_or_match(folder / "pretraining.json", asked, list(asked))
    bank, rows, table = draw_bank(np.random.default_rng(seed)), [], out.with_suffix(".csv")
    if table.exists():
        rows = pd.read_csv(table).to_dict("records")

    def report(row: dict) -> None:
        rows[:] = [other for other in rows if other["tasks"] < row["tasks"]] + [row]
        with replacing(table) as temporary:
            pd.DataFrame(rows).to_csv(temporary, index=False)

    params = pretrain(bank, n_tasks, geometries, seed, folder, report)
    if not rows:
        raise InputError(f"{table} is missing, which says how the training in {folder} went: delete the folder")
    plot_pretraining(pd.DataFrame(rows), out.with_suffix(".png"))
    save_weights(out, (bank, second_pass(np.random.default_rng(seed), bank)), params)
    last = ", ".join(f"{name} {value:.4f}" for name, value in rows[-1].items() if name != "tasks")
    print(f"mean squared errors on tasks kept aside: {last}\nwritten: {out}, {table}, {out.with_suffix('.png')}")


def read_geometries() -> tuple[list, list[dict]]:
    """Places in pitches and image components of ``--sections``, and what they were made from."""
    from spabit_jax.data.prepared import Prepared
    from spabit_jax.evaluation.baselines import make_spots
    from spabit_jax.training.pretraining import Geometry

    config, found, inputs = cli.read_flagged_config(), [], []
    for adata, patch_px in cli.read_flagged_sections():
        prepared = Prepared(adata, cli.with_windows(config, patch_px), cli.asked_encoder(), cli.FLAGS.cache_dir)
        if adata.n_obs < LEAST_SPOTS:
            raise InputError(f"section {prepared.name} has {adata.n_obs} spots: tasks need {LEAST_SPOTS}")
        prepared.extract()
        spots = make_spots(adata.obsm["spatial"], prepared.features())
        found.append(Geometry(spots.xy, spots.components))
        inputs.append(prepared.describe())
    return found, inputs


if __name__ == "__main__":
    cli.define_section_flags(several=True)
    cli.define_config_flag()
    flags.DEFINE_string("out", None, "The .npz of weights to write; checkpoints and errors beside it.")
    flags.DEFINE_integer("tasks", 600, "Tasks: about a second each on two cores.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of tasks and parameters.", lower_bound=0)
    cli.run(main)
