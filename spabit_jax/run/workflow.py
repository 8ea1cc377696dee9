"""A run folder and the stages that fill it. Each reads the files of those before; what is done is not done again."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
from absl import logging

from spabit_jax.data.prepared import Prepared
from spabit_jax.data.way_round import check_way_round
from spabit_jax.ensemble import predictor
from spabit_jax.ensemble.members import make_members
from spabit_jax.ensemble.predictor import Model
from spabit_jax.ensemble.related import lay_out_related
from spabit_jax.ensemble.run_folder import LOCK, check_name, check_no_related, checked_seeds, read_made_by, write_config
from spabit_jax.errors import InputError
from spabit_jax.evaluation.report import check_method
from spabit_jax.files import check_folder, check_matches, is_whole, locked, replacing, write_json
from spabit_jax.models import find_model
from spabit_jax.run import STAGES, distributed
from spabit_jax.training.devices import check_backend, plain_jax
from spabit_jax.training.fit import losses_table
from spabit_jax.training.losses import find_loss


class Workflow:
    """The stages of one run.

    Args:
      out: its folder; made when there is something to write.
      prepared: the section.
      seeds: of the networks.
      origin: what config.json says besides of how to do it again: section, cache_dir, command; None for a section from
        memory.
      figure_format: png, pdf or svg.
      weights: file of the encoder's weights, instead of its own.
    """

    def __init__(
        self, out: Path, prepared: Prepared, seeds: Sequence[int], origin: dict | None = None,
        figure_format: str = "png", weights: str | None = None,
    ):  # fmt: skip
        self.out, self.prepared, self.seeds, self.origin = Path(out), prepared, checked_seeds(seeds), origin
        self.weights = weights
        check_backend()
        check_method(prepared.config.name)
        if origin is None:
            check_no_related(prepared)  # before hours of training
        find_model(prepared.config.model.name)  # before anything is written
        find_loss(prepared.config.train.loss)
        check_folder(self.out)
        self.figure_format = figure_format
        self.network = None  # fitted in this process

    @plain_jax()
    def run(self, stages: Sequence[str] = STAGES) -> None:
        """Runs stages in their order; of several processes all train, and the first does the rest.

        A line in the log of each, also where it was done already: how long it took, and what comes next.
        """
        todo = [stage for stage in STAGES if stage in stages and (stage != "gat" or not self.prepared.config.gat.joint)]
        with locked(self.out / LOCK) if distributed.is_first() else nullcontext():
            if (config := self.out / "config.json").exists():  # before minutes of image features
                check_matches(config, settings := self.prepared.settings(self.seeds), keys=tuple(settings))
                check_name(config, self.prepared.name)
            for stage, then in zip(todo, [*todo[1:], None], strict=False):
                start = time.monotonic()
                if stage == "train":
                    self.train_networks()
                distributed.first_does(getattr(self, stage))
                what_next = "" if then is None else f"; next: {then} ({STAGES[then]})"
                logging.info("%s: %.1f s%s", stage, time.monotonic() - start, what_next)

    def features(self) -> None:
        """Image features into the cache."""
        start = time.monotonic()
        self.prepared.extract(self.weights)
        check_way_round(self.prepared)
        self._note_seconds("features", time.monotonic() - start)

    def gat(self) -> None:
        """``gene_tokens.npz`` from the reference's separate GAT."""
        from spabit_jax.reference.separate_gat import gene_tokens

        path, config = self.out / "gene_tokens.npz", self.prepared.config
        self.write_config()
        if is_whole(path):
            return
        folder = self.out / "checkpoints" / "gat"
        tokens, part, states = gene_tokens(self.prepared.section(), self.prepared.near(), config, folder)
        losses = np.stack([np.asarray(state.losses) for state in states])
        with replacing(path, sealed=True) as temporary:
            np.savez(temporary, tokens=tokens, part=part, losses=losses)
        self._note_seconds("gat", float(sum(state.seconds for state in states)))

    def train_networks(self) -> None:
        """One network for each seed, into ``checkpoints/seed_i``: what all processes do together."""
        network = make_members(self.prepared.config, self.gene_tokens()).get("spabit")
        lay_out_related(self.prepared)
        section = self.prepared.section()
        distributed.first_does(self.write_config)
        if network is not None:
            self.network = network.fit(section, seeds=self.seeds, folder=self.out)

    def train(self) -> None:
        """The other members, and ``history.csv``, the networks' losses."""
        start, of_members = time.monotonic(), []
        for name, member in make_members(self.prepared.config, self.gene_tokens()).items():
            if name != "spabit":
                fitted = member.fit(self.prepared.section(), seeds=self.seeds, folder=self.out)
                of_members += [fitted.history] if hasattr(fitted, "history") else []
        self._note_seconds("members", time.monotonic() - start)
        states = [] if self.network is None else self.network.states
        tokens = self._read_gene_tokens()
        history = [] if tokens is None else [losses_table("gat", i, loss) for i, loss in enumerate(tokens["losses"])]
        if self.network is not None:
            history.append(self.network.history)
        history += of_members
        if history:
            with replacing(self.out / "history.csv") as temporary:
                pd.concat(history).to_csv(temporary, index=False)
        self._note_seconds("train", float(sum(state.seconds for state in states)))

    def predict(self) -> None:
        """``predictions.h5ad``, and beside it each seed's predictions and each member's."""
        paths = [self.out / name for name in ("predictions.h5ad", "predictions_per_seed.npy", "members.npz")]
        if all(is_whole(path) for path in paths):
            self.write_config()
            return
        model = predictor.restore(self.prepared, self.seeds, self.out, self.gene_tokens())
        self.write_config()
        start = time.monotonic()
        save_predictions(model, *paths)
        self._note_seconds("predict", time.monotonic() - start)

    def evaluate(self) -> None:
        """``genes.csv``, ``metrics.json``, figures and report; prints the table."""
        import anndata

        from spabit_jax.evaluation.evaluate import summary, write_evaluation

        predictions = read_made_by(self.out / "predictions.h5ad", "predict", anndata.read_h5ad)
        per_seed = read_made_by(self.out / "predictions_per_seed.npy", "predict", np.load)
        members = dict(read_made_by(self.out / "members.npz", "predict", np.load))
        self.write_config()
        prepared, seconds, protocol = self.prepared, self._seconds(), self.prepared.protocol()
        self._renew_labels(predictions)
        if prepared.related:  # how many of their train spots were learned from
            learned_from = predictions.uns["spabit"].get("related")
            if learned_from is None:  # predictions of before that was noted
                lay_out_related(prepared)
                learned_from = prepared.learned_from()
            protocol["related"] = {name: int(n) for name, n in learned_from.items()}
        header = {
            "section": prepared.name,
            "method": prepared.config.name,
            "encoder": prepared.encoder,
            "patch_px": list(prepared.patch_px) if prepared.windows else [],
            "protocol": protocol,
            "seeds": self.seeds,
        }
        spent = {
            "features": seconds.get("features", 0.0),
            "train": sum(seconds.get(stage, 0.0) for stage in ("gat", "train", "members")),
            "predict": seconds.get("predict", 0.0),
        }
        about = (header, spent, self.figure_format)
        print(summary(write_evaluation(self.out, predictions, members, per_seed, *about)))
        print(f"written to {self.out}: metrics.json, genes.csv, predictions.h5ad, report.html, figures/")

    def _renew_labels(self, predictions) -> None:
        """Labels may have been given, or others, since the spots were predicted."""
        now = self.prepared.adata.obs.get("label")
        before = predictions.obs.get("label")
        if now is None or before is not None and before.astype(str).equals(now.astype(str)):
            return
        predictions.obs["label"] = now
        with replacing(self.out / "predictions.h5ad", sealed=True) as temporary:
            predictions.write_h5ad(temporary)

    def write_config(self) -> None:
        """Writes config.json before anything else goes into the folder; InputError where it holds another run."""
        write_config(self.out, self.prepared, self.seeds, self.origin)

    def _read_gene_tokens(self):
        if self.prepared.config.gat.joint:
            return None
        path = self.out / "gene_tokens.npz"
        tokens = read_made_by(path, "gat", np.load)
        wanted = (self.prepared.adata.n_obs, len(self.prepared.genes))
        if tokens["tokens"].shape[1:] != wanted:
            found = tokens["tokens"].shape[1:]
            raise InputError(
                f"{path} holds {found} spots and genes, not {wanted}: delete it, or give the panel it is of"
            )
        return tokens

    def gene_tokens(self) -> tuple | None:
        """Tokens and part of the reference's separate GAT, where it is not part of the model."""
        tokens = self._read_gene_tokens()
        return None if tokens is None else (tokens["tokens"], tokens["part"])

    def _seconds(self) -> dict:
        try:
            return dict(json.loads((self.out / "seconds.json").read_text()))
        except (OSError, ValueError, TypeError):  # not there, or damaged: nothing depends on it
            return {}

    def _note_seconds(self, stage: str, seconds: float) -> None:
        noted = {stage: round(seconds, 3)} | self._seconds()  # a repeated run does nothing
        write_json(self.out / "seconds.json", noted)


def save_predictions(model: Model, predictions: Path, per_seed: Path, members: Path) -> None:
    """Predicts the section's spots and writes the three files."""
    prediction = model.predict_spots()
    with replacing(members, sealed=True) as temporary:
        np.savez(temporary, **prediction.members)
    with replacing(per_seed, sealed=True) as temporary:
        np.save(temporary, prediction.per_seed)
    with replacing(predictions, sealed=True) as temporary:
        model.predictions(prediction).write_h5ad(temporary)
