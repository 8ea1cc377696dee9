"""Baselines and models under one protocol: sections × splits × encoders × methods, one command, one table.

    python -m experiments.benchmark --sections=data/C2.tsv.gz,data/MOB1.tsv --patch_px=224,32 --out=runs/benchmark

``--methods=all`` are all baselines and the model of ``--config``. Run only when named, because they take long:
``reference``, the port under the reference's preset; ``reference_stopped``, trained for as many epochs as held-out
train spots say; ``oracle``, the PyTorch reference. ``NAME_related`` is the method NAME, a baseline or the model, that
also learns from the train spots of the section's group, as in ``--related=C2+C3+C5,MOB1+MOB2``; for a section without a
group it is NAME. What is done already in the folder is not done again.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from absl import flags, logging
from tqdm import tqdm

from experiments.benchmark_tables import markdown, pivot
from experiments.inputs import Inputs
from feature_extraction import encoders
from spabit_jax import baselines, cli, metrics, plots
from spabit_jax.config import SPLITS, Config
from spabit_jax.errors import InputError
from spabit_jax.files import replacing, write_or_match

COLUMNS = ("section", "method", "encoder", "seed", "n_train", "n_test", "n_genes", "pcc", "pcc_defined")
COLUMNS += ("n_constant_genes", "mse", "mae", "seconds", "split", "coverage90")
GENE_COLUMNS = ["section", "split", "encoder", "method", "seed", "gene", "pcc", "mse", "mae", "ceiling"]
TEST_SPLITS = tuple(split for split in SPLITS if split != "none")
RELATED = "_related"  # after a method's name: learned from the section's group of --related together
ON_REQUEST = ("reference", "reference_stopped", "oracle")


def main() -> None:
    if not cli.FLAGS.out:
        raise InputError("--out is missing: give a folder for the tables")
    config, out = cli.read_flagged_config(), Path(cli.FLAGS.out)
    if config.name in (*baselines.BASELINES, "oracle", "reference_stopped"):
        raise InputError(f"config.name is {config.name!r}, which is a method's name already: give another")
    methods = asked_methods(cli.FLAGS.methods, config)
    if unknown := [split for split in cli.FLAGS.splits if split not in TEST_SPLITS]:
        raise InputError(f"unknown split {unknown[0]!r} in --splits: known are {', '.join(TEST_SPLITS)}")
    asked_encoders, splits = (list(dict.fromkeys(a)) for a in (cli.FLAGS.encoder.split(","), cli.FLAGS.splits))
    for encoder in asked_encoders:
        encoders.check_name(encoder)

    groups = read_groups(cli.FLAGS.related)
    if bool(groups) != any(method.endswith(RELATED) for method in methods):
        raise InputError(f"--related and methods that use it go together, as in --methods=all,{config.name}{RELATED}")
    sections = {}
    for adata, patch_px in cli.read_flagged_sections():
        name = adata.uns["spabit"]["name"]
        if name in sections:
            raise InputError(f"two of --sections are named {name}: rename one")
        sections[name] = adata, patch_px
    if unknown := [name for group in groups for name in group if name not in sections]:
        raise InputError(f"--related: there is no {unknown[0]} among the sections {', '.join(sections)}")

    rows, genes = [], []
    pieces = len(sections) * len(splits) * len(asked_encoders) * len(methods)
    with tqdm(total=pieces, unit="piece", disable=None) as bar:
        for name, (adata, patch_px) in sections.items():
            others = [sections[other] for group in groups if name in group for other in group if other != name]
            for split in splits:
                for encoder in asked_encoders if "image_path" in adata.uns["spabit"] else asked_encoders[:1]:
                    asked = copy.deepcopy(config)
                    asked.data.split = split
                    inputs = make_inputs(adata, patch_px, asked, encoder)
                    counts = np.rint(adata[~inputs.is_train, inputs.genes].X.toarray())
                    ceiling = metrics.noise_ceiling(counts)
                    together = inputs
                    if others:
                        related = [make_inputs(*other, asked.of_related(), encoder) for other in others]
                        together = make_inputs(adata, patch_px, asked, encoder, related)
                    for method in methods:
                        alone = method.removesuffix(RELATED)
                        bar.set_description(f"{name} {split} {method}", refresh=True)
                        if inputs.encoder != "none" or alone not in baselines.NEED_IMAGE:
                            of = together if method != alone else inputs
                            piece = compute(of, method if others else alone, patch_px, out / "predictions")
                            for row, table in scores(inputs, method, piece):
                                rows.append(row)
                                genes.append(table.assign(ceiling=ceiling))
                        bar.update()
    if not rows:
        raise InputError(f"nothing to do: {', '.join(methods)} need an image, and no section has one")
    write(out, pd.DataFrame(rows, columns=COLUMNS), pd.concat(genes), config.name)


def asked_methods(asked: list[str], config: Config) -> list[str]:
    """The methods of ``--methods``, ``all`` written out, without repetition; InputError for one that is unknown."""
    everything = [*baselines.BASELINES, config.name]
    known = ["all", *everything, *ON_REQUEST, *(name + RELATED for name in everything)]
    if unknown := [method for method in asked if method not in known]:
        raise InputError(f"unknown method {unknown[0]!r} in --methods: known are {', '.join(dict.fromkeys(known))}")
    methods = [m for method in asked for m in (everything if method == "all" else [method])]
    if not methods:
        raise InputError("--methods is empty: give all, or names separated by commas")
    return list(dict.fromkeys(methods))


def read_groups(asked: list[str]) -> list[list[str]]:
    """The groups of ``--related``: names of sections that are joined by +; InputError for a name that is in two."""
    groups = [group.split("+") for group in asked]
    names = [name for group in groups for name in group]
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise InputError(f"--related has {twice[0]} twice: a section is in one group")
    return groups


def make_inputs(adata, patch_px: float, config: Config, encoder: str, related=()) -> Inputs:
    """The section as the configuration wants it, with its features in the cache."""
    inputs = Inputs(adata, config, encoder, patch_px, cli.FLAGS.cache_dir, related)
    inputs.extract()
    return inputs


def compute(inputs: Inputs, method: str, patch_px: float, folder: Path) -> dict[str, np.ndarray]:
    """The predictions of a method at the test spots, from the folder if they are there.

    Returns:
      mean and sd, (n, G) each (sd NaN where a method has none), per_seed (S, n, G) of models (S = 0 for baselines), and
      seconds.

    Raises:
      InputError: the folder holds predictions from other inputs or of another configuration.
    """
    split = inputs.config.data.split
    path = folder / f"{inputs.name}.{split}.{inputs.encoder}.{method}.npz"
    settings = {"data": dataclasses.asdict(inputs.config.data)}
    is_baseline = method.removesuffix(RELATED) in baselines.BASELINES
    if not is_baseline:
        if method in ON_REQUEST and inputs.config.name != "reference":
            encoder = cli.FLAGS.encoder.split(",")[0] if inputs.encoder == "none" else inputs.encoder
            inputs = make_inputs(inputs.adata, patch_px, reference_config(inputs.config), encoder)
        settings |= {"config": inputs.config.to_dict(), "num_seeds": cli.FLAGS.num_seeds}
    settings["inputs"] = inputs.describe()
    write_or_match(path.with_suffix(".json"), settings, keys=tuple(settings))
    if not path.exists():
        start = time.monotonic()
        if is_baseline:
            mean, sd = predict_baseline(inputs, method)
            per_seed = np.zeros((0, *mean.shape))
        elif method in ON_REQUEST:
            per_seed, mean, sd, start = predict_reference(inputs, method, folder)
        else:
            per_seed, mean, sd = predict_model(inputs)
        arrays = {"mean": mean, "sd": sd, "per_seed": per_seed}
        with replacing(path) as temporary:
            np.savez(
                temporary,
                seconds=time.monotonic() - start,
                **{name: np.asarray(array, np.float32) for name, array in arrays.items()},
            )
    return dict(np.load(path))


def reference_config(config: Config) -> Config:
    """The reference's preset on the same split and panel."""
    from experiments.configs import reference

    preset = reference.get_config()
    preset.data = dataclasses.replace(config.data, image_transform=preset.data.image_transform)
    return preset.validate()


