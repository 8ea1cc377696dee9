"""A trained model: made in memory or read from a run folder, and what it predicts, at spots and anywhere else."""

from __future__ import annotations

import dataclasses
import json
import runpy
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.spatial import KDTree
from tqdm import tqdm

from feature_extraction import cache
from spabit_jax.config import Config
from spabit_jax.data.locations import Locations
from spabit_jax.data.prepared import Inputs, side_by_side
from spabit_jax.ensemble.blend import combine, fit_blend
from spabit_jax.ensemble.members import elsewhere, fit_kriging, fit_ridge, kriged, kriging_bag, ridged
from spabit_jax.errors import InputError
from spabit_jax.files import first_difference
from spabit_jax.kriging.bag import pack, unpack
from spabit_jax.models import MODELS
from spabit_jax.neighbours import spot_pitch
from spabit_jax.readers import read_section
from spabit_jax.training.network import Trainer

CHUNK = 4096  # locations predicted at a time
SAME_PLACE = 1e-3  # of the pitch: a location this near to a spot is the spot's


class Model(NamedTuple):
    """What predicts anywhere on a section: the networks of S seeds and their companions."""

    inputs: Inputs
    seeds: list[int]
    chosen: list  # parameters of each seed's network
    said: dict[str, np.ndarray]  # kriging, ridge, variance (N, G) at the spots; empty without companions
    kriging: dict[str, np.ndarray]  # of ``models.kriging_bag.pack``; empty without companions


def fit(inputs: Inputs, seeds: list[int]) -> Model:
    """Trains the configured model in memory, with these seeds; the image features must be in the cache."""
    check_predicts_anywhere(inputs.config)
    trainer = Trainer(inputs.section(), inputs.config)
    chosen = [state.chosen for state in trainer.fit_seeds(seeds)]
    said, kriging = companions(trainer.section, inputs.config) if inputs.config.model.companions else ({}, {})
    return Model(inputs, seeds, chosen, said, kriging)


def load(run: Path, weights: str | None = None) -> Model:
    """The model of a finished run.

    Args:
      run: the folder.
      weights: file of the encoder's weights, where image features are not in the cache any more.

    Raises:
      InputError: no such run, one that is not finished, or one whose section is not what it was.
    """
    content = read_run(run)
    config = _config(run, content)
    check_predicts_anywhere(config)
    inputs = _inputs(run, content, config, weights)
    trainer, seeds = Trainer(inputs.section(), config), list(range(content["num_seeds"]))
    chosen = [trainer.restore(seed, run / "checkpoints" / f"seed_{seed}").chosen for seed in seeds]
    said, kriging = {}, {}
    if config.model.companions:
        said, kriging = (dict(needed(run / f"{name}.npz", "train", np.load)) for name in ("companions", "kriging"))
    return Model(inputs, seeds, chosen, said, kriging)


def read_run(run: Path) -> dict:
    """The content of a run's config.json; InputError if it cannot be used to read the section again."""
    path = run / "config.json"
    if not path.is_file():
        raise InputError(f"{path}: no such file: --run must be the folder of a run of experiments.run")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): run experiments.run again") from error
    if "reading" not in content.get("section", {}):
        raise InputError(f"{path} does not say how its section is read: run experiments.run again, into another --out")
    return content


def _config(run: Path, content: dict) -> Config:
    try:
        config = Config.from_dict(content["config"])
    except TypeError as error:
        raise InputError(f"{run / 'config.json'} is of another version of the code ({error}): run again") from error
    if config.model.name not in MODELS:
        preset = Path(content["preset"])
        if not preset.is_file():
            raise InputError(f"{preset} is gone, which defines the model {config.model.name!r} of {run}: put it back")
        runpy.run_path(str(preset))  # a preset may define the model that it configures
    return config.validate()


def _inputs(run: Path, content: dict, config: Config, weights: str | None) -> Inputs:
    section, before = content["section"], content["inputs"]
    encoder = "stain" if before["encoder"] == "none" else before["encoder"]  # an image that has come up is told below
    paths = section.get("related", [])
    related = [
        Inputs(read_section(path, **section["reading_related"]), of_its_time(config.of_related(), was), encoder,
               content["cache_dir"])
        for path, was in zip(paths, before.get("related", []), strict=True)
    ]  # fmt: skip
    adata, config = read_section(section["path"], **section["reading"]), of_its_time(config, before)
    inputs = Inputs(adata, config, encoder, content["cache_dir"], related)
    inputs.extract(weights)
    now = inputs.describe()
    if now != before:
        where = first_difference(before, now, "inputs")
        raise InputError(f"{section['path']} is not what {run} was trained on, {where}: put it back, or run again")
    return inputs


