"""What a user waits for, from the command to its result, stage by stage: this code and an earlier commit, in turn.

    python -m experiments.studies.waiting --sections=data/C2.tsv.gz,data/151673 --before=499c969 --out=DIR

Each side makes each section twice, in folders of its own: first from nothing, then again with what the first left in
the cache (image features, compiled programs). A section that was made already in --out is not made again.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import flags

from feature_extraction import command as cli
from spabit_jax.evaluation.report import markdown_table
from spabit_jax.files import write_json, write_or_match

FLAGS = flags.FLAGS
STAGES = ("features", "train", "predict")


def time_run(code: Path, section: Path, cache: Path, out: Path) -> dict[str, float]:
    """Seconds of each stage of ``experiments.run``, of start-up and evaluation (``other``), and of the whole."""
    kept = out.with_suffix(".seconds.json")
    if not kept.exists():
        shutil.rmtree(out, ignore_errors=True)
        flags_given = [f"--section={section}", f"--cache_dir={cache}", f"--out={out}"]
        began = time.monotonic()
        environment = os.environ | {"XDG_CACHE_HOME": str(cache)}  # compiled programs
        subprocess.run([sys.executable, "-m", "experiments.run", *flags_given], cwd=code, env=environment, check=True)
        whole = time.monotonic() - began
        stages = {stage: json.loads((out / "metrics.json").read_text())["seconds"][stage] for stage in STAGES}
        write_json(kept, stages | {"other": whole - sum(stages.values()), "whole": whole})
    return json.loads(kept.read_text())


def _commit(here: Path, name: str) -> str:
    return subprocess.check_output(["git", "-C", here, "rev-parse", name], text=True).strip()


def main() -> None:
    out = Path(FLAGS.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    here, rows = Path(__file__).resolve().parents[2], []
    commits = {"now": _commit(here, "HEAD"), "before": _commit(here, FLAGS.before)}
    write_or_match(out / "commits.json", commits, list(commits))  # times that are there are of these
    with tempfile.TemporaryDirectory() as name:
        before = Path(name) / "before"
        subprocess.run(["git", "-C", here, "worktree", "add", "--detach", before, FLAGS.before], check=True)
        try:
            for section in map(Path, FLAGS.sections):
                for which in ("first", "second"):
                    of_sides = {}
                    for side, code in (("now", here), ("before", before)):
                        of_section = out / side / section.name.partition(".")[0]
                        of_section.mkdir(parents=True, exist_ok=True)
                        of_sides[side] = time_run(code, section.resolve(), of_section / "cache", of_section / which)
                    for side, seconds in of_sides.items():
                        cells = [f"{seconds[stage]:.1f}" for stage in (*STAGES, "other", "whole")]
                        ratio = of_sides["before"]["whole"] / seconds["whole"]
                        rows.append([of_section.name, which, side, *cells, f"{ratio:.1f}"])
        finally:
            subprocess.run(["git", "-C", here, "worktree", "remove", "--force", before], check=True)
    head = ["section", "run", "code", *STAGES, "other", "whole, s", "times as fast"]
    (out / "waiting.md").write_text(markdown_table(head, rows))
    print(markdown_table(head, rows))


if __name__ == "__main__":
    flags.DEFINE_list("sections", None, "Sections, as --section.", required=True)
    flags.DEFINE_string("before", None, "A commit of this repository.", required=True)
    flags.DEFINE_string("out", None, "Folder of runs and table.", required=True)
    cli.run(main)
