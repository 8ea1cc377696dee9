"""What users write: the functions of ``import spabit_jax as sj``, each a few lines over the rooms below."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes

from feature_extraction.encoders import register_encoder
from spabit_jax.config import Config
from spabit_jax.data import locations
from spabit_jax.data.features import encoder_name
from spabit_jax.data.locations import Locations
from spabit_jax.data.prepared import Prepared, for_section, read_alignments
from spabit_jax.data.way_round import check_way_round
from spabit_jax.ensemble import predictor
from spabit_jax.ensemble.members import register_member
from spabit_jax.ensemble.predictor import Model
from spabit_jax.ensemble.run_folder import checked_seeds
from spabit_jax.errors import InputError
from spabit_jax.evaluation import evaluate as evaluation
from spabit_jax.evaluation.plots import draw_calibration, draw_pcc_scatter, new_axes
from spabit_jax.evaluation.report import run_blocks, write_report
from spabit_jax.readers import h5ad, read_section
from spabit_jax.readers.assemble import NO_IMAGE
from spabit_jax.readers.libraries import WHOLE
from spabit_jax.run.workflow import Workflow
from spabit_jax.training.devices import check_backend
from spabit_jax.training.fit import register_callback
from spabit_jax.training.losses import register_loss
from spabit_jax.user_cache import keep_compiled

__all__ = ["evaluate", "fit", "grid", "load", "plot_calibration", "plot_scores", "prepare", "report"]
__all__ += ["register_callback", "register_encoder", "register_loss", "register_member"]


def prepare(
    section: AnnData | str | os.PathLike,
    config: Config | None = None,
    *,
    encoder: str = "stain",
    features: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike = "cache",
    related: Sequence[AnnData | str | os.PathLike] = (),
    related_alignment: Sequence[str | os.PathLike | np.ndarray | None] = (),
) -> Prepared:
    """A section as a configuration wants it: split, panel, scale, and image features, which are computed or cached.

    Args:
      section: of ``read_section``, an AnnData of your own, or a path.
      config: ``Config()`` by default.
      encoder: of the image; neural ones need PyTorch.
      features: image features of your own instead: a file (``data.features.read_features`` says of what content), or
        ``obsm:KEY``.
      cache_dir: folder of image features.
      related: other sections of the same tissue, from whose train spots is learned too.
      related_alignment: of each of them where it lies, where that is known: a matrix, (3, 3) or (2, 3), from its
        full-resolution pixels to those of ``section``, its file, or None.

    Raises:
      InputError: whatever does not fit, in one line.
    """
    if not isinstance(config, Config | None):
        raise InputError(f"config is {config!r:.60}: give a Config, or one of spabit_jax.presets, as presets.trained()")
    config = Config() if config is None else copy.deepcopy(config.validate())  # what the user changes is no longer ours
    encoder = encoder if features is None else encoder_name(features)
    keep_compiled()
    adata, alignments = _read(section), read_alignments(related, related_alignment)
    of_related = for_section(config, adata).of_related()
    others = [
        Prepared(_read(other), of_related, encoder, str(cache_dir), alignment=alignment)
        for other, alignment in zip(related, alignments, strict=True)
    ]
    prepared = Prepared(adata, config, encoder, str(cache_dir), others)
    prepared.extract()
    check_way_round(prepared)
    return prepared


def _read(section) -> AnnData:
    """A section of our own, whatever the user does with his AnnData, which may have been changed since it was read."""
    info = section.uns.get("spabit", {}) if isinstance(section, AnnData) else {}
    if "spot_px" not in info:
        return read_section(section)
    section = section.to_memory(copy=True)
    if not section.n_vars:  # an image alone
        return section
    section.uns["spabit"] = info | {WHOLE: section.n_obs}
    image = Path(info["image_path"]) if "image_path" in info else NO_IMAGE
    return h5ad.from_anndata(section, Path("the AnnData"), info["name"], image, None, None)


def fit(section: Prepared, seeds: int | Sequence[int] = 5, out: str | os.PathLike | None = None) -> Model:
    """Fits the members of the configuration.

    Args:
      section: of ``prepare``.
      seeds: how many networks, or the seed of each.
      out: run folder, in which an interrupted fit goes on where it was; None keeps all in memory.

    Raises:
      InputError: ``out`` holds another run, or ``section`` has related ones: a run folder with these is
        ``experiments.run``'s.
    """
    if not isinstance(section, Prepared):
        raise InputError(f"fit() takes what sj.prepare gives, not a {type(section).__name__}")
    seeds = checked_seeds(range(seeds) if isinstance(seeds, Integral) else list(seeds))
    check_backend()
    if out is None:
        return predictor.fit(section, seeds)
    workflow = Workflow(Path(out), section, seeds)
    workflow.run(("gat", "train"))
    return predictor.restore(section, seeds, Path(out), workflow.gene_tokens())


def load(path: str | os.PathLike) -> Model:
    """The model of a run folder; InputError if it is not there, not finished, or its section has changed."""
    keep_compiled()
    return predictor.load(Path(path))


def grid(section: AnnData | Prepared, times: int) -> Locations:
    """The section's own lattice, ``times`` as dense along each axis, inside the tissue.

    Args:
      section: of ``prepare`` or ``read_section``, or any AnnData that this takes.
      times: 1 to 1000.

    Raises:
      InputError: another number; spots that lie on no lattice or on one line; or there would be too many locations.
    """
    if not isinstance(section, Prepared) and not (isinstance(section, AnnData) and "spabit" in section.uns):
        section = read_section(section)
    return locations.grid(section.adata if isinstance(section, Prepared) else section, times)


def evaluate(predictions: AnnData, model: Model | None = None) -> pd.DataFrame:
    """Predictions beside the truth of the test spots, by gene and method; ``attrs["summary"]`` has the means.

    Args:
      predictions: of ``Model.predict()``, at the spots of a section with test spots.
      model: adds each of its members alone; predictions may be without some of its test spots and genes, in any order.

    Returns:
      Columns gene, method, seed, pcc, mse, mae.

    Raises:
      InputError: no test spots, train spots that are missing, or other spots or genes than the model's.
    """
    if model is None:
        return evaluation.evaluate(predictions)
    spots = _found("spot", predictions.obs_names, model.prepared.adata.obs_names)
    part = np.ix_(spots, _found("gene", predictions.var_names, pd.Index(model.prepared.genes)))
    prediction = model.predict_spots()
    members = {name: mean[part] for name, mean in prediction.members.items()}
    by_seed = zip(model.seeds, prediction.per_seed, strict=False)  # one alone where no member has seeds
    return evaluation.evaluate(predictions, members, {seed: mean[part] for seed, mean in by_seed})


def _found(what: str, names: pd.Index, known: pd.Index) -> np.ndarray:
    """Where each name is among those known; InputError for one that is not."""
    at = known.get_indexer(names)
    if (at < 0).any():
        raise InputError(f"{what} {names[at.argmin()]} of the predictions is none of the model's")
    return at


def plot_scores(scores: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draws each gene beside the best of the simple methods: above the diagonal the model predicts it better.

    Args:
      scores: of ``evaluate``.
      ax: axes to draw into; those of a new figure by default.

    Returns:
      The axes.

    Raises:
      InputError: scores that were in a file.
    """
    _check_scores(scores)
    ax = new_axes() if ax is None else ax
    draw_pcc_scatter(ax, *evaluation.beside_best_rival(scores))
    return ax


