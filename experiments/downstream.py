"""What follows on a run's predictions: spatial domains, tumour regions, marker genes, enrichment, spatial genes.

    python -m experiments.downstream --run=runs/151673 --out=runs/151673/downstream --gmt=hallmarks.gmt

Each on measured expression (the train spots alone), predicted, merged (measured at train spots, predicted elsewhere),
and on each spot's own measurement, which only a test has. Labels are those of the section, or of ``--labels``; what
needs labels or gene sets is left out where there are none, with one line that says so. Two minutes on 3,000 spots.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from feature_extraction import command as cli
from spabit_jax.errors import InputError
from spabit_jax.files import locked


def main() -> None:
    run, out = Path(cli.given("run")), Path(cli.given("out"))
    from spabit_jax.downstream.analyses import Analyses, read_run, write
    from spabit_jax.downstream.enrichment import read_gene_sets

    if out.resolve() == run.resolve():
        raise InputError(f"--out={out} is the run's own folder, which has a report.html already: give another")
    predictions, metrics = read_run(run, cli.FLAGS.labels)
    sets = read_gene_sets(cli.FLAGS.gmt, predictions.var_names) if cli.FLAGS.gmt else {}
    with locked(out / ".lock"):
        found = Analyses(predictions, out / "figures")
        found.domains(cli.FLAGS.n_domains, cli.FLAGS.num_seeds)
        found.tumour(cli.FLAGS.tumour_labels)
        found.markers(sets)
        found.spatial()
        print(write(run, out, metrics, found))


if __name__ == "__main__":
    flags.DEFINE_string("run", None, "Folder of a finished run.")
    flags.DEFINE_string("out", None, "Folder for the results.")
    flags.DEFINE_string("gmt", None, "Gene sets: a GMT file with the gene names of the section.")
    flags.DEFINE_string("labels", None, "File with a label for each spot, instead of those of the run.")
    flags.DEFINE_integer("n_domains", None, "Spatial domains; by default as many as there are labels.", lower_bound=2)
    flags.DEFINE_integer("num_seeds", 5, "Seeds of each clustering.", lower_bound=1)
    flags.DEFINE_list("tumour_labels", ["invasive cancer", "tumour", "tumor"], "Labels that mean tumour.")
    cli.run(main)
