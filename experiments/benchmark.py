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
import hashlib
import itertools
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from absl import flags, logging
from tqdm import tqdm

from feature_extraction import command as cli
from feature_extraction import encoders
from spabit_jax.config import OWN_SPLITS, SPLITS, Config, is_own_split
from spabit_jax.data.features import is_own
from spabit_jax.data.prepared import APART, Prepared
from spabit_jax.errors import InputError
from spabit_jax.evaluation import baselines, metrics, plots
from spabit_jax.evaluation.gene_tables import write_genes
from spabit_jax.evaluation.tables import markdown, pivot
from spabit_jax.files import is_whole, locked, replacing, write_or_match
from spabit_jax.scale import LABELS, SCALES, total_counts

COLUMNS = ("section", "method", "encoder", "seed", "n_train", "n_test", "n_genes", "pcc", "pcc_defined")
COLUMNS += ("n_constant_genes", "mse", "mae", "seconds", "split", "coverage90")
COLUMNS += ("scale", "panel", "weight", "depth_only")
GENE_COLUMNS = ["section", "split", "scale", "encoder", "method", "seed", "gene", "pcc", "mse", "mae", "ceiling"]
TEST_SPLITS = tuple(split for split in SPLITS if split not in ("none", "image_only"))
# Their length scales are shares of what all sections extend over, which lie far from each other
OF_THE_EXTENT = ("kriging", "kriging_image_pcs", "ridge_kriging", "mean_of_three")
RELATED = "_related"  # after a method's name: learned from the section's group of --related together
ON_REQUEST = ("reference", "reference_stopped", "oracle")


class Piece(NamedTuple):
    """What the methods are compared on."""

    prepared: Prepared
    together: Prepared  # with the section's group of --related; the same where it has none
    ceiling: np.ndarray  # (G,)
    depth_only: float


def main() -> None:
    out, config = Path(cli.given("out")), cli.read_flagged_config()
    if config.name in (*baselines.BASELINES, "oracle", "reference_stopped"):
        raise InputError(f"config.name is {config.name!r}, which is a method's name already: give another")
    methods = asked_methods(cli.FLAGS.methods, config)
    asked_encoders, splits, scales = (
        list(dict.fromkeys(asked))
        for asked in (
            [cli.asked_encoder()] if cli.FLAGS.features else cli.FLAGS.encoder.split(","),
            cli.FLAGS.splits or [config.data.split],
            cli.FLAGS.scales or [config.data.scale],
        )
    )
    cli.check_known("splits", [split for split in cli.FLAGS.splits or () if not is_own_split(split)], TEST_SPLITS)
    cli.check_known("scales", scales, SCALES)
    for encoder in asked_encoders if not cli.FLAGS.features else ():
        encoders.check_name(encoder)

    groups = read_groups(cli.FLAGS.related)
    if bool(groups) != any(method.endswith(RELATED) for method in methods):
        raise InputError(f"--related and methods that use it go together, as in --methods=all,{config.name}{RELATED}")
    sections = {}
    for adata, patch_px in cli.read_flagged_sections():
        name = adata.uns["spabit"]["name"]
        if name in sections:
            raise InputError(f"two of --sections are named {name}: rename one")
        sections[name] = adata, cli.with_windows(config, patch_px)
    cli.check_known("related", [name for group in groups for name in group], sections)

    with locked(out / ".lock"):
        rows, genes = [], []
        n_pieces = len(sections) * len(splits) * len(scales) * len(asked_encoders) * len(methods)
        with tqdm(total=n_pieces, unit="piece", disable=None) as bar:
            for piece in pieces(sections, groups, splits, scales, asked_encoders):
                for method in methods:
                    alone = method.removesuffix(RELATED)
                    data = piece.prepared.config.data
                    what = f"{piece.prepared.name} {data.split} {data.scale} {method}"
                    bar.set_description(what, refresh=True)
                    if piece.prepared.encoder != "none" or alone not in baselines.NEED_IMAGE:
                        prepared = piece.together if method != alone else piece.prepared
                        predicted = compute(prepared, method if prepared.related else alone, out / "predictions")
                        if bar.disable:  # stderr is a file
                            logging.info("%s: %.1f s", what, predicted["seconds"])
                        for row, table in scores(piece, method, predicted):
                            rows.append(row)
                            genes.append(table.assign(ceiling=piece.ceiling))
                    bar.update()
        if not rows:
            raise InputError(f"nothing to do: {', '.join(methods)} need an image, and no section has one")
        write(out, pd.DataFrame(rows, columns=COLUMNS), pd.concat(genes), config.name)


