"""Expression at places where nobody measured, from a finished run.

    python -m experiments.predict --run=runs/151673 --locations=grid:4x --out=runs/151673/grid_4x.h5ad

``--locations``: ``grid:2x`` (the section's own lattice, twice as dense along each axis, inside the tissue), ``um:16``
(a square grid of 16 µm), a CSV file with columns x, y (full-resolution pixels) and optionally name, a GeoJSON file (the
cells that it outlines), or ``spots``. For real use train on every spot: ``experiments.run --config.data.split=none``.
Maps of a few genes lie in figures/ beside the output.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from absl import flags

from feature_extraction import command as cli
from spabit_jax.errors import InputError

N_GENES = 3  # shown, where none are named


def main() -> None:
    run, out, asked = Path(cli.given("run")), Path(cli.given("out")), cli.given("locations")
    check_out(out, run)
    from spabit_jax.data.genes import check_genes

    if cli.FLAGS.config:
        cli.run_preset(cli.FLAGS.config)
    predictions, spots = predict(run, asked, cli.FLAGS.weights)
    genes = cli.FLAGS.genes or default_genes(spots)
    check_genes(genes, predictions.var_names, f"not in the panel of {run} (--genes=+NAME of experiments.run adds it)")
    from spabit_jax.evaluation import plots
    from spabit_jax.files import locked

    figure = figure_of(out)
    with locked(out.with_name(f".{out.name}.lock")):
        plots.plot_location_maps(predictions, genes, figure, spots if asked != "spots" else None)
        write(predictions, out)  # last: its presence says that all is there
    n, info = len(predictions), predictions.uns["spabit"]
    print(f"{n} locations, {predictions.n_vars} genes; trained on {info['trained_on']}; written: {out}, {figure}")


def check_out(out: Path, run: Path) -> None:
    """Raises InputError for a file of another kind, one of the run's own, a .zarr that is there, or a folder."""
    from spabit_jax.ensemble.run_folder import read_run
    from spabit_jax.evaluation.report import FIGURES
    from spabit_jax.files import check_folder

    written = out.resolve(), figure_of(out).resolve()
    for name in ("predictions.h5ad", "section.h5ad", *(f"figures/{figure}" for figure in FIGURES)):
        if (run / name).resolve() in written:
            raise InputError(f"--out={out} would write over the run's own {name}: give another name")
    if (run / "config.json").is_file():  # else it is said when the run is read
        section = read_run(run)["section"]
        if out.resolve() in {Path(path).resolve() for path in (section["path"], *section.get("related", []))}:
            raise InputError(f"--out={out} is a section that the run was made from: give another name")
    check_folder(out.parent)
    if out.suffix not in (".h5ad", ".zarr"):
        raise InputError(f"--out={out}: give a file NAME.h5ad, or NAME.zarr for SpatialData")
    if out.suffix == ".zarr":
        if find_spec("spatialdata") is None:
            raise InputError(f"--out={out} needs the package spatialdata: pip install spatialdata, or give NAME.h5ad")
        if out.exists():
            raise InputError(f"--out={out} is there already: delete it, or give another name")
    elif out.is_dir():
        raise InputError(f"--out={out} is a folder: give a file NAME.h5ad")


def figure_of(out: Path) -> Path:
    """Where the maps beside a file of predictions go."""
    return out.parent / "figures" / f"{out.stem}.png"


def predict(run: Path, asked: str, weights: str | None = None):
    """Predicts the locations that ``--locations`` asks for with a finished run.

    Args:
      run: its folder.
      asked: ``grid:Nx``, ``um:N``, a CSV or GeoJSON file, or ``spots``.
      weights: file of the encoder's weights, where it needs one.

    Returns:
      The predictions, as ``ensemble.predictor.Model.predict_at`` gives them; and those of the run at its spots.

    Raises:
      InputError: no finished run, its section has changed, or there are no such locations.
    """
    import anndata

    from spabit_jax.data.locations import find_locations
    from spabit_jax.ensemble.predictor import load
    from spabit_jax.ensemble.run_folder import read_made_by, read_run

    content = read_run(run)
    path, trained = run / "predictions.h5ad", None
    if not path.exists() or asked != "spots":
        trained = load(run, weights)
    # a model that was fitted and saved in Python has not written them
    spots = read_made_by(path, "predict", anndata.read_h5ad) if path.exists() else trained.predict()
    predictions = spots
    if asked != "spots":
        predictions = trained.predict_at(find_locations(trained.prepared.adata, asked), weights)
    predictions.uns["spabit"] |= {
        "locations": asked,
        "run": str(run.resolve()),
        "num_seeds": content["num_seeds"],
        "counts_and_positions": content["inputs"]["counts_and_positions"],
    }
    return predictions, spots


def default_genes(spots) -> list[str]:
    """The genes that the run predicts best at its test spots; where it has none, those that vary most."""
    import numpy as np

    from spabit_jax.evaluation.metrics import gene_metrics

    test = (spots.obs["split"] == "test").to_numpy()
    score = spots.X.std(axis=0)
    if test.any():
        score = gene_metrics(spots.layers["truth"][test], spots.X[test])["pcc"].fillna(-1).to_numpy()
    return list(spots.var_names[np.argsort(-score, kind="stable")[:N_GENES]])


def write(predictions, out: Path) -> None:
    """Writes .h5ad or .zarr (SpatialData: a table and circles in pixels, with the image), whole or not at all."""
    from spabit_jax.files import replacing, temporary_name

    if out.suffix == ".h5ad":
        with replacing(out) as temporary:
            predictions.write_h5ad(temporary)
        return
    from spabit_jax.predictions_spatialdata import to_spatialdata

    with temporary_name(out) as temporary:
        to_spatialdata(predictions).write(temporary)
        os.replace(temporary, out)


if __name__ == "__main__":
    flags.DEFINE_string("run", None, "Folder of a finished run of experiments.run.")
    flags.DEFINE_string("locations", None, "grid:Nx (as in grid:2x), um:N (um:16), FILE.csv, FILE.geojson, or spots.")
    flags.DEFINE_string("out", None, "File to write: NAME.h5ad, or NAME.zarr (SpatialData).")
    flags.DEFINE_list("genes", [], f"Genes to draw (default: the {N_GENES} best predicted, or most variable).")
    flags.DEFINE_string("config", None, "Preset that defines what the run uses and the library has not.")
    flags.DEFINE_string("weights", None, "File of the encoder's weights, instead of the Hugging Face hub's.")
    cli.run(main)