def of_its_time(config: Config, described: dict) -> Config:
    """The configuration with the windows of ``described``, which in folders from before ``data.windows`` is a number.

    There it becomes the list that it is now, in place.
    """
    if isinstance(described["patch_px"], list):
        return config
    windows = f"{described['patch_px']:.9g}px"
    described["patch_px"] = [described["patch_px"]]
    return dataclasses.replace(config, data=dataclasses.replace(config.data, windows=windows))


def check_predicts_anywhere(config: Config) -> None:
    """Raises InputError for a model that predicts only the spots that it was trained with."""
    if not config.gat.joint or config.faults.batch_attention:
        name = "faults.batch_attention is on" if config.gat.joint else "gat.joint is off"
        raise InputError(
            f"config.{name}: such a model predicts the section's spots only: use --locations=spots, or the preset "
            "default.py"
        )


def features_at(inputs: Inputs, locations: Locations, weights: str | None = None) -> np.ndarray | None:
    """(M, D) image features at the locations, through the cache; None where the run has none.

    Raises:
      InputError: they cannot be extracted, or come from other weights than those at the spots.
    """
    if not inputs.windows:
        return None
    digest = cache.hash_coordinates(locations.names, locations.xy)[:12]
    info = {**inputs.adata.uns["spabit"], "name": f"{inputs.name}_at_{digest}"}
    places = AnnData(obs=pd.DataFrame(index=locations.names), obsm={"spatial": locations.xy}, uns={"spabit": info})
    here = [window._replace(adata=places) for window in inputs.windows]
    for window in here:
        window.extract(weights)
    if here[0].made_from() != inputs.made_from():
        raise InputError(
            "image features at the locations come from other weights or another image than those at the spots of "
            f"{inputs.name}: give the run's weights with --weights=FILE, and delete {info['name']}.* in the cache"
        )
    return side_by_side(here)


def predict_at(model: Model, locations: Locations, weights: str | None = None) -> AnnData:
    """Expression at M locations, from all train spots; a location's does not depend on which others are asked for.

    At the place of a train spot, that spot's measurement is among what the prediction is made from.

    Args:
      model: trained.
      locations: where.
      weights: file of the encoder's weights, where it needs one.

    Returns:
      AnnData (M, G) as in predictions.h5ad: ``X`` predicted expression, ``layers["sd"]``; ``layers["truth"]`` and
      ``obs["split"]`` of the measured spot that lies at a location, else NaN and ``new``; ``obs`` array_row and
      array_col, continued between the spots; ``obsm["spatial"]``; provenance in ``uns["spabit"]``.
    """
    inputs, config, n_new = model.inputs, model.inputs.config, len(locations.xy)
    section = inputs.section(locations, features_at(inputs, locations, weights))
    n_spots = len(section.xy) - n_new
    trainer = Trainer(section, config)
    blend = _blend(model, trainer, n_spots)
    if model.kriging:
        bag, ridge = kriging_bag(section, unpack(model.kriging)), fit_ridge(section)

    mean, sd = np.empty((2, n_new, len(inputs.genes)), np.float32)
    for start in tqdm(range(0, n_new, CHUNK), "locations", unit_scale=CHUNK, unit="location", disable=None):
        rows = np.arange(start, min(start + CHUNK, n_new))
        per_seed = _networks(model, trainer, n_spots + rows)
        others, variance = elsewhere(section, bag, ridge, n_spots + rows) if model.kriging else ({}, None)
        prediction = blend.apply(per_seed, others, variance)
        mean[rows], sd[rows] = prediction.mean, prediction.sd
    return _adata(inputs, locations, mean, sd, blend.weights)


def _networks(model: Model, trainer: Trainer, rows: np.ndarray) -> np.ndarray:
    """(S, n, G) predictions of each seed's network at (n,) rows of the trainer's section."""
    pairs = zip(model.chosen, model.seeds, strict=True)
    return np.stack([trainer.predict(params, rows, seed) for params, seed in pairs])


def _blend(model: Model, trainer: Trainer, n_spots: int):
    """As in the run: of what its members say at train spots."""
    section, train = trainer.section, trainer.train_spots
    spots = section._replace(expression=section.expression[:n_spots], is_train=section.is_train[:n_spots])
    per_seed = np.full((len(model.seeds), *spots.expression.shape), np.nan, np.float32)
    per_seed[:, train] = _networks(model, trainer, train)
    members = {name: predicted for name, predicted in model.said.items() if name != "variance"}
    held_out = [trainer.held_out(seed)[1] for seed in model.seeds]
    return fit_blend(spots, per_seed, held_out, members, model.said.get("variance"))


