"""What each part and each fault of the reference is worth: one command, one table.

    python -m experiments.ablate --sections=data/C2.tsv.gz,data/MOB1.tsv --patch_px=224,32 --out=runs/ablate

Every variant is the reference at its full size with one thing changed, trained for 300 epochs of the GAT and 300 of
SpaBiT with 3 seeds. Where a spot sees its context (``single_key`` off) it sees its 6 nearest train spots. Results are
added to ``ablation.csv`` one by one: an interrupted command goes on where it was.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
from absl import flags

from experiments.compare_reference import settings
from feature_extraction import command as cli
from spabit_jax.config import Config, Faults, ModelConfig
from spabit_jax.data.prepared import Prepared, transposed_crop
from spabit_jax.errors import InputError
from spabit_jax.evaluation import metrics
from spabit_jax.evaluation.report import markdown_table
from spabit_jax.files import replacing, write_or_match

FAULTS = tuple(field.name for field in dataclasses.fields(Faults))
N_CONTEXT = 6

# name → fields of the configuration that it changes; image and gat are parts of the input rather than fields
VARIANTS: dict[str, dict] = {
    "reference": {},
    **{f"{fault} off": {f"faults.{fault}": False} for fault in FAULTS},
    "all faults off": {f"faults.{fault}": False for fault in FAULTS},
    "without image": {"image": False},
    "without GAT": {"gat": False},
    "without image_to_gene": {"model.cross_attention": "gene_to_image"},
    "without gene_to_image": {"model.cross_attention": "image_to_gene"},
    "without Transformer": {"model.depth": 0},
}


def main() -> None:
    out = Path(cli.given("out"))
    cli.check_known("variants", cli.FLAGS.variants, VARIANTS)
    base = cli.read_flagged_config()
    if base.model.n_context not in (ModelConfig.n_context, N_CONTEXT):
        raise InputError(f"config.model.n_context is {base.model.n_context}: here it is {N_CONTEXT}")
    base.model.n_context = N_CONTEXT
    path = out / "ablation.csv"
    rows = pd.read_csv(path, dtype={"section": str}).to_dict("records") if path.exists() else []
    for adata, patch_px in cli.read_flagged_sections():
        here = cli.with_windows(base, patch_px)
        prepared = Prepared(adata, here, cli.asked_encoder(), cli.FLAGS.cache_dir)
        prepared.extract()
        write_or_match(out / prepared.name / "config.json", settings(prepared), keys=("inputs", "config"))
        for variant in cli.FLAGS.variants:
            if variant == "transposed_crop off" and not transposed_crop(adata, here):
                continue  # of no effect on this format
            config = changed(here, VARIANTS[variant])
            prepared = Prepared(adata, config, cli.asked_encoder(), cli.FLAGS.cache_dir)
            prepared.check_test_spots()
            prepared.extract()
            key = {"section": prepared.name, "variant": variant}
            key |= {"gat_epochs": config.gat.epochs, "epochs": config.train.epochs}
            done = [row["seed"] for row in rows if all(row[name] == value for name, value in key.items())]
            todo = [seed for seed in range(cli.FLAGS.num_seeds) if seed not in done]
            for seed, result in zip(todo, run(prepared, VARIANTS[variant], todo, out / prepared.name), strict=False):
                rows.append({**key, "seed": seed, **result})
                with replacing(path) as temporary:
                    pd.DataFrame(rows).to_csv(temporary, index=False)
    table = summarise(pd.DataFrame(rows))
    with replacing(out / "ablation.md") as temporary:
        temporary.write_text(markdown(table))
    print(markdown(table))
    print(f"written to {out}: ablation.csv, ablation.md")


def changed(base: Config, fields: dict) -> Config:
    """The configuration with ``part.field`` → value replaced."""
    config = copy.deepcopy(base)
    for name, value in fields.items():
        part, _, field = name.partition(".")
        if field:
            setattr(getattr(config, part), field, value)
    return config.validate()


def run(prepared: Prepared, variant: dict, seeds: list[int], folder: Path):
    """Trains a variant with each seed; yields the metrics on the test spots.

    Args:
      variant: its entry in ``VARIANTS``.
      folder: for gene tokens, which the variants share where the GAT is the same.
    """
    from spabit_jax.reference.separate_gat import gene_tokens
    from spabit_jax.training.network import Trainer

    if not seeds:
        return
    config, section = prepared.config, prepared.section()
    if not variant.get("image", True):
        section = section._replace(image=np.zeros_like(section.image))
    if not variant.get("gat", True):
        tokens, part = section.imputed[None], np.zeros(len(section.imputed), np.int32)
    else:
        gat = config.gat
        names = ["own" if config.faults.self_in_gene_token else f"{gat.folds}_folds", f"{gat.epochs}_epochs"]
        names.append("array" if config.faults.array_neighbours else "pixels")
        path = folder / f"tokens_{'_'.join(names)}.npz"
        if not path.exists():
            tokens, part, _ = gene_tokens(section, prepared.near(), config)
            with replacing(path) as temporary:
                np.savez(temporary, tokens=tokens, part=part)
        loaded = np.load(path)
        tokens, part = loaded["tokens"], loaded["part"]
    trainer = Trainer(section, config, tokens, part)
    truth = prepared.truth()[prepared.test_spots]
    for seed in seeds:
        predicted = trainer.predict(trainer.fit(seed).chosen, prepared.test_spots, seed)
        yield metrics.summarize(metrics.gene_metrics(truth, predicted))


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and population sd over the seeds of each variant, in the order of ``VARIANTS``, and the change in pcc."""
    rows = rows[rows["variant"].isin(VARIANTS)]
    groups = rows.groupby(["section", "gat_epochs", "epochs", "variant"])
    table = groups.agg(
        seeds=("pcc", "size"),
        pcc=("pcc", "mean"),
        pcc_sd=("pcc", lambda x: x.std(ddof=0)),
        pcc_defined=("pcc_defined", "mean"),
        constant=("n_constant_genes", "mean"),
        mse=("mse", "mean"),
    ).reset_index()
    base = table[table["variant"] == "reference"].set_index(["section", "gat_epochs", "epochs"])["pcc"]
    where = pd.MultiIndex.from_frame(table[["section", "gat_epochs", "epochs"]])
    table["change"] = table["pcc"] - base.reindex(where).to_numpy()
    order = {variant: i for i, variant in enumerate(VARIANTS)}
    return table.sort_values(["section", "variant"], key=lambda c: c.map(order) if c.name == "variant" else c)


def markdown(table: pd.DataFrame) -> str:
    """The table as Markdown."""
    head = ["Section", "Epochs", "Variant", "Seeds", "`pcc`", "Change", "`pcc_defined`", "Constant genes", "MSE"]
    lines = [
        [r.section, f"{r.gat_epochs} + {r.epochs}", r.variant, str(r.seeds), metrics.format_mean_sd(r.pcc, r.pcc_sd),
         f"{r.change:+.3f}", f"{r.pcc_defined:.3f}", f"{r.constant:.0f}", f"{r.mse:.3f}"]
        for r in table.itertuples()
    ]  # fmt: skip
    return markdown_table(head, lines)


if __name__ == "__main__":
    cli.define_section_flags(several=True)
    cli.define_config_flag("experiments/configs/ablation.py")
    flags.DEFINE_string("out", None, "Folder for the table and for what it is made from.")
    flags.DEFINE_integer("num_seeds", 3, "Seeds of each variant.", lower_bound=1)
    flags.DEFINE_list("variants", list(VARIANTS), "Variants to train.")
    cli.run(main)
