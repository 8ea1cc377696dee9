"""Everything for one section: features, training, prediction of the held-out spots, metrics, figures, report.

    python -m experiments.run --section=PATH --config=default --out=DIR

What is done already in DIR is not done again, and an interrupted run continues where it was.
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

from feature_extraction import command as cli
from spabit_jax.errors import InputError
from spabit_jax.run import STAGES

FIRST = """--section and --out are missing. Three commands to begin with (all flags: --help; the rest: docs/USING.md):
  python -m experiments.run --section=data/C2.tsv.gz --out=runs/C2             how well held-out spots are predicted
  python -m experiments.predict --run=runs/C2 --locations=grid:4x --out=C2.h5ad   expression between the spots
  python -m experiments.benchmark --sections=A,B --methods=all --out=runs/AB      several sections, beside baselines"""


def main() -> None:
    if len(sys.argv) == 1:
        raise InputError(FIRST)
    cli.check_known("stages", cli.FLAGS.stages, STAGES)
    if not cli.FLAGS.stages:
        raise InputError(f"--stages is empty: give some of {', '.join(STAGES)}")
    out = Path(cli.given("out"))
    from spabit_jax.run import distributed

    distributed.join(cli.FLAGS.distributed)  # before anything asks JAX for devices
    from spabit_jax.data.prepared import Prepared, for_section, read_alignments

    config = cli.with_windows(cli.read_flagged_config(), cli.FLAGS.patch_px)
    encoder, cache_dir = cli.asked_encoder(), cli.FLAGS.cache_dir
    adata = cli.read_flagged_section()
    of_related = for_section(config, adata).of_related()
    alignments = read_alignments(cli.FLAGS.related, cli.FLAGS.related_alignment)
    related = [
        Prepared(other, of_related, encoder, cache_dir, alignment=alignment)
        for other, alignment in zip(cli.read_related_sections(), alignments, strict=True)
    ]
    prepared = Prepared(adata, config, encoder, cache_dir, related)
    from spabit_jax.run.workflow import Workflow  # brings JAX: bad input has been said by now

    about = (range(cli.FLAGS.num_seeds), origin(adata), cli.FLAGS.figure_format, cli.FLAGS.weights)
    Workflow(out, prepared, *about).run(cli.FLAGS.stages)


def origin(adata) -> dict:
    """What config.json says of where the section comes from and how it is read."""
    info = adata.uns["spabit"]
    section = {"name": info["name"], "format": info["format"], "image": str(info.get("image_path", ""))}
    section |= {"path": str(Path(cli.FLAGS.section).resolve()), "reading": cli.how_to_read()}
    if cli.FLAGS.related:
        paths = [str(Path(path).resolve()) for path in cli.FLAGS.related]
        section |= {"related": paths, "reading_related": cli.how_to_read_related()}
    return {
        "section": section,
        "cache_dir": str(Path(cli.FLAGS.cache_dir).resolve()),
        "command": sys.argv[1:],
    }


if __name__ == "__main__":
    cli.define_section_flags()
    cli.define_config_flag()
    flags.DEFINE_string("out", None, "Folder of the run.")
    flags.DEFINE_string("weights", None, "File of the encoder's weights, instead of the Hugging Face hub's.")
    flags.DEFINE_list("related", [], "Other sections of the same tissue, from whose train spots is learned too.")
    matrix = "2 x 3 or 3 x 3 matrix from its full-resolution pixels to those of --section"
    flags.DEFINE_list("related_alignment", [], f"Of each of --related a file of where it lies, {matrix}; or none.")
    flags.DEFINE_list("stages", list(STAGES), "Stages to run.")
    flags.DEFINE_integer("num_seeds", 5, "Models in the ensemble.", lower_bound=1)
    flags.DEFINE_enum("figure_format", "png", ("png", "pdf", "svg"), "Of the figures; the report has PNGs.")
    flags.DEFINE_string("distributed", None, "Several processes as one run: HOST:PORT,N,I, or auto (as under srun).")
    cli.run(main)