def plot_calibration(scores: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draws which share of the test measurements lies inside the predicted intervals, against what these say.

    Args:
      scores: of ``evaluate``.
      ax: axes to draw into; those of a new figure by default.

    Returns:
      The axes.

    Raises:
      InputError: scores that were in a file.
    """
    _check_scores(scores)
    ax = new_axes() if ax is None else ax
    draw_calibration(ax, scores.attrs["coverage"])
    return ax


def _check_scores(scores: pd.DataFrame) -> None:
    if "summary" not in scores.attrs:
        raise InputError("these scores have lost their summary, as in a file: give those of sj.evaluate")


def report(predictions: AnnData, scores: pd.DataFrame, path: str | os.PathLike) -> None:
    """Writes report.html: what was predicted, who predicts, how good it is, and a map of three genes.

    Args:
      predictions: of ``Model.predict()``, at the spots of a section with test spots.
      scores: of ``evaluate``.
      path: the file.

    Raises:
      InputError: scores that were in a file.
    """
    import tempfile

    from spabit_jax.evaluation.plots import plot_gene_maps

    _check_scores(scores)
    info, split = predictions.uns["spabit"], predictions.obs["split"]
    protocol = {name: info[name] for name in ("panel", "scale")} | {"split": info["split_rule"]}
    protocol |= {"n_genes": predictions.n_vars, "n_train": int((split == "train").sum())}
    protocol["n_test"] = int((split == "test").sum())
    if "related" in info:
        protocol["related"] = {name: int(n) for name, n in info["related"].items()}
    content = {"section": info["name"], "method": info["method"], "encoder": info["encoder"], "protocol": protocol}
    content |= {"patch_px": list(np.atleast_1d(info["patch_px"])), **scores.attrs["summary"]}
    content["seeds"] = [seed for seed in scores["seed"].unique() if seed not in ("", "ensemble")]
    content["weights"] = {name: float(weight) for name, weight in info["weights"].items()}
    with tempfile.TemporaryDirectory() as folder:
        if shown := evaluation.genes_to_show(predictions, scores):
            plot_gene_maps(predictions, shown, Path(folder, "figures", "gene_maps.png"))
        scores.to_csv(Path(folder, "genes.csv"), index=False)
        write_report(Path(path), f"{info['name']}, {info['method']}", run_blocks(Path(folder), content))
