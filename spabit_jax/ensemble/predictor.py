"""A trained model: made in memory or read from a run folder, and what it predicts, at spots and anywhere else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.spatial import KDTree
from tqdm.auto import tqdm

from feature_extraction import cache
from spabit_jax.config import Config
from spabit_jax.data.features import is_own, made_from, side_by_side
from spabit_jax.data.locations import KINDS, Locations, check_locations, find_locations
from spabit_jax.data.prepared import Prepared
from spabit_jax.ensemble.blend import Blend, Prediction, fit_blend
from spabit_jax.ensemble.members import (
    FittedMember,
    HeldOut,
    check_held_out,
    checked,
    estimate_spots,
    fit_members,
    make_members,
    restore_members,
)
from spabit_jax.ensemble.related import held_out_sections, lay_out_related
from spabit_jax.ensemble.run_folder import LOCK, read_config, read_inputs, read_run, write_config
from spabit_jax.errors import InputError
from spabit_jax.files import check_folder, locked, replacing
from spabit_jax.neighbours import spot_pitch
from spabit_jax.predictions import make_predictions
from spabit_jax.training.devices import check_backend, plain_jax
from spabit_jax.training.fit import losses_table

CHUNK = 4096  # locations predicted at a time
SAME_PLACE = 1e-3  # of the pitch: a location this near to a spot is the spot's


class Model:
    """Fitted members and how they become one prediction.

    Attributes:
      prepared: the section that they were fitted to.
      seeds: of the networks.
      fitted: the members by name.
    """

    def __init__(self, prepared: Prepared, seeds: Sequence[int], fitted: dict[str, FittedMember]):
        self.prepared, self.seeds, self.fitted = prepared, list(seeds), fitted

    @cached_property
    @plain_jax()
    def held_out(self) -> dict[str, HeldOut]:
        """What each member says at the train spots, as if each had never been measured."""
        if not self.prepared.is_train.any():
            return held_out_sections(self.prepared, make_members(self.prepared.config), self.seeds)
        n, n_genes = int(self.prepared.section().is_train.sum()), len(self.prepared.genes)
        return {name: check_held_out(name, member.held_out(), n, n_genes) for name, member in self.fitted.items()}

    @cached_property
    def blend(self) -> Blend:
        section = self.prepared.section()
        n_own = int(self.prepared.is_train.sum())
        return fit_blend(section.expression[section.train_spots], self.held_out, n_own)

    @property
    def weights(self) -> dict[str, float]:
        """Of each member in the prediction."""
        return self.blend.weights

    @property
    def history(self) -> pd.DataFrame:
        """Losses of the networks: columns stage, seed, epoch, train_loss, valid_loss; no row where none was trained."""
        tables = [member.history for member in self.fitted.values() if hasattr(member, "history")]
        return pd.concat(tables or [losses_table("spabit", 0, np.empty((0, 2)))], ignore_index=True)

    def __repr__(self) -> str:
        info, members = self.prepared, f"members: {', '.join(self.fitted)}"
        if "blend" in self.__dict__:  # to find them takes as long as to predict
            members = "weights: " + ", ".join(f"{name} {weight:.3f}" for name, weight in self.weights.items())
        return f"Model of {info.name}: {len(info.genes)} genes, {len(self.seeds)} seeds\n{members}"

    def predict(self, at: str | os.PathLike | Locations | None = None) -> AnnData:
        """Predictions as an AnnData, as in predictions.h5ad.

        Args:
          at: None for the section's own spots, a train spot without its own measurement; ``grid:4x``, ``um:16`` or a
            CSV or GeoJSON file; or ``Locations``.

        Returns:
          AnnData (M, G): ``X`` predicted expression, ``layers["sd"]`` of a measurement around it, ``layers["truth"]``
          (NaN where nothing is measured), ``obs["split"]``, ``obsm["spatial"]`` (x, y) in full-resolution pixels,
          provenance in ``uns["spabit"]``.

        Raises:
          InputError: no such locations, or image features that cannot be had there; or such a model predicts at the
            section's own spots only.
        """
        if at is None or isinstance(at, str) and at == "spots":
            return self.predictions(self.predict_spots())
        if isinstance(at, Locations):
            return self.predict_at(check_locations(self.prepared.adata, at))
        if not isinstance(at, str | os.PathLike):
            raise InputError(f"predict() takes Locations, as of sj.grid, or {KINDS}, not a {type(at).__name__}")
        predictions = self.predict_at(find_locations(self.prepared.adata, os.fspath(at)))
        predictions.uns["spabit"]["locations"] = os.fspath(at)
        return predictions

    def save(self, out: str | Path) -> None:
        """Writes the model into a run folder, from which ``load`` and ``experiments.predict`` take it.

        Raises:
          InputError: the folder is a file, or holds another run; or there are related sections, which only a run keeps.
        """
        out = Path(out)
        check_folder(out)
        with locked(out / LOCK):
            write_config(out, self.prepared, self.seeds)
            for member in self.fitted.values():
                if hasattr(member, "save"):
                    member.save(out)
            if len(self.history):
                with replacing(out / "history.csv") as temporary:
                    self.history.to_csv(temporary, index=False)

    @plain_jax()
    def predict_spots(self) -> Prediction:
        """At the section's own spots, of a train spot without its own measurement."""
        return self.blend.apply(
            estimate_spots(self.prepared.section(), self.fitted, self.held_out, self.prepared.adata.n_obs)
        )

    def predictions(self, prediction: Prediction) -> AnnData:
        """What ``predict_spots`` gave, as the content of predictions.h5ad."""
        prepared, adata = self.prepared, self.prepared.adata
        return make_predictions(
            prediction.mean,
            prediction.sd,
            truth=prepared.truth(),
            split=prepared.split,
            obs=adata.obs,
            var=adata.var.loc[prepared.genes],
            xy=adata.obsm["spatial"],
            of=adata,
            info=provenance(prepared) | {"weights": self.weights},
            totals=prepared.totals,
            image=prepared.image_components(),
        )

    @plain_jax()
    def predict_at(self, locations: Locations, weights: str | None = None) -> AnnData:
        """Expression at M locations, from all train spots; a location's does not depend on which others are asked for.

        At the place of a train spot, that spot's measurement is among what the prediction is made from.

        Args:
          locations: where.
          weights: file of the encoder's weights, where it needs one.

        Returns:
          AnnData (M, G) as in predictions.h5ad: ``X`` predicted expression, ``layers["sd"]``; ``layers["truth"]`` and
          ``obs["split"]`` of the measured spot that lies at a location, else NaN and ``new``; ``obs`` array_row and
          array_col, continued between the spots; ``obsm["spatial"]``; provenance in ``uns["spabit"]``.
        """
        prepared, n = self.prepared, len(locations.xy)
        check_predicts_anywhere(prepared.config)
        places = prepared.places(locations, features_at(prepared, locations, weights))
        mean, sd = np.empty((2, n, len(prepared.genes)), np.float32)
        for start in tqdm(range(0, n, CHUNK), "locations", unit_scale=CHUNK, unit="location", disable=None):
            rows = slice(start, start + CHUNK)
            part = places._make(array[rows] for array in places)
            found = {name: member.predict(part) for name, member in self.fitted.items()}
            shape = len(part.xy), mean.shape[1]
            prediction = self.blend.apply({name: checked(name, each, *shape) for name, each in found.items()})
            mean[rows], sd[rows] = prediction.mean, prediction.sd
        known = np.asarray(prepared.adata.obsm["spatial"], np.float64)
        distance, spot = KDTree(known).query(locations.xy)
        measured = distance <= SAME_PLACE * spot_pitch(known)
        truth = np.full(mean.shape, np.nan, np.float32)
        truth[measured] = prepared.truth()[spot[measured]]
        return make_predictions(
            mean,
            sd,
            truth=truth,
            split=np.where(measured, prepared.split[spot], "new"),
            obs=pd.DataFrame(locations.array, locations.names, ["array_row", "array_col"]),
            var=prepared.adata.var.loc[prepared.genes],
            xy=locations.xy,
            of=prepared.adata,
            info=provenance(prepared) | {"train_spots_see_themselves": True, "weights": self.weights},
        )