def pieces(sections: dict, groups: list, splits: list, scales: list, asked_encoders: list) -> Iterator[Piece]:
    """Every section × split × scale × encoder, its features in the cache.

    Args:
      sections: name → the section and its configuration.
      groups: of ``read_groups``.
      splits, scales, asked_encoders: names.
    """
    for name, (adata, _) in sections.items():
        others = [other for group in groups if name in group for other in group if other != name]
        of_section = asked_encoders if "image_path" in adata.uns["spabit"] else asked_encoders[:1]
        for split, scale, encoder in itertools.product(splits, scales, of_section):

            def make(name: str, related=(), of_related: bool = False, split=split, scale=scale, encoder=encoder):
                adata, config = sections[name]
                config = config.with_data(split=split, scale=scale)
                config = config.of_related() if of_related else config
                prepared = Prepared(adata, config, encoder, cli.FLAGS.cache_dir, related)
                if not of_related:
                    prepared.check_test_spots()
                prepared.extract()
                return prepared

            prepared = make(name)
            together = make(name, [make(other, of_related=True) for other in others]) if others else prepared
            totals, test = total_counts(adata), prepared.test_spots
            ceiling = metrics.noise_ceiling(prepared.counts()[test], totals[test], prepared.scale)
            truth = prepared.truth()
            by_depth = metrics.depth_only(truth[prepared.is_train], totals[prepared.is_train], totals[test])
            depth = metrics.summarize(metrics.gene_metrics(truth[test], by_depth))["pcc"]
            yield Piece(prepared, together, ceiling, depth)


def asked_methods(asked: list[str], config: Config) -> list[str]:
    """The methods of ``--methods``, ``all`` written out, without repetition; InputError for one that is unknown."""
    everything = [*baselines.BASELINES, config.name]
    known = ["all", *everything, *ON_REQUEST, *(name + RELATED for name in everything if name not in OF_THE_EXTENT)]
    cli.check_known("methods", asked, dict.fromkeys(known))
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


def compute(prepared: Prepared, method: str, folder: Path) -> dict[str, np.ndarray]:
    """The predictions of a method at the test spots, from the folder if they are there.

    Returns:
      mean and sd, (n, G) each (sd NaN where a method has none), per_seed (S, n, G) of models (S = 0 for baselines),
      seconds; of the configured model also ``member:NAME`` (n, G) and ``weight:NAME`` of its members.

    Raises:
      InputError: the folder holds predictions from other inputs or of another configuration.
    """
    path = folder / f"{_piece(prepared)}.{method}.npz"
    settings = {"data": dataclasses.asdict(prepared.config.data)}
    is_baseline = method.removesuffix(RELATED) in baselines.BASELINES
    if not is_baseline:
        if method in ON_REQUEST and prepared.config.name != "reference":
            encoder = cli.asked_encoder().split(",")[0] if prepared.encoder == "none" else prepared.encoder
            prepared = Prepared(prepared.adata, reference_config(prepared.config), encoder, cli.FLAGS.cache_dir)
            prepared.extract()
        settings |= {"config": prepared.config.to_dict(), "num_seeds": cli.FLAGS.num_seeds}
    settings["inputs"] = prepared.describe()
    write_or_match(path.with_suffix(".json"), settings, keys=tuple(settings))
    if not is_whole(path):
        start, more = time.monotonic(), {}
        if is_baseline:
            mean, sd = predict_baseline(prepared, method)
            per_seed = np.zeros((0, *mean.shape))
        elif method in ON_REQUEST:
            per_seed, mean, sd, start = predict_reference(prepared, method, folder)
        else:
            per_seed, mean, sd, more = predict_model(prepared)
        arrays = {"mean": mean, "sd": sd, "per_seed": per_seed, **more}
        with replacing(path, sealed=True) as temporary:
            np.savez(
                temporary,
                seconds=time.monotonic() - start,
                **{name: np.asarray(array, np.float32) for name, array in arrays.items()},
            )
    return dict(np.load(path))


