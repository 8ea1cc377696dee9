"""One run of a sweep, as a worker executes it."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from spabit_jax.files import is_whole, locked

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Job:
    """A run of ``experiments.run``: a section and a configuration with all their seeds.

    Called, it returns the exit status of the command; what it prints is added to ``log.txt`` in its folder.
    """

    name: str
    folder: Path  # absolute
    command: tuple[str, ...]

    @property
    def is_done(self) -> bool:
        return is_whole(self.folder / "metrics.json")

    def __call__(self) -> int:
        # a worker that outlived an interrupted sweep may be at it
        with locked(self.folder / ".lock") as lock, open(self.folder / "log.txt", "a") as log:
            if self.is_done:
                return 0
            files = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "pass_fds": [lock.fileno()]}
            process = subprocess.Popen(self.command, cwd=ROOT, **files)
            try:
                return process.wait()
            finally:  # a worker that is interrupted takes the run with it, which tidies up
                process.terminate()
                process.wait()

    def checkpoint(self):
        """What submitit submits again when Slurm ends a job early: the same, which goes on where it was."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)