@plain_jax()
def fit(prepared: Prepared, seeds: Sequence[int]) -> Model:
    """Fits the members of the configuration; the image features must be in the cache.

    Args:
      prepared: the section.
      seeds: of the networks.
    """
    lay_out_related(prepared)
    section, config, gene_tokens = prepared.section(), prepared.config, None
    if not config.gat.joint:
        from spabit_jax.reference.separate_gat import gene_tokens as train_gat

        gene_tokens = train_gat(section, prepared.near(), config)[:2]
    return Model(prepared, seeds, fit_members(make_members(config, gene_tokens), section, seeds))


@plain_jax()
def restore(prepared: Prepared, seeds: Sequence[int], folder: Path, gene_tokens: tuple | None = None) -> Model:
    """What ``fit`` left in a folder; InputError if it is not there or not finished."""
    lay_out_related(prepared)
    members = make_members(prepared.config, gene_tokens)
    return Model(prepared, seeds, restore_members(members, prepared.section(), seeds, folder))


def load(run: Path, weights: str | None = None) -> Model:
    """The model of a finished run, which predicts anywhere.

    Args:
      run: the folder.
      weights: file of the encoder's weights, where image features are not in the cache any more.

    Raises:
      InputError: no such run, one that is not finished, or one whose section is not what it was.
    """
    check_backend()
    content = read_run(run)
    config = read_config(run, content)
    check_predicts_anywhere(config)
    seeds = content.get("seeds") or range(content["num_seeds"])
    return restore(read_inputs(run, content, config, weights), seeds, run)