def predict_baseline(inputs: Inputs, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd at the test spots, (n, G) each."""
    adata, features, is_train = inputs.joined()
    spots, train = baselines.make_spots(adata.obsm["spatial"], features), np.flatnonzero(is_train)
    expression = inputs.section().expression[train]
    model = baselines.BASELINES[method.removesuffix(RELATED)]().fit(spots.at(train), expression)
    return model.predict(spots.at(inputs.test_spots))


def predict_model(inputs: Inputs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each seed's prediction at the test spots (S, n, G), their mean and its sd, (n, G) each."""
    from experiments.model import fit_predict

    predicted, test = fit_predict(inputs, list(range(cli.FLAGS.num_seeds))), inputs.test_spots
    return predicted.per_seed[:, test], predicted.mean[test], predicted.sd[test]


def predict_reference(inputs: Inputs, method: str, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """As ``predict_model``, sd NaN, and when it would have started had its GAT not been trained for another method."""
    from experiments import sides
    from spabit_jax.training.gat import GAT_SEED

    section, config = inputs.section(), copy.deepcopy(inputs.config)
    side = "oracle" if method == "oracle" else "port"
    path = folder / f"{inputs.name}.{config.data.split}.{inputs.encoder}.{side}_gat.npz"
    parts = {part: dataclasses.asdict(getattr(config, part)) for part in ("data", "gat", "faults")}
    write_or_match(path.with_suffix(".json"), {"inputs": inputs.describe(), **parts}, keys=("inputs", *parts))
    tokens, seconds = sides.once(path, sides.gene_tokens, side, section, config, GAT_SEED)
    start = time.monotonic() - seconds
    if method == "reference_stopped":
        config.train.epochs = sides.best_epochs(section, tokens, config, seed=0)
        logging.info("%s: %d epochs of SpaBiT", inputs.name, config.train.epochs)
    seeds = range(cli.FLAGS.num_seeds)
    per_seed = np.stack([sides.predict(side, section, tokens, inputs.test_spots, config, seed) for seed in seeds])
    return per_seed, per_seed.mean(axis=0), np.full(per_seed.shape[1:], np.nan), start


def scores(inputs: Inputs, method: str, piece: dict) -> Iterator[tuple[dict, pd.DataFrame]]:
    """Rows of results.csv and tables of genes.csv: of a baseline one, of a model one for each seed and the ensemble."""
    test = inputs.test_spots
    truth = inputs.truth()[test]
    is_model = len(piece["per_seed"]) > 0
    of_ensemble = {
        "seconds": round(float(piece["seconds"]), 3),
        "coverage90": metrics.coverage(truth, piece["mean"], piece["sd"]),
    }
    of_seed = {"seconds": np.nan, "coverage90": np.nan}
    predictions = [(seed, predicted, of_seed) for seed, predicted in enumerate(piece["per_seed"])]
    predictions.append(("ensemble" if is_model else "", piece["mean"], of_ensemble))
    for seed, predicted, more in predictions:
        key = {"section": inputs.name, "split": inputs.config.data.split, "encoder": inputs.encoder}
        key |= {"method": method, "seed": seed}
        table = metrics.gene_metrics(truth, predicted, inputs.genes)
        sizes = {"n_train": int(inputs.is_train.sum()), "n_test": len(test), "n_genes": len(inputs.genes)}
        yield {**key, **sizes, **metrics.summarize(table), **more}, table.reset_index().assign(**key)


def write(out: Path, rows: pd.DataFrame, genes: pd.DataFrame, model: str) -> None:
    """``results.csv``, ``genes.csv``, ``results.md`` and ``benchmark.png``; prints the tables."""
    with replacing(out / "results.csv") as temporary:
        rows.to_csv(temporary, index=False)
    with replacing(out / "genes.csv") as temporary:
        genes[GENE_COLUMNS].to_csv(temporary, index=False)
    text = markdown(rows, genes, model)
    with replacing(out / "results.md") as temporary:
        temporary.write_text(text)
    final, of_final = rows[rows["seed"].isin(["", "ensemble"])], genes[genes["seed"].isin(["", "ensemble"])]
    shares = pivot(final, "pcc").div(pivot(of_final, "ceiling").max(axis=1), axis=0)
    one = len(rows[["split", "encoder"]].query("encoder != 'none'").drop_duplicates()) < 2
    shares.index = [label[0] if one else " ".join(label) for label in shares.index]
    models = [method for method in shares.columns if method.removesuffix(RELATED) not in baselines.BASELINES]
    plots.plot_benchmark(shares, models, out / "benchmark.png")
    print(text)
    print(f"written to {out}: results.csv, genes.csv, results.md, benchmark.png")


if __name__ == "__main__":
    cli.define_section_flags(several=True)
    cli.define_config_flag()
    flags.DEFINE_string("out", None, "Folder for the tables and for what they are made from.")
    flags.DEFINE_list("methods", ["all"], f"Methods: all, or names; {', '.join(ON_REQUEST)} only when named.")
    flags.DEFINE_list("related", [], "Groups of --sections that learn from each other: names joined by +.")
    flags.DEFINE_list("splits", ["lattice"], f"Splits: {', '.join(TEST_SPLITS)}.")
    flags.DEFINE_integer("num_seeds", 5, "Models in each ensemble.", lower_bound=1)
    cli.run(main)
