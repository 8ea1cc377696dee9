"""Does it help? Prediction between spots beside interpolation and kriging, where the truth is known.

    python -m experiments.superresolution --sections=data/C2.tsv.gz,data/MOB1.tsv --patch_px=224,32 --simulated=2 \\
        --out=runs/superresolution

A real section is thinned: every 2nd and every 4th spot along each axis is a section of its own, on which everything
is fitted (panel, image components, model); its other spots are the locations, and their measurements the truth. Of a
simulated section, expected expression is known at four times the density of its spots. What is done already in the
folder is not done again.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from absl import flags
from anndata import AnnData
from scipy.interpolate import CloughTocher2DInterpolator, LinearNDInterpolator, NearestNDInterpolator
from scipy.spatial import KDTree
from tqdm import tqdm

from feature_extraction import command as cli
from spabit_jax.config import DataConfig
from spabit_jax.data.components import N_COMPONENTS
from spabit_jax.data.locations import FURTHEST, Locations
from spabit_jax.data.prepared import Prepared
from spabit_jax.ensemble.predictor import features_at, fit
from spabit_jax.errors import InputError
from spabit_jax.evaluation import metrics
from spabit_jax.evaluation.baselines import BASELINES, Spots
from spabit_jax.evaluation.report import markdown_table
from spabit_jax.files import replacing, write_or_match
from spabit_jax.neighbours import spot_pitch
from spabit_jax.readers.lattice import is_staggered

INTERPOLATIONS = {"linear": LinearNDInterpolator, "cubic": CloughTocher2DInterpolator}
KRIGINGS = ("kriging", "kriging_learned")  # of spabit_jax.evaluation.baselines
LEAST = 8  # train spots
DENSITY = 4  # of the simulated truth
SIMULATED = {"n_rows": 22, "n_cols": 20, "pitch": 60.0, "density": DENSITY}


class Task(NamedTuple):
    """A section that is measured, and M places of which the truth is known."""

    adata: AnnData
    locations: Locations
    counts: pd.DataFrame  # (M, all genes), or the expected ones
    patch_px: str | None  # what --patch_px says of the section
    every: int


def main() -> None:
    out, config = Path(cli.given("out")), cli.read_flagged_config()
    if config.data.split not in (DataConfig.split, "none"):
        raise InputError(f"config.data.split is {config.data.split!r}: here --every says which spots are measured")
    config.data.split = "none"
    if not cli.FLAGS.every or not all(step.isdecimal() and int(step) > 1 for step in cli.FLAGS.every):
        raise InputError("--every needs whole numbers from 2 on, separated by commas, as in 2,4")
    steps = [int(step) for step in cli.FLAGS.every]
    if not (cli.FLAGS.sections or cli.FLAGS.section or cli.FLAGS.simulated):
        raise InputError("nothing to do: give --sections, --simulated or both")
    rows = []
    for task in tqdm(_tasks(steps, out), unit="task", disable=None):
        prepared = Prepared(
            task.adata, cli.with_windows(config, task.patch_px), cli.asked_encoder(), cli.FLAGS.cache_dir
        )
        rows += results(task, prepared, cli.FLAGS.num_seeds, out)
        write(out, pd.DataFrame(rows))
    print((out / "results.md").read_text())
    print(f"written to {out}: results.csv, results.md")


def _tasks(steps: list[int], out: Path):
    if cli.FLAGS.sections or cli.FLAGS.section:
        for adata, patch_px in cli.read_flagged_sections():
            counts = pd.DataFrame(adata.X.toarray(), columns=adata.var_names)
            for every in steps:
                yield thinned(adata, counts, every, patch_px)
    for seed in range(cli.FLAGS.simulated):
        adata, counts = simulated(seed, out / "sections")
        yield thinned(adata, counts, DENSITY, None)


def simulated(seed: int, folder: Path) -> tuple[AnnData, pd.DataFrame]:
    """A section at ``DENSITY`` times the density of its spots, and its expected counts; writes its image."""
    from PIL import Image

    from spabit_jax.datasets.simulate import simulate_section

    adata, image = simulate_section(seed, name=f"simulated_{seed}", **SIMULATED)
    path = folder / f"simulated_{seed}.png"
    if not path.exists():
        with replacing(path) as temporary:
            Image.fromarray(image).save(temporary)
    adata.uns["spabit"]["image_path"] = str(path.resolve())
    return adata, pd.DataFrame(adata.layers["mu"], columns=adata.var_names)


def thinned(adata: AnnData, counts: pd.DataFrame, every: int, patch_px: str | None) -> Task:
    """Every so-manieth spot along each axis of the lattice as a section of its own, the others as its locations.

    Raises:
      InputError: fewer than ``LEAST`` spots are left.
    """
    array = adata.obs[["array_row", "array_col"]].to_numpy()
    row, col = (array - array[0]).T
    steps = ((col - row) // 2, row) if is_staggered(array) else (col, row)
    kept = (steps[0] % every == 0) & (steps[1] % every == 0)
    info = adata.uns["spabit"]
    if kept.sum() < LEAST:
        raise InputError(f"every {every}th spot of section {info['name']}: only {kept.sum()}: leave it out of --every")
    coarse = (array - array[0]) / every
    section = adata[kept].copy()
    section.obs[["array_row", "array_col"]] = coarse[kept].astype(int)
    low, high = coarse[kept].min(axis=0).astype(int), coarse[kept].max(axis=0).astype(int)
    section.uns["spabit"] = {**info, "name": f"{info['name']}_every{every}", "array_min": low, "array_max": high}
    xy = np.asarray(adata.obsm["spatial"], np.float64)
    reached = KDTree(xy[kept]).query(xy)[0] <= FURTHEST * spot_pitch(xy[kept])
    new = ~kept & reached
    return Task(
        section, Locations(adata.obs_names[new].to_numpy(str), xy[new], coarse[new]), counts[new], patch_px, every
    )


def results(task: Task, prepared: Prepared, num_seeds: int, out: Path) -> list[dict]:
    """A row of results.csv for each method; predictions are kept in the folder, and taken from there."""
    config = prepared.config
    prepared.extract()
    truth = prepared.scale.expression(task.counts[prepared.genes], task.counts.sum(axis=1))
    rows = []
    for method in [*INTERPOLATIONS, *KRIGINGS, config.name]:
        path = out / "predictions" / f"{prepared.name}.{prepared.encoder}.{method}.npz"
        settings = {"inputs": prepared.describe(), "data": config.to_dict()["data"]}
        if method == config.name:
            settings |= {"config": config.to_dict(), "num_seeds": num_seeds}
        write_or_match(path.with_suffix(".json"), settings, keys=tuple(settings))
        if not path.exists():
            start = time.monotonic()
            predicted = predict(prepared, task.locations, method, num_seeds)
            with replacing(path) as temporary:
                np.savez(temporary, mean=predicted.astype(np.float32), seconds=time.monotonic() - start)
        piece = np.load(path)
        scores = metrics.summarize(metrics.gene_metrics(truth, piece["mean"]))
        row = {"section": prepared.name.removesuffix(f"_every{task.every}"), "every": task.every, "method": method}
        row |= {"n_train": task.adata.n_obs, "n_test": len(truth), "n_genes": truth.shape[1], **scores}
        rows.append(row | {"seconds": round(float(piece["seconds"]), 3)})
    return rows


def predict(prepared: Prepared, locations: Locations, method: str, num_seeds: int) -> np.ndarray:
    """Expression at M locations by the model, an interpolation or kriging: (M, G)."""
    if method in INTERPOLATIONS:
        section = prepared.section()
        return interpolated(prepared.adata.obsm["spatial"], section.expression, locations.xy, INTERPOLATIONS[method])
    if method in KRIGINGS:
        section, places = prepared.section(), prepared.places(locations, features_at(prepared, locations))
        images = section.image[:, :N_COMPONENTS], places.image[:, :N_COMPONENTS]
        fitted = BASELINES[method]().fit(Spots(section.xy, images[0], images[0]), section.expression)
        return fitted.predict(Spots(places.xy, images[1], images[1]))[0]
    return fit(prepared, range(num_seeds)).predict_at(locations).X


def interpolated(xy: np.ndarray, expression: np.ndarray, at: np.ndarray, interpolator) -> np.ndarray:
    """(n, G) expression at (n, 2) spots interpolated to (M, 2) places, that of the nearest spot outside the hull."""
    found = interpolator(xy, expression)(at)
    outside = np.isnan(found).any(axis=1)
    if outside.any():
        found[outside] = NearestNDInterpolator(xy, expression)(at[outside])
    return found


def write(out: Path, rows: pd.DataFrame) -> None:
    """``results.csv``, and in ``results.md`` PCC and MSE: a row per section and thinning, a column per method."""
    with replacing(out / "results.csv") as temporary:
        rows.to_csv(temporary, index=False)
    parts = []
    for metric, title in (("pcc", "PCC"), ("mse", "MSE")):
        table = rows.pivot_table(metric, ["section", "every", "n_train", "n_test"], "method", sort=False)
        lines = [
            [label[0], f"every {label[1]}", f"{label[2]} / {label[3]}", *(f"{value:.3f}" for value in values)]
            for label, values in zip(table.index, table.to_numpy(), strict=True)
        ]
        lines.append(["mean", "", "", *(f"{value:.3f}" for value in table.mean())])
        parts.append(markdown_table([title, "spots kept", "measured / predicted", *table.columns], lines))
    with replacing(out / "results.md") as temporary:
        temporary.write_text("\n".join(parts))


if __name__ == "__main__":
    cli.define_section_flags(several=True)
    cli.define_config_flag()
    flags.DEFINE_string("out", None, "Folder for the tables and for what they are made from.")
    flags.DEFINE_list("every", ["2", "4"], "Real sections are thinned to every so-manieth spot along each axis.")
    flags.DEFINE_integer("simulated", 0, "Simulated sections, beside the real ones.", lower_bound=0)
    flags.DEFINE_integer("num_seeds", 5, "Models in each ensemble.", lower_bound=1)
    cli.run(main)
