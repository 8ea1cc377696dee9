"""Everything for one section: features, training, prediction of the held-out spots, metrics, figures, report.

    python -m experiments.run --section=PATH --config=experiments/configs/default.py --out=DIR

What is done already in DIR is not done again, and an interrupted run continues where it was.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

from absl import flags

from feature_extraction import command as cli
from spabit_jax.errors import InputError
from spabit_jax.run import distributed as processes

STAGES = ("features", "gat", "train", "predict", "evaluate")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "jraph", "orbax-checkpoint", "numpy", "anndata")


def main() -> None:
    stages = cli.FLAGS.stages
    if unknown := [stage for stage in stages if stage not in STAGES]:
        raise InputError(f"unknown stage {unknown[0]!r} in --stages: known are {', '.join(STAGES)}")
    if not cli.FLAGS.out:
        raise InputError("--out is missing: give the folder of the run")
    processes.join(cli.FLAGS.distributed)
    run = Run(Path(cli.FLAGS.out))
    for stage in STAGES:
        if stage in stages:
            if stage == "train":
                run.train_networks()
            processes.first_does(getattr(run, stage))


class Run:
    """A run folder and what is needed to fill it. Each stage reads the files of those before."""

    def __init__(self, out: Path):
        from spabit_jax.data.prepared import Inputs
        from spabit_jax.models import find_model

        self.out = out
        self.config = cli.with_windows(cli.read_flagged_config(), cli.FLAGS.patch_px)
        self.seeds = list(range(cli.FLAGS.num_seeds))

        find_model(self.config.model.name)  # before anything is written
        encoder, cache_dir = cli.FLAGS.encoder, cli.FLAGS.cache_dir
        adata, of_related = cli.read_flagged_section(), self.config.of_related()
        related = [Inputs(other, of_related, encoder, cache_dir) for other in cli.read_related_sections()]
        self.inputs = Inputs(adata, self.config, encoder, cache_dir, related)
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"--out={self.out} is a file: give a folder")
        self._trainer = self._states = None

    # stages

    def features(self) -> None:
        """Image features into the cache."""
        start = time.monotonic()
        self.inputs.extract()
        self._note_seconds("features", time.monotonic() - start)

    def gat(self) -> None:
        """Gene tokens from the reference's separate GAT; nothing to do where the GAT is part of the model."""
        import numpy as np

        from spabit_jax.files import replacing
        from spabit_jax.reference.separate_gat import gene_tokens

        path = self.out / "gene_tokens.npz"
        if self.config.gat.joint:
            return
        self._write_config()
        if path.exists():
            return
        tokens, part, states = gene_tokens(
            self.inputs.section(), self.inputs.near(), self.config, self.out / "checkpoints" / "gat"
        )
        losses = np.stack([np.asarray(state.losses) for state in states])
        with replacing(path) as temporary:
            np.savez(temporary, tokens=tokens, part=part, losses=losses)
        self._note_seconds("gat", float(sum(state.seconds for state in states)))

    def train_networks(self) -> None:
        """One model for each seed, into ``checkpoints/seed_i``: what all processes do together."""
        trainer = self._make_trainer()
        processes.first_does(self._write_config)
        self._states = trainer.fit_seeds(self.seeds, self.out / "checkpoints")

    def train(self) -> None:
        """The networks' losses, and their companions."""
        from spabit_jax.files import replacing

        history = []
        for seed, state in zip(self.seeds, self._states, strict=True):
            history.append(_history("spabit", seed, state.losses[: int(state.epoch)]))
        tokens = self._gene_tokens()
        if tokens is not None:
            history = [_history("gat", i, losses) for i, losses in enumerate(tokens["losses"])] + history
        self._companions(self._make_trainer())
        import pandas as pd

        with replacing(self.out / "history.csv") as temporary:
            pd.concat(history).to_csv(temporary, index=False)
        self._note_seconds("train", float(sum(state.seconds for state in self._states)))

    def _companions(self, trainer) -> None:
        """``companions.npz``: what kriging and ridge regression say at every spot; ``kriging.npz``: what was fitted."""
        import numpy as np

        from spabit_jax.ensemble.predictor import companions
        from spabit_jax.files import replacing

        paths = (self.out / "companions.npz", self.out / "kriging.npz")
        if all(path.exists() for path in paths) or not self.config.model.companions:
            return
        start = time.monotonic()
        for path, arrays in zip(paths, companions(trainer.section, self.config), strict=True):
            with replacing(path) as temporary:
                np.savez(temporary, **arrays)
        self._note_seconds("companions", time.monotonic() - start)

    def predict(self) -> None:
        """``predictions.h5ad``, and beside it each seed's predictions and each member's."""
        import numpy as np

        from spabit_jax.ensemble.blend import predictions_adata
        from spabit_jax.ensemble.predictor import finish, needed, provenance
        from spabit_jax.files import replacing

        path, seeds_path = self.out / "predictions.h5ad", self.out / "predictions_per_seed.npy"
        members_path = self.out / "members.npz"
        if path.exists() and seeds_path.exists() and members_path.exists():
            self._write_config()
            return
        trainer = self._make_trainer()
        states = self._states or [trainer.restore(s, self.out / "checkpoints" / f"seed_{s}") for s in self.seeds]
        self._write_config()
        start = time.monotonic()
        inputs = self.inputs
        others = {}
        if self.config.model.companions:
            others = dict(needed(self.out / "companions.npz", "train", np.load))
        prediction = finish(trainer, [state.chosen for state in states], self.seeds, others, inputs.adata.n_obs)
        truth = inputs.truth()
        out = predictions_adata(inputs.adata, truth, inputs.genes, inputs.is_train, prediction, provenance(inputs))
        with replacing(members_path) as temporary:
            np.savez(temporary, **prediction.members)
        with replacing(seeds_path) as temporary:
            np.save(temporary, prediction.per_seed)
        with replacing(path) as temporary:
            out.write_h5ad(temporary)
        self._note_seconds("predict", time.monotonic() - start)

    def evaluate(self) -> None:
        """``genes.csv``, ``metrics.json``, figures and report; prints the table."""
        import anndata
        import numpy as np

        from spabit_jax.ensemble.predictor import needed
        from spabit_jax.evaluation.evaluate import evaluate

        predictions = needed(self.out / "predictions.h5ad", "predict", anndata.read_h5ad)
        per_seed = needed(self.out / "predictions_per_seed.npy", "predict", np.load)
        members = dict(needed(self.out / "members.npz", "predict", np.load))
        self._write_config()
        seconds = self._seconds()
        evaluate(
            self.out,
            self.inputs,
            predictions,
            per_seed,
            members,
            header={
                "section": self.inputs.name,
                "method": self.config.name,
                "encoder": self.inputs.encoder,
                "patch_px": list(self.inputs.patch_px) if self.inputs.windows else [],
                "protocol": self.inputs.protocol(),
                "seeds": self.seeds,
            },
            seconds={
                "features": seconds.get("features", 0.0),
                "train": sum(seconds.get(stage, 0.0) for stage in ("gat", "train", "companions")),
                "predict": seconds.get("predict", 0.0),
            },
        )

    # what the stages share

    def _gene_tokens(self):
        import numpy as np

        from spabit_jax.ensemble.predictor import needed

        if self.config.gat.joint:
            return None
        path = self.out / "gene_tokens.npz"
        tokens = needed(path, "gat", np.load)
        wanted = (self.inputs.adata.n_obs, len(self.inputs.genes))
        if tokens["tokens"].shape[1:] != wanted:
            found = tokens["tokens"].shape[1:]
            raise InputError(
                f"{path} holds {found} spots and genes, not {wanted}: delete it, or give the panel it is of"
            )
        return tokens

    def _make_trainer(self):
        from spabit_jax.training.network import Trainer

        if self._trainer is None:
            tokens = self._gene_tokens()
            extra = () if tokens is None else (tokens["tokens"], tokens["part"])
            self._trainer = Trainer(self.inputs.section(), self.config, *extra)
        return self._trainer

    def _write_config(self) -> None:
        """Writes config.json before anything else goes into the folder; InputError where it holds another run."""
        from spabit_jax.files import write_or_match

        info = self.inputs.adata.uns["spabit"]
        identity = self.inputs.identity(len(self.seeds))
        content = {
            "section": {"name": self.inputs.name, "format": info["format"], "image": str(info.get("image_path", ""))},
            "cache_dir": str(Path(cli.FLAGS.cache_dir).resolve()),
            "preset": cli.preset_path(),
            **identity,
            "command": sys.argv[1:],
            "versions": {name: version(name) for name in PACKAGES},
        }
        content["section"] |= {"path": str(Path(cli.FLAGS.section).resolve()), "reading": cli.how_to_read()}
        if cli.FLAGS.related:
            paths = [str(Path(path).resolve()) for path in cli.FLAGS.related]
            content["section"] |= {"related": paths, "reading_related": cli.how_to_read_related()}
        write_or_match(self.out / "config.json", content, keys=tuple(identity))

    def _seconds(self) -> dict:
        path = self.out / "seconds.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def _note_seconds(self, stage: str, seconds: float) -> None:
        from spabit_jax.files import write_json

        write_json(
            self.out / "seconds.json", {stage: round(seconds, 3)} | self._seconds()
        )  # a repeated run does nothing


def _history(stage: str, seed: int, losses):
    import numpy as np
    import pandas as pd

    losses = np.asarray(losses)
    columns = {"stage": stage, "seed": seed, "epoch": np.arange(len(losses))}
    return pd.DataFrame(columns | {"train_loss": losses[:, 0], "valid_loss": losses[:, 1]})


if __name__ == "__main__":
    cli.define_section_flags()
    cli.define_config_flag()
    flags.DEFINE_string("out", None, "Folder of the run.")
    flags.DEFINE_list("related", [], "Other sections of the same tissue, from whose train spots is learned too.")
    flags.DEFINE_list("stages", list(STAGES), "Stages to run.")
    flags.DEFINE_integer("num_seeds", 5, "Models in the ensemble.", lower_bound=1)
    flags.DEFINE_string("distributed", None, "Several processes as one run: HOST:PORT,N,I, or auto (as under srun).")
    cli.run(main)
