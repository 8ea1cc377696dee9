"""Fetches data sets from their publishers.

    python -m experiments.download --dataset=C2,MOB1 --out=data/

``--dataset=list`` says which there are. What is there already is not fetched again, and an interrupted download goes on
where it was. The SHA-256 of each file is recorded in ``checksums.json`` when it is first there, and checked afterwards.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from feature_extraction import command as cli
from spabit_jax.datasets.catalogue import ALIASES, DATASETS, DataSet, find
from spabit_jax.datasets.download import fetch
from spabit_jax.errors import InputError


def main() -> None:
    names = cli.FLAGS.dataset
    if names == ["list"]:
        print("\n".join(_line(dataset) for dataset in DATASETS.values()))
        return
    if not names:
        raise InputError(f"--dataset is missing: give one of {', '.join(DATASETS)}; or list")
    datasets = [find(name) for name in names]
    out = Path(cli.given("out"))
    for dataset in datasets:
        fetch(dataset, out)


def _line(dataset: DataSet) -> str:
    how = "" if dataset.files else ", by hand"
    names = " or ".join([dataset.name, *(alias for alias, name in ALIASES.items() if name == dataset.name)])
    return f"{names:15} {dataset.what}; {dataset.split}; {dataset.published}{how}"


if __name__ == "__main__":
    flags.DEFINE_list("dataset", [], "Names of data sets, or list.")
    flags.DEFINE_string("out", None, "Folder of the downloads.")
    cli.run(main)