def _piece(prepared: Prepared) -> str:
    """What files are named by."""
    data, encoder = prepared.config.data, prepared.encoder
    split = _short(data.split) if is_own_split(data.split) else data.split
    return f"{prepared.name}.{split}.{data.scale}.{_short(encoder) if is_own(encoder) else encoder}"


def _short(name: str) -> str:
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '_', Path(name).stem)}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def reference_config(config: Config) -> Config:
    """The reference's preset on the same split and panel."""
    from experiments.configs import reference

    preset = reference.get_config()
    preset.data = dataclasses.replace(config.data, image_transform=preset.data.image_transform)
    return preset.validate()


def predict_baseline(prepared: Prepared, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd at the test spots, (n, G) each."""
    prepared = copy.copy(prepared)
    prepared.lay_out(APART)  # whatever a model has chosen for itself
    adata, features, is_train = prepared.joined()
    spots, train = baselines.make_spots(adata.obsm["spatial"], features), np.flatnonzero(is_train)
    expression = prepared.section().expression[train]
    model = baselines.BASELINES[method.removesuffix(RELATED)]().fit(spots.at(train), expression)
    mean, sd = model.predict(spots.at(prepared.test_spots))
    return np.maximum(mean, 0), sd


def predict_model(prepared: Prepared) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Each seed's prediction at the test spots (S, n, G), their mean and its sd, (n, G) each, and its members."""
    from spabit_jax.ensemble.predictor import fit

    model, test = fit(prepared, range(cli.FLAGS.num_seeds)), prepared.test_spots
    predicted = model.predict_spots()
    members = {f"member:{name}": mean[test] for name, mean in predicted.members.items()}
    members |= {f"weight:{name}": weight for name, weight in model.weights.items()}
    return predicted.per_seed[:, test], predicted.mean[test], predicted.sd[test], members


def predict_reference(
    prepared: Prepared, method: str, folder: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """As ``predict_model``, sd NaN, and when it would have started had its GAT not been trained for another method."""
    from experiments.studies import sides
    from spabit_jax.reference.separate_gat import GAT_SEED

    section, config = prepared.section(), copy.deepcopy(prepared.config)
    side = "oracle" if method == "oracle" else "port"
    path = folder / f"{_piece(prepared)}.{side}_gat.npz"
    parts = {part: dataclasses.asdict(getattr(config, part)) for part in ("data", "gat", "faults")}
    write_or_match(path.with_suffix(".json"), {"inputs": prepared.describe(), **parts}, keys=("inputs", *parts))
    tokens, seconds = sides.kept(path, sides.gene_tokens, side, section, config, GAT_SEED)
    start = time.monotonic() - seconds
    if method == "reference_stopped":
        config.train.epochs = sides.best_epochs(section, tokens, config, seed=0)
        logging.info("%s: %d epochs of SpaBiT", prepared.name, config.train.epochs)
    seeds = range(cli.FLAGS.num_seeds)
    per_seed = np.stack([sides.predict(side, section, tokens, prepared.test_spots, config, seed) for seed in seeds])
    return per_seed, per_seed.mean(axis=0), np.full(per_seed.shape[1:], np.nan), start


def scores(piece: Piece, method: str, predicted: dict) -> Iterator[tuple[dict, pd.DataFrame]]:
    """Rows of results.csv and tables of genes.csv: of a baseline one; of a model one a seed, its ensemble, its members.

    Args:
      predicted: of ``compute``.
    """
    prepared = piece.prepared
    test, data = prepared.test_spots, prepared.config.data
    truth = prepared.truth()[test]
    same = {"section": prepared.name, "split": data.split, "scale": data.scale, "encoder": prepared.encoder}
    sizes = {"n_train": int(prepared.is_train.sum()), "n_test": len(test), "n_genes": len(prepared.genes)}
    sizes |= {"panel": data.panel, "depth_only": piece.depth_only}

    def row(name: str, seed, mean, seconds=np.nan, coverage90=np.nan, weight=np.nan):
        table = metrics.gene_metrics(truth, mean, prepared.genes)
        key = {**same, "method": name, "seed": seed}
        more = {"seconds": seconds, "coverage90": coverage90, "weight": weight}
        return {**key, **sizes, **metrics.summarize(table), **more}, table.reset_index().assign(**key)

    for seed, of_seed in enumerate(predicted["per_seed"]):
        yield row(method, seed, of_seed)
    covered = metrics.coverage(truth, predicted["mean"], predicted["sd"])
    final = "ensemble" if len(predicted["per_seed"]) else ""
    yield row(method, final, predicted["mean"], round(float(predicted["seconds"]), 3), covered)
    members = [key.removeprefix("member:") for key in predicted if key.startswith("member:")]
    if len(members) > 1:
        for name in members:
            yield row(f"{method}:{name}", final, predicted[f"member:{name}"], weight=float(predicted[f"weight:{name}"]))


def write(out: Path, rows: pd.DataFrame, genes: pd.DataFrame, model: str) -> None:
    """``results.csv``, ``genes.csv``, ``results.md`` and ``benchmark.png``; prints the tables."""
    with replacing(out / "results.csv") as temporary:
        rows.to_csv(temporary, index=False)
    write_genes(out / "genes.csv", genes[GENE_COLUMNS])
    text = markdown(rows, genes, model)
    with replacing(out / "results.md") as temporary:
        temporary.write_text(text)
    final, of_final = rows[rows["seed"].isin(["", "ensemble"])], genes[genes["seed"].isin(["", "ensemble"])]
    shares = pivot(final, "pcc")
    shares /= pivot(of_final, "ceiling").reindex(columns=shares.columns)
    one = len(rows[["split", "encoder"]].query("encoder != 'none'").drop_duplicates()) < 2
    models = [method for method in shares.columns if method.removesuffix(RELATED) not in baselines.BASELINES]
    names = ["results.csv", "genes.csv", "results.md"]
    for scale in SCALES:  # of an earlier benchmark
        (out / f"benchmark_{scale}.png").unlink(missing_ok=True)
    for scale, of_scale in shares.groupby(level="scale", sort=False):
        of_scale.index = [label[0] if one else " ".join(label) for label in of_scale.index]
        names.append("benchmark.png" if scale == rows["scale"].iloc[0] else f"benchmark_{scale}.png")
        plots.plot_benchmark(of_scale, models, out / names[-1], title=LABELS[scale])
    print(text)
    print(f"written to {out}: {', '.join(names)}")


if __name__ == "__main__":
    cli.define_section_flags(several=True)
    cli.define_config_flag()
    flags.DEFINE_string("out", None, "Folder for the tables and for what they are made from.")
    flags.DEFINE_list("methods", ["all"], f"Methods: all, or names; {', '.join(ON_REQUEST)} only when named.")
    flags.DEFINE_list("related", [], "Groups of --sections that learn from each other: names joined by +.")
    flags.DEFINE_list("scales", [], f"Scales: {', '.join(SCALES)}; default: that of --config.")
    flags.DEFINE_list("splits", [], f"Splits: {', '.join(TEST_SPLITS)}, {OWN_SPLITS}; default: that of --config.")
    flags.DEFINE_integer("num_seeds", 5, "Models in each ensemble.", lower_bound=1)
    cli.run(main)