def _adata(inputs: Inputs, locations: Locations, mean, sd, weights: dict[str, float]) -> AnnData:
    adata = inputs.adata
    known = np.asarray(adata.obsm["spatial"], np.float64)
    distance, spot = KDTree(known).query(locations.xy)
    measured = distance <= SAME_PLACE * spot_pitch(known)
    truth = np.full(mean.shape, np.nan, np.float32)
    truth[measured] = inputs.truth()[spot[measured]]
    split = np.where(measured, np.where(inputs.is_train, "train", "test")[spot], "new")
    out = AnnData(
        X=mean,
        obs=pd.DataFrame(
            {
                "array_row": locations.array[:, 0],
                "array_col": locations.array[:, 1],
                "split": pd.Categorical(split, categories=["train", "test", "new"]),
            },
            index=locations.names,
        ),
        var=adata.var.loc[inputs.genes].copy(),
        obsm={"spatial": locations.xy},
        layers={"truth": truth, "sd": sd},
    )
    if "spatial" in adata.uns:
        out.uns["spatial"] = adata.uns["spatial"]
    seen = {"train_spots_see_themselves": True}
    out.uns["spabit"] = {**adata.uns["spabit"], **provenance(inputs), **seen, "weights": weights}
    return out


def provenance(inputs: Inputs) -> dict:
    """What predictions come from, for ``uns["spabit"]``."""
    n_train, n = int(inputs.is_train.sum()), len(inputs.is_train)
    which = f"{n_train} of {n} spots" if n_train < n else f"all {n} spots"
    which += f" (split {inputs.config.data.split})"
    for other in inputs.related:
        which += f", {int(other.is_train.sum())} of {other.name} (split {other.config.data.split})"
    return {
        "method": inputs.config.name,
        "encoder": inputs.encoder,
        "scale": inputs.scale.name,
        **({} if inputs.scale.target is None else {"scale_target": inputs.scale.target}),
        "panel": inputs.config.data.panel,
        "patch_px": list(inputs.patch_px) if inputs.windows else [],
        "split_rule": inputs.config.data.split,
        "trained_on": which,
        "train_spots_see_themselves": inputs.config.faults.self_in_gene_token,
    }


def companions(section, config) -> tuple[dict, dict]:
    """Kriging and ridge regression, fitted to the train spots.

    Returns:
      kriging, ridge (N, G): predictions of every spot; variance (N, G) of a measurement, by kriging. And the fitted
      fits, as ``models.kriging_bag.pack`` gives them.
    """
    fitted = fit_kriging(section, config.model.n_components)
    mean, variance = kriged(section, fitted)
    return {"kriging": mean, "ridge": ridged(section), "variance": variance}, pack(fitted)


def finish(trainer: Trainer, chosen: list, seeds: list[int], said: dict, n_spots: int | None = None):
    """Predicts with each seed's network, and what its companions said, the first ``n_spots`` spots of the trainer's
    section, or all of them: ``inference.Prediction``."""
    per_seed = np.empty((len(chosen), *trainer.section.expression.shape), np.float32)
    for predicted, seed, params in zip(per_seed, seeds, chosen, strict=True):
        for spots in (trainer.train_spots, np.flatnonzero(~trainer.section.is_train)):  # never in one batch
            predicted[spots] = trainer.predict(params, spots, seed)
    held_out = [trainer.held_out(seed)[1] for seed in seeds]
    members = {name: predicted for name, predicted in said.items() if name != "variance"}
    return combine(trainer.section, per_seed, held_out, members, said.get("variance"), n_spots)


def fit_predict(inputs: Inputs, seeds: list[int]):
    """Trains the configured model in memory, with these seeds, and predicts the spots: ``inference.Prediction``."""
    from spabit_jax.reference.separate_gat import gene_tokens

    config, section = inputs.config, inputs.section()
    tokens = () if config.gat.joint else gene_tokens(section, inputs.near(), config)[:2]
    trainer = Trainer(section, config, *tokens)
    chosen = [state.chosen for state in trainer.fit_seeds(seeds)]
    said = companions(section, config)[0] if config.model.companions else {}
    return finish(trainer, chosen, seeds, said, inputs.adata.n_obs)


def needed(path: Path, stage: str, read):
    """``read(path)``; InputError naming the stage of ``experiments.run`` that writes it if it is not there."""
    if not path.exists():
        raise InputError(f"{path} is missing: run the stage {stage} first (--stages={stage})")
    return read(path)
