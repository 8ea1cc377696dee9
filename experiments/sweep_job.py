"""One run of a sweep, as a worker executes it."""

from __future__ import annotations

import fcntl
import subprocess
from dataclasses import dataclass
from pathlib import Path

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
        return (self.folder / "metrics.json").exists()

    def __call__(self) -> int:
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / ".lock", "w") as lock, open(self.folder / "log.txt", "a") as log:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a worker that outlived an interrupted sweep may be at it
            if self.is_done:
                return 0
            command = subprocess.run(
                self.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=ROOT, pass_fds=[lock.fileno()]
            )
        return command.returncode

    def checkpoint(self):
        """What submitit submits again when Slurm ends a job early: the same, which goes on where it was."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)