def check_predicts_anywhere(config: Config) -> None:
    """Raises InputError for a model that predicts only the spots that it was trained with."""
    only_spots = {
        "gat.joint is off": not config.gat.joint,
        "faults.batch_attention is on": config.faults.batch_attention,
        "faults.array_neighbours is on": config.faults.array_neighbours,  # a place has no array coordinates
    }
    for name, is_so in only_spots.items():
        if is_so:
            raise InputError(
                f"config.{name}: such a model predicts the section's spots only: use --locations=spots, or the preset "
                "default.py"
            )


def features_at(prepared: Prepared, locations: Locations, weights: str | None = None) -> np.ndarray | None:
    """(M, D) image features at the locations, through the cache; None where the run has none.

    Raises:
      InputError: they cannot be extracted, or come from other weights than those at the spots.
    """
    if not prepared.windows:
        return None
    if is_own(prepared.encoder):
        return prepared.windows[0].at(locations)
    digest = cache.hash_coordinates(locations.names, locations.xy)[:12]
    info = {**prepared.adata.uns["spabit"], "name": f"{prepared.name}_at_{digest}"}
    places = AnnData(obs=pd.DataFrame(index=locations.names), obsm={"spatial": locations.xy}, uns={"spabit": info})
    here = [window._replace(adata=places) for window in prepared.windows]
    for window in here:
        window.extract(weights)
    if made_from(here) != made_from(prepared.windows):
        raise InputError(
            "image features at the locations come from other weights or another image than those at the spots of "
            f"{prepared.name}: give the run's weights with --weights=FILE, and delete {info['name']}.* in the cache"
        )
    return side_by_side(here)


def provenance(prepared: Prepared) -> dict:
    """What predictions come from, for ``uns["spabit"]``."""
    n_train, n = int(prepared.is_train.sum()), len(prepared.is_train)
    which = f"{n_train} of {n} spots" if n_train < n else f"all {n} spots"
    which += f" (split {prepared.config.data.split})"
    related, rules = prepared.learned_from(), {other.name: other.config.data.split for other in prepared.related}
    for name, n in related.items():
        which += f", {n} of {name} (split {rules[name]})"
    return {
        "method": prepared.config.name,
        "encoder": prepared.encoder,
        "scale": prepared.scale.name,
        **({} if prepared.scale.target is None else {"scale_target": prepared.scale.target}),
        "panel": prepared.config.data.panel,
        "patch_px": list(prepared.patch_px) if prepared.windows else [],
        "split_rule": prepared.config.data.split,
        "trained_on": which,
        "n_train": n_train,
        **({"related": related} if prepared.related else {}),
        "train_spots_see_themselves": prepared.config.faults.self_in_gene_token,
    }
